"""Push a finished folder to the Hugging Face Hub, in one commit.

    multitask-sentence push runs/quickstart user/name
    multitask-sentence push runs/quickstart user/name --private --revision trial

Weights, tokenizer, code, card, results, exports and a signature go along. Checkpoints, best/, single/, predictions/,
logs, pickles and hidden files stay behind, and so do other models that were saved in the folder. A card that somebody
has edited on the Hub is kept. Log in with `hf auth login` first, or set HF_TOKEN.

The card names the repository in its examples where it was written for it: multitask-sentence card FOLDER --repo_id
user/name. Sign before you push: multitask-sentence sign FOLDER.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..data.text.spelling import visible
from ..training.report.publish import describe_push, push_folder
from ..training.run.mistakes import told_in_one_line


def main(argv: Sequence[str] | None = None) -> None:
    """The command: a folder that cannot be pushed ends with one message and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="multitask-sentence push", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="The folder of a model.")
    parser.add_argument("repo_id", help="Where it goes, user/name; the repository is created where there is none.")
    parser.add_argument("--private", action="store_true", default=None, help="Make a new repository private.")
    parser.add_argument("--revision", help="The branch, created where there is none (main).")
    parser.add_argument("--commit_message", default="Upload multi-task sentence model", help="The commit's title.")
    options = parser.parse_args(argv)
    with told_in_one_line():
        print(visible(describe_push(push_folder(**vars(options)))))  # noqa: T201 - what this command is for


if __name__ == "__main__":
    main()
