"""Eight threads on one model: they encode and predict while others change its mode and add and remove tasks.

Every answer is compared with that of the model by itself.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from outcomes import Case

from multitask_sentence import MultiTaskModel

TASKS = {"mood": {"problem_type": "single_label_classification", "labels": ["negative", "positive"]}}
NEW = {"problem_type": "single_label_classification", "labels": ["no", "yes"]}
NOUNS, VERBS = ("cat", "dog", "bird", "bank"), ("sat", "ran", "sang")
SENTENCES = [f"the {noun} {verb} today" for noun in NOUNS for verb in VERBS]


def run_threads(backbone: Path, seconds: float, seed: int, count: int = 8) -> Iterator[Case]:
    """So many threads for so long; a case for each answer."""
    if not seconds:
        return
    torch.manual_seed(1)
    model = MultiTaskModel.from_backbone(str(backbone), tasks=TASKS, max_length=20).eval()
    expected, tasks = model.encode(SENTENCES), model.predict(SENTENCES)["mood"]["probabilities"]
    cases, ends = [], time.monotonic() + seconds

    def encode(chance: random.Random) -> str | None:
        places = chance.sample(range(len(SENTENCES)), 3)
        apart = np.abs(model.encode([SENTENCES[place] for place in places]) - expected[places]).max()
        return None if apart <= 1e-5 else f"{apart:.1e} apart"

    def predict(chance: random.Random) -> str | None:
        places = chance.sample(range(len(SENTENCES)), 3)
        found = model.predict([SENTENCES[place] for place in places])["mood"]["probabilities"]
        apart = np.abs(found - tasks[places]).max()
        return None if apart <= 1e-5 else f"{apart:.1e} apart"

    def change_mode(chance: random.Random) -> None:
        model.train(chance.random() < 0.5)

    def add_task(chance: random.Random) -> None:
        name = f"task_{threading.get_ident()}"
        model.add_task(name, NEW)
        model.remove_task(name)

    def work(number: int) -> None:
        chance = random.Random(seed * 100 + number)
        kinds: list[Callable[[random.Random], str | None]] = [encode, predict, change_mode, add_task]
        while time.monotonic() < ends:
            kind = kinds[number % 4] if number < 4 else chance.choice(kinds)
            try:
                problem = kind(chance)
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            cases.append(Case("threads", kind.__name__, "together", "failure" if problem else "right", str(problem)))

    threads = [threading.Thread(target=work, args=[number]) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield from cases
