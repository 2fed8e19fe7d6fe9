"""Open a finished folder (or Hub repository) as any user would, and print every task's answer for a few sentences.

    python recipes/open_model.py runs/quickstart

Nothing but transformers is imported: the model's own code comes out of the folder.
"""

import sys

from transformers import AutoModel
from transformers.utils import logging

SENTENCES = [
    "I absolutely love this product, it's amazing!",
    "This movie was terrible and a complete waste of time.",
    "The service was okay, nothing special but not bad either.",
    "Shares fell after the bank lowered its outlook for the year.",
]
PAIRS = [
    ("A man is playing the guitar.", "Somebody plays a guitar."),
    ("A man is playing the guitar.", "Interest rates were raised again."),
]


def main(folder: str) -> None:
    logging.disable_progress_bar()
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    print(f"{folder}: {model.num_parameters() / 1e6:.1f} M parameters, tasks {', '.join(model.config.tasks)}")  # noqa: T201
    kinds = {task.pair for task in model.config.tasks.values()}
    for inputs in [SENTENCES] * (False in kinds) + [PAIRS] * (True in kinds):
        for task, answer in model.predict(inputs).items():
            print(f"\n{task}")  # noqa: T201
            for row, sentence in enumerate(inputs):
                if "labels" in answer:
                    best = answer["probabilities"][row].max()
                    print(f"  {answer['labels'][row]!s:14} {best:.2f}  {sentence}")  # noqa: T201
                else:
                    (values,) = answer.values()
                    print(f"  {values[row]:6.2f}  {sentence}")  # noqa: T201


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
