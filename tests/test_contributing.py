"""The walks of CONTRIBUTING.md, run and compared with the order in which the functions are called."""

import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import yaml

from multitask_sentence import MultiTaskModel, train

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_files_that_the_page_names_exist() -> None:
    names = re.findall(r"`([a-z_/]+(?:\.py|\.md|/))`", PAGE)
    assert len(names) > 10
    assert [name for name in names if not (ROOT / name).exists()] == []


def walk(title: str) -> list[str]:
    """The last two parts of the names that the steps of a walk begin with: a class or file, and a function."""
    section = PAGE[PAGE.index(f"## {title}") :].split("\n## ")[0]
    return [".".join(name.split(".")[-2:]) for name in re.findall(r"^\d+\. `([\w.]+)`", section, flags=re.MULTILINE)]


def calls_of(run: Callable[[], object]) -> list[str]:
    """Functions of the package in the order of their first calls, as file or class and name."""
    found: dict[str, None] = {}
    seen = set()

    def note(frame, event, argument) -> None:  # a frame that gets no tracer of its own is not looked at again
        code = frame.f_code
        if code not in seen:
            seen.add(code)
            path = Path(code.co_filename)
            if ROOT in path.parents:
                found.setdefault(code.co_qualname if "." in code.co_qualname else f"{path.stem}.{code.co_qualname}")

    before = sys.gettrace()
    threading.settrace(note)
    sys.settrace(note)
    try:
        run()
    finally:
        sys.settrace(before)
        threading.settrace(before)
    return list(found)


def check_order(steps: list[str], calls: list[str]) -> None:
    assert 5 <= len(steps) <= 10
    assert set(steps) - set(calls) == set()
    assert sorted(steps, key=calls.index) == steps


def test_walk_from_predict_to_label_is_that_of_the_code(tiny_model: MultiTaskModel) -> None:
    check_order(walk("From predict to label"), calls_of(lambda: tiny_model.predict(["a cat sat"], head="mood")))


def test_walk_from_recipe_to_loss_is_that_of_the_code(tiny_backbone: str, tmp_path: Path) -> None:
    rows = "text,mood\n" + "".join(f"the {animal} ran,{mood}\n" for animal, mood in [("cat", "good"), ("dog", "bad")])
    (tmp_path / "rows.csv").write_text(rows, encoding="utf-8")
    files = {"train": "rows.csv", "validation": "rows.csv"}
    task = {
        "problem_type": "single_label_classification",
        "dataset": {"path": "csv", "data_files": files},
        "columns": {"sentence": "text", "label": "mood"},
    }
    recipe = {
        "backbone": tiny_backbone,
        "max_length": 16,
        "tasks": {"mood": task},
        "training": {"max_steps": 1, "report_to": "none", "use_cpu": True, "keep_best_of_tasks": False},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    arguments = [str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "run")]
    check_order(walk("From recipe to loss"), calls_of(lambda: train.run(arguments)))
