"""Write the model card of a finished folder anew: its README.md and its pictures.

    multitask-sentence card runs/quickstart
    multitask-sentence card runs/quickstart --repo_id user/name --language en --license apache-2.0

All of it comes from the folder's results.json, config.json and recipe.yaml. A README.md that somebody has edited
stays; the new card then goes beside it, as README.generated.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..data.text.spelling import visible
from ..training.card.model_card import write_model_card
from ..training.run.mistakes import told_in_one_line


def main(argv: Sequence[str] | None = None) -> None:
    """The command: a folder that holds no finished run ends with one message and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="multitask-sentence card", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="A folder that train.py has saved.")
    parser.add_argument("--repo_id", help="The Hub repository it goes to, user/name.")
    parser.add_argument("--language", nargs="+", help="ISO 639 codes of the data (those of the recipe).")
    parser.add_argument("--license", help="Its licence, by the Hub's name, such as apache-2.0 (that of the recipe).")
    parser.add_argument("--data_root", type=Path, help="What the recipe's relative data paths start from.")
    options = parser.parse_args(argv)
    with told_in_one_line():
        print(visible(str(write_model_card(**vars(options)))))  # noqa: T201 - what this command is for


if __name__ == "__main__":
    main()
