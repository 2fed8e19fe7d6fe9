"""Augmentation: which rows are chosen, what is added to whom, what never gets in, and what a recipe is told."""

import io
import json
import random
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from datasets import Dataset
from safetensors.torch import load_file
from transformers import MarianMTModel

from helpers import augmentation_run
from multitask_sentence.data.augmentation.rows import (
    Augmentation,
    augment_sets,
    choose_rows,
    complete_augmentation,
    open_augmentations,
)
from multitask_sentence.data.loading.tasks import TaskSource, load_tasks
from multitask_sentence.data.rows.sets import LabelledSet, LoadedTasks
from multitask_sentence.problem_types_multitask import PROBLEM_TYPES
from multitask_sentence.train import main, run
from multitask_sentence.training.recipe.recipe import load_recipe

SINGLE = "single_label_classification"
OWN = {"method": "words.shout", "share": 1.0}
BACK = {"method": "back_translation", "models": ["there", "back"], "share": 0.3}


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def shout(sentences: list[str]) -> list[str]:
    return [sentence.upper() for sentence in sentences]


def make_loaded(
    train: dict[str, list[Any]], problem_type: str = SINGLE, **splits: dict[str, list[Any]]
) -> LoadedTasks:
    """One loaded set; its tasks are those of the label columns."""
    tasks = [name.removeprefix("label_") for name in train if name != "sentences"]
    loaded = LoadedTasks([LabelledSet(tasks, {})], kinds=dict.fromkeys(tasks, PROBLEM_TYPES[problem_type]))
    loaded.sets[0].splits = {split: Dataset.from_dict(rows) for split, rows in {"train": train, **splits}.items()}
    return loaded


def augment(
    loaded: LoadedTasks,
    function: Callable[[list[str]], Any] = shout,
    share: float = 1.0,
    tasks: list[str] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Augment the one set; returns the rows that were added, after checking that the others are as they were."""
    before = loaded.sets[0].splits["train"].to_list()
    chosen = Augmentation(tasks or loaded.sets[0].tasks, {"method": "words.shout", "share": share}, function)
    augment_sets(loaded, [chosen], seed)
    after = loaded.sets[0].splits["train"].to_list()
    assert after[: len(before)] == before
    return after[len(before) :]


# ---- rows ----


def test_rows_are_chosen_by_the_seed_and_a_larger_share_holds_a_smaller_one():
    rows = list(range(100, 150))
    some, more = choose_rows(rows, 0.3, 1, "mood"), choose_rows(rows, 0.6, 1, "mood")
    assert (len(some), len(more)) == (15, 30)
    assert set(some) < set(more) < set(rows) and some == sorted(some)
    assert some == choose_rows(rows, 0.3, 1, "mood")
    assert some != choose_rows(rows, 0.3, 2, "mood") and some != choose_rows(rows, 0.3, 1, "topic")
    assert len(choose_rows(rows, 0.001, 1, "mood")) == 1
    assert choose_rows(rows, 1, 1, "mood") == rows


def test_added_row_has_the_label_of_the_row_it_was_made_from():
    loaded = make_loaded({"sentences": [["a"], ["b"], ["c"], ["d"]], "label_mood": [0, 1, 2, 1]})
    assert augment(loaded, share=0.5) == [
        {"sentences": [row.upper()], "label_mood": label}
        for row, label in (("a", 0), ("b", 1), ("c", 2), ("d", 1))
        if row.upper() in [added["sentences"][0] for added in loaded.sets[0].splits["train"].to_list()]
    ]
    assert loaded.augmentations["mood"] == {"method": "words.shout", "share": 0.5, "chosen": 2, "rows": 2}


def test_only_the_tasks_that_name_it_learn_from_added_rows():
    rows = {"sentences": [["a"], ["b"], ["c"]], "label_mood": [0, None, 1], "label_topic": [4, 5, None]}
    assert augment(make_loaded(rows), tasks=["mood"]) == [
        {"sentences": ["A"], "label_mood": 0, "label_topic": None},
        {"sentences": ["C"], "label_mood": 1, "label_topic": None},
    ]
    loaded = make_loaded(rows)
    assert [row["label_topic"] for row in augment(loaded)] == [4, 5, None], "both tasks name it"
    assert [loaded.augmentations[task]["rows"] for task in ("mood", "topic")] == [2, 2]


def test_both_sentences_of_a_pair_are_augmented_and_its_score_stays():
    loaded = make_loaded({"sentences": [["a", "b"], ["c", "b"]], "label_near": [0.25, 4.5]}, "similarity")
    assert augment(loaded) == [
        {"sentences": ["A", "B"], "label_near": 0.25},
        {"sentences": ["C", "B"], "label_near": 4.5},
    ]


def test_anchor_and_positive_are_augmented_and_negatives_are_not():
    loaded = make_loaded({"sentences": [["a", "b", "c", "d"]], "label_search": [1.0]}, "contrastive")
    assert augment(loaded) == [{"sentences": ["A", "B", "c", "d"], "label_search": 1.0}]


def test_what_comes_back_empty_or_equal_adds_nothing(caplog):
    loaded = make_loaded({"sentences": [["a"], [" b "], ["c"], ["d"], ["e"]], "label_mood": [0, 1, 0, 1, 0]})
    answers = {"a": "", " b ": "b", "c": " \n", "d": "D ", "e": "e"}
    added = augment(loaded, lambda sentences: [answers[sentence] for sentence in sentences])
    assert added == [{"sentences": ["D"], "label_mood": 1}]
    assert caplog.messages == [
        "mood: 5 of 5 training rows chosen for words.shout, 1 came back changed and are added\n    d\n -> D"
    ]
    pair = make_loaded({"sentences": [["a", "d"]], "label_near": [1.0]}, "similarity")
    added = augment(pair, lambda sentences: [answers[sentence] for sentence in sentences])
    assert added == [{"sentences": ["a", "D"], "label_near": 1.0}], "one new sentence makes a new pair"


def test_half_a_character_that_comes_back_is_read_as_one_that_is_unknown():
    loaded = make_loaded({"sentences": [["a"], ["b"]], "label_mood": [0, 1]})
    added = augment(loaded, lambda sentences: [f"{sentence} \ud83d" for sentence in sentences])
    assert [row["sentences"] for row in added] == [["a \ufffd"], ["b \ufffd"]]


def test_nothing_changed_leaves_the_set_alone(caplog):
    loaded = make_loaded({"sentences": [["a"]], "label_mood": [0]})
    assert augment(loaded, list) == []
    assert "0 came back changed" in caplog.messages[0]


def test_three_examples_are_shown_cut_to_a_line(caplog):
    loaded = make_loaded({"sentences": [[f"word {n} " + "very " * 50] for n in range(9)], "label_mood": [0] * 9})
    augment(loaded)
    lines = caplog.messages[0].splitlines()
    assert len(lines) == 7 and max(map(len, lines)) < 110
    assert lines[1].startswith("    word 0 very") and lines[2].startswith(" -> WORD 0 VERY")


# ---- validation and test ----


def test_held_out_sentences_are_never_augmented_nor_added():
    held_out = {"sentences": [["b"], ["a  Secret "]], "label_mood": [0, 1]}
    train = {"sentences": [["a"], [" B"], ["c"], ["d"]], "label_mood": [0, 1, 0, 1]}
    loaded = make_loaded(train, validation=held_out)
    seen: list[str] = []
    texts = {"a": "other", "c": "b", "d": "A secret"}
    added = augment(loaded, lambda sentences: seen.extend(sentences) or [texts[sentence] for sentence in sentences])
    assert seen == ["a", "c", "d"], "b stands in validation too, but for white space and case"
    assert added == [{"sentences": ["other"], "label_mood": 0}], "the other texts stand in validation"
    assert loaded.sets[0].splits["validation"].to_list() == Dataset.from_dict(held_out).to_list()


def test_augmentation_acts_after_a_validation_split_is_set_aside(tmp_path: Path):
    rows = "\n".join(f"sentence {number},{number % 2}" for number in range(40))
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text("text,mood\n" + rows.replace("sentence", name), encoding="utf-8")
    source = TaskSource(
        "mood",
        SINGLE,
        {"path": "csv", "data_files": {"train": "train.csv", "test": "test.csv"}},
        {"sentence": "text", "label": "mood"},
        validation_split=0.25,
    )
    plain, loaded = (load_tasks([source], tmp_path, seed=7) for _ in range(2))
    seen: list[str] = []
    added = augment(loaded, lambda sentences: seen.extend(sentences) or shout(sentences))
    train, validation, test = (plain.sets[0].splits[split].to_list() for split in ("train", "validation", "test"))
    assert len(validation) == 10 and len(added) == 30
    assert sorted(seen) == sorted(row["sentences"][0] for row in train)
    assert not {row["sentences"][0].upper() for row in [*validation, *test]} & {row["sentences"][0] for row in added}
    assert loaded.sets[0].splits["validation"].to_list() == validation
    assert loaded.sets[0].splits["test"].to_list() == test


# ---- a function of one's own ----


def source(name: str = "mood", augmentation: dict[str, Any] | None = None, **changes: Any) -> TaskSource:
    settings = {"dataset": {"path": "csv"}, "columns": {"sentence": "text", "label": name}, **changes}
    return TaskSource(name, SINGLE, augmentation=augmentation, **settings)


def test_function_is_found_in_the_recipe_folder_and_given_every_sentence_once(tmp_path: Path):
    neighbour = "from neighbour_of_recipe_words import louder\n    "
    (tmp_path / "recipe_words.py").write_text(
        f"def shout(sentences):\n    {neighbour}return list(map(louder, sentences))\n"
    )
    (tmp_path / "neighbour_of_recipe_words.py").write_text("louder = str.upper\n")
    path = list(sys.path)
    (opened,) = open_augmentations([source(augmentation={"method": "recipe_words.shout", "share": 1})], tmp_path)
    assert sys.path == path
    seen: list[str] = []
    loaded = make_loaded({"sentences": [["a"], ["b"], ["a"]], "label_mood": [0, 1, 0]})
    added = augment(loaded, lambda sentences: seen.extend(sentences) or opened.augment(sentences))
    assert [row["sentences"] for row in added] == [["A"], ["B"], ["A"]]
    assert seen == ["a", "b"]
    assert sys.path == path


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            "no_such_words.shout",
            r"tasks\.mood\.augmentation\.method: the module no_such_words cannot be imported \(No mod",
        ),
        (
            "other_words.shot",
            r"method: .*other_words\.py has no 'shot'\. Did you mean 'shout'\? Name a function of it\.",
        ),
        ("other_words.number", r"other_words\.py holds no function 'number'\."),
        ("broken_words.shout", r"the module broken_words cannot be imported \(No module named 'nowhere'\)"),
        ("wrong_words.shout", r"the module wrong_words cannot be imported \(SyntaxError: .*wrong_words\.py, line 1\)"),
    ],
)
def test_function_that_is_not_there_is_named(tmp_path: Path, method: str, message: str):
    (tmp_path / "other_words.py").write_text("number = 7\ndef shout(sentences):\n    return sentences\n")
    (tmp_path / "broken_words.py").write_text("import nowhere\n")
    (tmp_path / "wrong_words.py").write_text("def shout(sentences:\n")
    with pytest.raises(ValueError, match=message):
        open_augmentations([source(augmentation={"method": method, "share": 1})], tmp_path)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (["A"], ValueError, r"tasks\.mood\.augmentation\.method: words\.shout returned 1 texts for 2 sentences"),
        ("AB", TypeError, "words.shout returned a str, but should return a list of texts"),
        (None, TypeError, "returned a NoneType"),
        (["A", None], TypeError, "returned a list with a NoneType"),
    ],
)
def test_function_that_returns_something_else_is_told_what(answer: Any, error: type[Exception], message: str):
    loaded = make_loaded({"sentences": [["a"], ["b"]], "label_mood": [0, 1]})
    with pytest.raises(error, match=message):
        augment(loaded, lambda sentences: answer)


def test_function_that_fails_is_named(tmp_path: Path):
    (tmp_path / "failing_words.py").write_text(
        "def fail(sentences):\n    return int(sentences[0])\n", encoding="utf-8"
    )
    (opened,) = open_augmentations([source(augmentation={"method": "failing_words.fail", "share": 1.0})], tmp_path)
    loaded = make_loaded({"sentences": [["a"], ["b"]], "label_mood": [0, 1]})
    message = (
        r"tasks\.mood\.augmentation\.method: failing_words\.fail failed for 2 sentences: ValueError\(.invalid literal"
    )
    with pytest.raises(RuntimeError, match=message):
        augment_sets(loaded, [opened], 0)


def test_function_that_draws_at_random_does_so_by_the_seed():
    def drawn(seed: int) -> list[dict[str, Any]]:
        random.random()  # whatever was drawn before
        loaded = make_loaded({"sentences": [["a"], ["b"]], "label_mood": [0, 1]})
        return augment(
            loaded, lambda sentences: [f"{s} {random.random()} {np.random.rand()}" for s in sentences], seed=seed
        )

    assert drawn(1) == drawn(1) != drawn(2)


# ---- what a recipe may say ----


def test_defaults_of_back_translation_are_filled_in():
    assert complete_augmentation("here", BACK) == {
        **BACK,
        **{"languages": None, "batch_size": 32, "num_beams": 1, "max_length": 128},
    }
    assert complete_augmentation("here", None) is None
    assert complete_augmentation("here", OWN) == OWN


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("back_translation", r"augmentation is 'back_translation', but should be a mapping"),
        (
            {**BACK, "method": "back_translaton"},
            r"method is 'back_translaton', which is unknown\. Did you mean 'back_tr",
        ),
        ({"share": 0.3}, r"augmentation\.method is None, which is unknown\. Give back_translation, or a function"),
        ({**OWN, "method": "words."}, r"method is 'words\.', which is unknown"),
        (
            {**BACK, "num_beam": 4},
            r"augmentation: unknown key 'num_beam'\. Did you mean 'num_beams'\? Known keys: method",
        ),
        ({**OWN, "models": ["a", "b"]}, r"unknown key 'models'\. Known keys: method, share\."),
        ({**BACK, "share": 0}, r"augmentation\.share is 0, but should be above 0 and at most 1"),
        ({**BACK, "share": 1.5}, r"share is 1\.5"),
        ({**BACK, "share": True}, r"share is True"),
        ({"method": "words.shout"}, r"share is None"),
        (
            {**BACK, "models": ["one"]},
            r"augmentation\.models is \['one'\], but should hold two, such as \[Helsinki-NLP/",
        ),
        ({**BACK, "models": "one"}, r"models is 'one', but should hold two"),
        ({"method": "back_translation", "share": 1}, r"models is None, but should hold two"),
        ({**BACK, "languages": ["en"]}, r"languages is \['en'\], but should hold two, such as \[en, de\]"),
        ({**BACK, "num_beams": 0}, r"num_beams is 0, but should be a whole number of at least 1"),
        ({**BACK, "max_length": 12.5}, r"max_length is 12\.5, but should be a whole number"),
    ],
)
def test_wrong_block_is_refused_when_the_recipe_is_read(tmp_path: Path, block: Any, message: str):
    task = {
        "problem_type": SINGLE,
        "dataset": {"path": "csv", "data_files": "rows.csv"},
        "columns": {"sentence": "a", "label": "b"},
    }
    content = {"tasks": {"mood": {**task, "augmentation": block}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"mine\.yaml: tasks\.mood\.augmentation.*" + message.removeprefix("augmentation")
    ):
        load_recipe(tmp_path / "mine.yaml")


def test_rows_are_not_cut_down_and_added_to_at_once(tmp_path: Path):
    task = {
        "problem_type": SINGLE,
        "dataset": {"path": "csv", "data_files": "rows.csv"},
        "columns": {"sentence": "a", "label": "b"},
        "augmentation": OWN,
    }
    content = {"tasks": {"mood": task}, "mixture": {"max_rows": {"mood": 10}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"max_rows cuts down the training rows of 'mood', and tasks\.mood\.augment"):
        load_recipe(tmp_path / "mine.yaml")


def test_tasks_of_one_set_name_the_same_augmentation_or_only_one_does(tmp_path: Path):
    (tmp_path / "set_words.py").write_text("def shout(sentences):\n    return sentences\n")
    own = {"method": "set_words.shout", "share": 0.5}
    opened = open_augmentations([source("a", own), source("b"), source("c", own)], tmp_path)
    assert [augmentation.tasks for augmentation in opened] == [["a", "c"]]
    message = "Tasks 'a' and 'c' read the same sentences but differ in augmentation. Give both the same, or only one"
    with pytest.raises(ValueError, match=re.escape(message)):
        open_augmentations([source("a", own), source("b"), source("c", {**own, "share": 0.4})], tmp_path)
    elsewhere = source("c", {**own, "share": 0.4}, dataset={"path": "json"})
    assert [found.tasks for found in open_augmentations([source("a", own), elsewhere], tmp_path)] == [["a"], ["c"]]


# ---- the command ----

RECIPE = """
backbone: {backbone}
max_length: 20
tasks:
  mood:
    problem_type: single_label_classification
    dataset: {{path: csv, data_files: {{train: rows.csv}}}}
    columns: {{sentence: text, label: mood}}
    validation_split: 0.25
    augmentation: {augmentation}
training:
  output_dir: {folder}/first
  max_steps: 3
  per_device_train_batch_size: 8
  keep_best_of_tasks: false
  disable_tqdm: true
  use_cpu: true
"""


@pytest.fixture
def job(tmp_path: Path, tiny_backbone: str, tiny_translators: list[str]) -> Path:
    words = ["cat", "dog", "bird", "bank", "market", "film", "news", "story", "park", "mat"]
    rows = [f"the {word} was {mood} today,{mood}" for word in words for mood in ("good", "bad")]
    (tmp_path / "rows.csv").write_text("\n".join(["text,mood", *rows]), encoding="utf-8")
    block = {"method": "back_translation", "models": tiny_translators, "share": 0.5, "max_length": 20}
    text = RECIPE.format(backbone=tiny_backbone, folder=tmp_path, augmentation=json.dumps(block))
    (tmp_path / "job.yaml").write_text(text, encoding="utf-8")
    return tmp_path / "job.yaml"


def test_run_says_what_was_added_and_a_second_one_is_the_same_without_translating(job: Path, monkeypatch):
    printed = io.StringIO()
    with redirect_stdout(printed):
        run([str(job)])
    first = job.parent / "first"
    results = json.loads((first / "results.json").read_text(encoding="utf-8"))
    noted = results["augmentation"]["mood"]
    assert noted["chosen"] == 8 and noted["revisions"] == [None, None] and 0 < noted["rows"] <= 8
    assert results["rows"]["mood"] == {"train": 15 + noted["rows"], "validation": 5}
    text = printed.getvalue()
    assert noted["models"] == ["./there", "./back"], "folders without those above them"
    models = r"\S+there and \S+back"
    assert f"mood: 8 of 15 training rows chosen for back_translation, {noted['rows']} came back changed" in text
    assert text.count("\n -> ") == 3
    assert re.search(
        rf"augmentation of mood +back_translation through {models}, share 0\.5: {noted['rows']} rows", text
    )
    card = (first / "README.md").read_text(encoding="utf-8")
    said = (
        f"{noted['rows']} of the training rows were made by `back_translation` through a local model and a local model"
    )
    assert said in card and str(job.parent) not in card

    monkeypatch.setattr(MarianMTModel, "generate", lambda *_, **__: pytest.fail("a sentence was translated again"))
    run([str(job), "--output_dir", str(job.parent / "second")])
    weights = [load_file(job.parent / name / "model.safetensors") for name in ("first", "second")]
    assert all((tensor == weights[1][name]).all() for name, tensor in weights[0].items())


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"method": "nowhere_at_all.shout", "share": 1}, "the module nowhere_at_all cannot be imported"),
        ({"method": "back_translation", "models": ["./a", "./b"], "share": 1}, "there is no folder ./a"),
    ],
)
def test_command_refuses_before_any_data_is_loaded(job: Path, monkeypatch, block: dict[str, Any], message: str):
    content = yaml.safe_load(job.read_text(encoding="utf-8"))
    content["tasks"]["mood"]["augmentation"] = block
    job.write_text(yaml.safe_dump(content), encoding="utf-8")
    (job.parent / "rows.csv").unlink()  # so that looking at the data would be another error
    monkeypatch.setattr(sys, "argv", ["train.py", str(job)])
    with pytest.raises(SystemExit, match=message):
        main()


SAID_BY = """
import os
from pathlib import Path


def say(sentences):
    with Path(__file__).with_name("asked.txt").open("a") as file:
        file.write(os.environ["RANK"])
    return [f"{sentence}, said process {os.environ['RANK']}" for sentence in sentences]
"""


def test_two_processes_share_the_translation_and_have_the_same_rows(
    tmp_path: Path, tiny_translators: list[str], run_in_two_processes: Callable[..., str]
):
    (tmp_path / "said_by.py").write_text(SAID_BY)
    run_in_two_processes(augmentation_run, *tiny_translators, tmp_path)

    first, second = (json.loads((tmp_path / f"{process}.json").read_text()) for process in range(2))
    assert first["sentences"] == second["sentences"]
    assert len(first["sentences"]["mood"]) > 9, "translations were added to 9 rows"
    assert all(row[0].endswith("said process 0") for row in first["sentences"]["topic"][9:])
    assert (tmp_path / "asked.txt").read_text() == "0", "one process asks the function, once"
    assert 9 < first["generated"] + second["generated"] <= 18, "9 sentences there, and what came of them back"
    assert min(first["generated"], second["generated"]) >= 4
