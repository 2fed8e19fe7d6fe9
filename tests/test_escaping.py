"""Labels and texts with control characters and markup: nothing of them acts on a terminal, a card or a page."""

import csv
import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import yaml

from multitask_sentence import MultiTaskModel
from multitask_sentence.commands import card, evaluate, label, report
from multitask_sentence.data.text.spelling import visible
from multitask_sentence.train import main

LABELS = ("\x1b[31mred\x1b[0m", "<img src=x onerror=alert(1)>", "a|b*_`x`[y](javascript:z)", "\u202eevil\x07\x9b2J")
ACTING = "\x1b\x07\x9b\u202e"


def printed(command, *arguments: object) -> str:
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        command([str(argument) for argument in arguments])
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with such labels, and the run of it in `run`."""
    folder = tmp_path_factory.mktemp("odd labels")
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [(f"the cat {LABELS[place % 4]} ran {place}", LABELS[place % 4]) for place in range(16)]
        csv.writer(file).writerows([("text", "mood"), *rows])
    recipe = {
        "backbone": tiny_backbone,
        "max_length": 20,
        "tasks": {
            "mood": {
                "problem_type": "single_label_classification",
                "dataset": {"path": "csv", "data_files": dict.fromkeys(("train", "validation", "test"), "rows.csv")},
                "columns": {"sentence": "text", "label": "mood"},
            }
        },
        "training": {"output_dir": str(folder / "run"), "max_steps": 2, "use_cpu": True, "disable_tqdm": True},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    (folder / "said.txt").write_text(printed(main, folder / "recipe.yaml"), encoding="utf-8")
    return folder


def test_control_characters_are_spelled_out_and_other_text_stays() -> None:
    assert visible("\x1b[31m\x9b\u202e\r") == "\\u001b[31m\\u009b\\u202e\\u000d"
    kept = "a\tb\nÄß 日本 \u200d👩\u200d🔬 \u200f"
    assert visible(kept) == kept


def test_nothing_of_a_label_acts_on_a_terminal(folder: Path) -> None:
    of_train = (folder / "said.txt").read_text(encoding="utf-8")
    of_evaluate = printed(evaluate.main, folder / "run", folder / "recipe.yaml")
    model = MultiTaskModel.from_pretrained(folder / "run")
    model.heads["mood"].layers[-1].bias.data[model.config.tasks["mood"].labels.index(LABELS[0])] += 100
    model.save_pretrained(folder / "always red")
    of_label = printed(label.main, folder / "always red", folder / "rows.csv", folder / "labelled.jsonl")
    for said in (of_train, of_label):
        assert "\\u001b[31mred" in said, "premise: labels are printed"
    assert not set(ACTING) & set(of_train + of_evaluate + of_label)
    labelled = [json.loads(line) for line in (folder / "labelled.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["mood_label"] for row in labelled] == [LABELS[0]] * 16, "data stays what it is"


def test_nothing_of_a_label_acts_in_card_and_page(folder: Path) -> None:
    printed(card.main, folder / "run")
    printed(report.main, folder / "run")
    text, page = ((folder / "run" / name).read_text(encoding="utf-8") for name in ("README.md", "report.html"))
    assert "[31mred" in text and "[31mred" in page, "premise: labels are shown"
    assert not set(ACTING) & set(text + page)
    assert "<img src=x" not in page
    assert "<img src=x" not in text.replace("`<img src=x onerror=alert(1)>`", "")
