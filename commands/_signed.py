"""What a signature of a folder covers: all that a push takes, code included, but for what a push writes itself."""

import os
from pathlib import Path
from typing import Any

SIGNATURE_FILE = "model.sig"


def hashing_config(folder: Path) -> Any:
    """
    How model-signing hashes a folder.

    Card and manifest are left out: a push may write them anew. The manifest says nothing that the signature does not.

    Raises:
        ImportError: model-signing is not installed.
        ValueError: the folder holds no model.
    """
    try:
        from model_signing import hashing
    except ImportError as error:
        raise ImportError('This needs model-signing: pip install "multitask-sentence[signing]".') from error
    from ..manifest_multitask import MANIFEST_FILE, MAY_CHANGE
    from ..staging_multitask import files_of
    from ..training.report.publish import stays_behind

    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json, so it is no folder of a model.")
    own = (SIGNATURE_FILE, MANIFEST_FILE, *MAY_CHANGE)
    left_out = [name for name in files_of(folder) if name in own or stays_behind(name)]
    left_out += [name for name in os.listdir(folder) if name.startswith(".")]  # .cache of `hf download`
    return hashing.Config().set_ignored_paths(paths=left_out)


__all__ = ["SIGNATURE_FILE", "hashing_config"]
