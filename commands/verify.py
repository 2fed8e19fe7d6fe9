"""Check the signature of a folder: every file, code included, is what the owner of a key has signed.

    multitask-sentence verify runs/quickstart --public_key public.pem
    multitask-sentence verify downloaded --public_key public.pem      # hf download user/name --local-dir downloaded

Files that were added are refused, too, but for those that a push leaves behind: checkpoints, predictions, logs,
pickles and hidden files, which nothing reads that opens the folder. The manifest, which `doctor --verify` compares,
finds damage; a signature finds what somebody changed on purpose.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..data.text.spelling import visible
from ._signed import SIGNATURE_FILE, about_compiled, hashing_config


def main(argv: Sequence[str] | None = None) -> None:
    """The command: exit status 1 where anything is not what was signed."""
    parser = argparse.ArgumentParser(
        prog="multitask-sentence verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="The folder of a model.")
    parser.add_argument("--public_key", type=Path, required=True, help="Of who signed it, a PEM file.")
    options = parser.parse_args(argv)
    signature = options.folder / SIGNATURE_FILE
    try:
        hashing = hashing_config(options.folder)
        if not signature.is_file():
            raise ValueError(f"there is no {SIGNATURE_FILE}. Ask who made the model for one: multitask-sentence sign")
        from model_signing import verifying

        config = verifying.Config().use_elliptic_key_verifier(public_key=options.public_key)
        config.set_hashing_config(hashing).verify(options.folder, signature)
    except (ImportError, OSError, TypeError, ValueError) as error:
        compiled = about_compiled(options.folder)
        sys.exit(visible(f"error: {options.folder} is not verified: {error} {compiled}".rstrip()))
    print(f"{options.folder}: every file is what was signed.")  # noqa: T201 - what this command is for


if __name__ == "__main__":
    main()
