"""Mutated recipes and random texts: one clear line or the right answer, never a stack trace, NaN or another answer.

Recipes come from tests/helpers/recipe_fuzz.py. A text is asked for in company and alone: the answers are the same to
1e-5, and a task's probabilities are numbers between 0 and 1.
"""

import random
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jobs import WORDS
from outcomes import Case

from multitask_sentence import MultiTaskModel

TOLERANCE = 1e-5
TASKS = {
    "mood": {"problem_type": "single_label_classification", "labels": ["negative", "positive"]},
    "tags": {"problem_type": "multi_label_classification", "labels": ["animal", "money", "place"]},
    "rating": {"problem_type": "regression"},
}
ANSWERS = {"mood": "probabilities", "tags": "probabilities", "rating": "values"}
MARKUP = (
    "<script>alert(1)</script>",
    "| a | b |",
    "[x](y)",
    "---\nkey: &a [*a]",
    "\x1b[31mred\x1b[0m",
    "../../etc",
    "\0",
)


def random_text(chance: random.Random) -> str:
    """Words, characters from all of Unicode, markup, white space; short, empty, or long beyond every limit."""
    parts = []
    for _ in range(chance.choice([0, 1, 2, 5, 12, 200])):
        kind = chance.randrange(5)
        if kind == 0:
            parts.append(chance.choice(MARKUP))
        elif kind == 1:
            point = chance.randrange(sys.maxunicode)
            parts.append(chr(point) if unicodedata.category(chr(point)) != "Cs" else "\N{REPLACEMENT CHARACTER}")
        else:
            parts.append(chance.choice(WORDS))
    return chance.choice([" ", "", "\n", "\N{ZERO WIDTH SPACE}"]).join(parts)


def try_recipes(folder: Path, backbone: Path, count: int, seed: int) -> Iterator[Case]:
    """So many mutated recipes through everything that is checked before data is loaded."""
    sys.path.append(str(Path(__file__).parents[2] / "tests"))
    from helpers.recipe_fuzz import Fuzzer, outcome_of

    folder.mkdir(parents=True)
    fuzzer, recipe = Fuzzer(str(backbone), seed), folder / "mutated.yaml"
    for _ in range(count):
        what, data = fuzzer.mutation()
        recipe.write_bytes(data)
        outcome, message = outcome_of(recipe)
        names = {"passed": "right", "refused": "clear error"}
        yield Case("input", "mutated recipe", what, names.get(outcome, "failure"), f"{outcome}: {message[-700:]}")


def try_texts(backbone: Path, count: int, chance: random.Random) -> Iterator[Case]:
    """So many random texts, each in company and alone."""
    torch.manual_seed(1)
    model = MultiTaskModel.from_backbone(str(backbone), tasks=TASKS, max_length=32).eval()
    for start in range(0, count, 200):
        texts = [random_text(chance) for _ in range(min(200, count - start))]
        try:
            together, tasks = model.encode(texts), model.predict(texts)
        except Exception as error:
            detail = f"texts from {start}: {type(error).__name__}: {error}"
            yield Case("input", "random text", "in company", "failure", detail)
            continue
        for place, text in enumerate(texts):
            shown = f"{text[:60]!r}"
            try:
                found = model.predict(text)
                pairs = [(model.encode(text), together[place])]
                pairs += [(found[task][key], tasks[task][key][place]) for task, key in ANSWERS.items()]
                apart = [float(np.abs(alone - other).max()) for alone, other in pairs]
                shares = np.concatenate([found[task][key] for task, key in ANSWERS.items() if key == "probabilities"])
                is_right = all(own <= TOLERANCE for own in apart)  # which no NaN is
                is_right = is_right and bool(((shares >= 0) & (shares <= 1)).all())
                outcome, detail = ("right" if is_right else "failure"), f"{shown}: {apart} apart, {shares}"
            except Exception as error:
                outcome, detail = "failure", f"{shown}: {type(error).__name__}: {error}"
            yield Case("input", "random text", "alone and in company", outcome, detail)
