"""Hub repositories by a commit that stays what it is: `--revision` and `--require_pinned` of the commands."""

import argparse
import logging
import os
import re

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

logger = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}")


def add_pin_options(parser: argparse.ArgumentParser) -> None:
    """`--revision` and `--require_pinned`."""
    parser.add_argument("--revision", help="The commit of a Hub repository, 40 hexadecimal digits.")
    parser.add_argument(
        "--require_pinned", action="store_true", help="Refuse a Hub repository without such a --revision."
    )


def find_commit(repo_id: str, revision: str | None) -> str | None:
    """The commit that a branch of a Hub repository stands at, now or when it was last read; `None` if nobody knows."""
    from huggingface_hub import HfApi

    from ...adapter_multitask import cached_commit

    try:
        return HfApi().model_info(repo_id, revision=revision).sha
    except Exception:  # whatever is wrong with the Hub or the id, opening says it better
        return cached_commit(repo_id, {"revision": revision})


def check_pinned(source: str, revision: str | None, require_pinned: bool, remedy: str = "--revision {commit}") -> None:
    """
    Warn of a Hub repository that is opened by a name which somebody may move to other code and weights.

    Args:
        source: a folder, which is what it is, or a Hub id.
        revision: what was asked for.
        require_pinned: whether that is an error.
        remedy: what to do, with `{source}` and `{commit}` in it.

    Raises:
        ValueError: it is, and the revision is no commit of 40 digits.
    """
    if os.path.isdir(source) or (revision and COMMIT.fullmatch(revision)):
        return
    try:
        validate_repo_id(source)
    except HFValidationError:
        return  # neither a folder nor an id, which opening says better
    commit = find_commit(source, revision)
    pin = remedy.format(source=source, commit=commit or "<the 40 digits of a commit>")
    found = f", which stands at {commit} now" if commit else ""
    if require_pinned:
        raise ValueError(f"{source}: --require_pinned asks for a commit, not {revision or 'main'}{found}. Give {pin}.")
    logger.warning(
        f"{source} is opened at {revision or 'main'}{found}. Who may write there may change its code and weights. To "
        f"open what was looked at: {pin}"
    )


def download_pinned(
    source: str, revision: str | None, require_pinned: bool, remedy: str = "--revision {commit}"
) -> str:
    """
    What `--revision` and `--require_pinned` open: a folder, or the download of one commit, so that weights, rows and
    results are of the same.

    Args:
        source: a folder or a Hub id, which is given back where no revision is asked for.
        revision: a commit or a branch.
        require_pinned: whether anything else than a commit is an error.
        remedy: as of `check_pinned`.

    Raises:
        ValueError: it is, and the revision is none.
        OSError: the Hub cannot be reached, or has no such revision.
    """
    check_pinned(source, revision, require_pinned, remedy)
    if revision is None or os.path.isdir(source):
        return source
    from huggingface_hub import snapshot_download

    return snapshot_download(source, revision=revision)


def pinned_folder(source: str, require_pinned: bool) -> str:
    """
    What a command opens where it takes several models: a folder, or `user/name@COMMIT`, which is downloaded.

    Args:
        source: one of them, or a Hub id without a commit, which is given back after a warning.
        require_pinned: whether that is an error.

    Raises:
        ValueError: it is, or what stands after the @ is no commit.
        OSError: the Hub cannot be reached, or has no such commit.
    """
    if os.path.isdir(source):
        return source
    name, _, revision = source.partition("@")
    if revision and not COMMIT.fullmatch(revision):
        raise ValueError(f"{source}: after the @ should be the 40 digits of a commit. Found {revision!r}.")
    return download_pinned(name, revision or None, require_pinned, "{source}@{commit}")


__all__ = ["add_pin_options", "check_pinned", "download_pinned", "find_commit", "pinned_folder"]
