"""The locks of files that Linux and macOS have: `fcntl`, or an error that names the system."""

import platform

try:
    import fcntl
except ImportError:
    raise ImportError(
        f"Training, labelling and exporting lock files as Linux and macOS do, and this is {platform.system()}. Run "
        "them there, or in the Windows Subsystem for Linux. Models open and answer without."
    ) from None

__all__ = ["fcntl"]
