"""What a signature of a folder covers: all that a push takes, code included, but for what a push writes itself."""

import os
import shlex
from pathlib import Path
from typing import Any

SIGNATURE_FILE = "model.sig"


def compiled_files(folder: Path) -> list[str]:
    """The files of a folder that Python may run in place of the code beside them."""
    from ..staging_multitask import files_of

    return [name for name in files_of(folder) if name.endswith(".pyc") or "__pycache__" in name.split("/")]


def about_compiled(folder: Path) -> str:
    """What is wrong with compiled code in a folder, and how to remove it; empty where there is none."""
    if not (found := compiled_files(folder)):
        return ""
    where = folder / found[0]
    where = where.parent if where.parent.name == "__pycache__" else where
    return (
        f"{found[0]} is compiled code, which Python may run in place of the code beside it. Remove it: "
        f"rm -r {shlex.quote(str(where))}"
    )


def hashing_config(folder: Path) -> Any:
    """
    How model-signing hashes a folder.

    Card and manifest are left out: a push may write them anew. The manifest says nothing that the signature does not.
    Compiled code is not left out: a push leaves it behind, but Python would run it where somebody adds it.

    Raises:
        ImportError: model-signing is not installed.
        ValueError: the folder holds no model.
    """
    try:
        from model_signing import hashing
    except ImportError as error:
        raise ImportError('This needs model-signing: pip install -e ".[signing]".') from error
    from ..manifest_multitask import MANIFEST_FILE, MAY_CHANGE
    from ..staging_multitask import files_of
    from ..training.report.publish import nested_models, stays_behind

    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json, so it is no folder of a model.")
    compiled = compiled_files(folder)
    own = (SIGNATURE_FILE, MANIFEST_FILE, *MAY_CHANGE)
    left_out = [name for name in files_of(folder) if name in own]
    # Whole folders where that is what stays behind: the signature, which is pushed, names what it leaves out.
    tops = {name: f"{name.split('/')[0]}/" for name in files_of(folder) if stays_behind(name) and name not in compiled}
    left_out += [top if stays_behind(top) else name for name, top in tops.items()]
    left_out += nested_models(folder)
    left_out += [name for name in os.listdir(folder) if name.startswith(".")]  # .cache of `hf download`
    return hashing.Config().set_ignored_paths(paths=left_out)


__all__ = ["SIGNATURE_FILE", "about_compiled", "hashing_config"]
