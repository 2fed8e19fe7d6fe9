"""What the campaign of faults counts as a failure."""

import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from helpers.benchmarks import BENCHMARKS
from multitask_sentence import MultiTaskModel
from multitask_sentence.training.resuming.files import write_record

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked and killed as Linux does")


@pytest.fixture(autouse=True)
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Its modules, as its command finds them."""
    known = set(sys.modules)
    monkeypatch.syspath_prepend(BENCHMARKS / "faults")
    yield
    for name in {path.stem for path in (BENCHMARKS / "faults").glob("*.py")} - known:
        sys.modules.pop(name, None)


def of(task: str, key: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict], dict]:
    return lambda found: {**found, task: {**found[task], key: change(found[task][key])}}


@pytest.mark.parametrize(
    "change",
    [
        of("rating", "values", lambda values: values + 1),
        of("tags", "probabilities", lambda shares: shares * np.nan),
        of("mood", "probabilities", lambda shares: shares + 2e-6 - shares.max() + 1),
    ],
    ids=["another rating", "NaN", "beyond 1"],
)
def test_wrong_answer_to_a_text_alone_is_a_failure(
    change: Callable[[dict], dict], tiny_backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from texts import try_texts

    assert {case.outcome for case in try_texts(Path(tiny_backbone), 3, random.Random(0))} == {"right"}
    predict = MultiTaskModel.predict

    def changed(model: MultiTaskModel, texts: str | list[str]) -> dict:
        found = predict(model, texts)
        return change(found) if isinstance(texts, str) else found

    monkeypatch.setattr(MultiTaskModel, "predict", changed)
    if "beyond" in os.environ["PYTEST_CURRENT_TEST"]:
        monkeypatch.setattr("texts.TOLERANCE", 1)
    assert {case.outcome for case in try_texts(Path(tiny_backbone), 3, random.Random(0))} == {"failure"}


def test_exception_for_texts_in_company_is_a_failure_and_not_the_end(tiny_backbone: str, monkeypatch) -> None:
    from texts import try_texts

    monkeypatch.setattr(MultiTaskModel, "predict", lambda *args: 1 / 0)
    (case,) = try_texts(Path(tiny_backbone), 3, random.Random(0))
    assert case.outcome == "failure" and "ZeroDivisionError" in case.detail


def test_file_of_a_checkpoint_that_nobody_misses_is_a_failure(tmp_path: Path) -> None:
    from damage import damage_folder, resumes

    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "weights.json").write_text("[1]", encoding="utf-8")
    write_record(folder, {}, [], save_only_model=False)
    (folder / "later.json").write_text("[1]", encoding="utf-8")
    found = {case.moment: case.outcome for case in damage_folder("x", folder, folder, resumes, random.Random(0), 1)}
    assert found["weights.json gone"] == "clear error" and found["later.json gone"] == "failure"


def test_run_that_hangs_is_not_one_that_was_killed() -> None:
    from jobs import HANGS, wait_for

    def child(seconds: float) -> int:
        found = os.fork()
        if not found:
            os.setpgid(0, 0)
            time.sleep(seconds)
            os._exit(3)
        return found

    assert wait_for([child(60)], 0.3) == HANGS
    assert wait_for([child(0)], 60) == 3
