"""Publish a finished folder on the Hugging Face Hub, in one commit.

    check_can_push("user/name")               # before training: is there a token that may write there?
    push_folder("runs/mine", "user/name")     # after it: the URL of the commit

Nothing of the folder is changed or removed. A push that fails says how to repeat it.
"""

import os
import shlex
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

# What stands beside the finished model: checkpoints, single runs, predictions with the texts of the data, logs that
# name the machine, pickles, drafts, hidden files.
EXCLUDED = (
    "checkpoint-*",
    "best/*",
    "single/*",
    "predictions/*",
    "runs/*",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.pkl",
    "*.part",
    "README.generated.md",
    ".*",
)


def _explain(error: BaseException, repo_id: str) -> str:
    """What a reader needs to know of a failed request."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__  # from which file failed to why
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401:
        return (
            "The Hub does not accept the token. Log in again with `hf auth login`, or set HF_TOKEN to a token from "
            "https://huggingface.co/settings/tokens."
        )
    if status == 403:
        return f"The token may not write to {repo_id} ({error.server_message or 'forbidden'}). Use one that may."
    message = " ".join(str(error).split())
    return message if isinstance(error, ValueError) else f"{type(error).__name__}: {message.rstrip('.')}."


def check_can_push(repo_id: str, token: str | None = None) -> None:
    """
    Make sure that a push will not fail for want of a name, a token or a permission; nothing is created.

    Args:
        repo_id: `user/name`, `organization/name`, or `name` for the token's own user.
        token: the token that `hf auth login` stored or HF_TOKEN holds, where nothing is said.

    Raises:
        ValueError: the id cannot be one, there is no token, or the token is not accepted or may not write there.
        OSError: the Hub cannot be reached.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"hub_model_id is {repo_id!r}, but should be like user/name. {error}") from error
    try:
        account = HfApi().whoami(token=token)
    except LocalTokenNotFoundError as error:
        raise ValueError(
            f"There is no token to push to {repo_id} with. Log in with `hf auth login`, or set HF_TOKEN to a token "
            "with write permission from https://huggingface.co/settings/tokens."
        ) from error
    except Exception as error:  # the Hub's and httpx's errors have no class in common
        if isinstance(error, HfHubHTTPError) and error.response.status_code == 401:
            raise ValueError(_explain(error, repo_id)) from error
        raise OSError(f"The Hub cannot be asked whether the token may push. {_explain(error, repo_id)}") from error
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise ValueError(
            f"The token of {account['name']} may only read, so nothing can be pushed to {repo_id}. Make one with "
            "write permission at https://huggingface.co/settings/tokens."
        )
    owners = [account["name"], *(organization["name"] for organization in account.get("orgs", []))]
    if role == "write" and "/" in repo_id and repo_id.split("/")[0] not in owners:
        raise ValueError(
            f"The token of {account['name']} may not push to {repo_id}. It may push under: {', '.join(owners)}."
        )


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "Upload multi-task sentence model",
) -> str:
    """
    Upload a finished folder in one commit: weights, tokenizer, code, configurations, card, results and pictures.

    Args:
        folder: of the finished model; checkpoints and pickles in it (`EXCLUDED`) stay behind.
        repo_id: `user/name`; the repository is created where there is none.
        private: whether a new repository is private; `None` for what the account or organization does by default.
        revision: the branch, created from `main` where there is none; `None` for `main`.
        token: the token that `hf auth login` stored or HF_TOKEN holds, where nothing is said.
        commit_message: the title of the commit.

    Returns:
        The URL of the commit.

    Raises:
        ValueError: the folder holds no finished model.
        OSError: the push failed, and the Hub shows nothing of it; the message says why and how to repeat it.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no finished model to push: there is no config.json in it.")
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    excluded = [pattern for pattern in EXCLUDED if any(fnmatchcase(path, pattern) for path in paths)]
    paths = [path for path in paths if not any(fnmatchcase(path, pattern) for pattern in excluded)]
    try:
        check_can_push(repo_id, token)
        api = HfApi(token=token)
        full_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and not api.repo_info(full_id).private:
            raise ValueError(
                f"{full_id} exists already and is public, but the push should be private. Give another name, or make "
                "it private on its settings page first."
            )
        if revision and not revision.startswith("refs/"):
            api.create_branch(full_id, branch=revision, exist_ok=True)
        # Not upload_folder, which tries a refused commit of many files again in parts, so that some of them may stay.
        commit = api.create_commit(
            full_id,
            operations=[CommitOperationAdd(path, folder / path) for path in paths],
            commit_message=commit_message,
            revision=revision,
        )
    except Exception as error:  # the Hub's, httpx's and xet's errors have no class in common
        is_no_id = isinstance(error.__cause__, HFValidationError)
        words = ["hf", "upload", "user/name" if is_no_id else repo_id, os.fspath(folder), "."]
        words += ["--private"] if private else []
        words += ["--revision", revision] if revision else []
        command = " ".join([*map(shlex.quote, words), *(f'--exclude "{pattern}"' for pattern in excluded)])
        raise OSError(
            f"The model was not pushed to {repo_id}. {_explain(error, repo_id)}\n"
            f"The folder {folder} is complete and unchanged. Push it again with\n    {command}"
        ) from error
    return commit.commit_url
