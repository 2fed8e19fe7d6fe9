"""Rows that are set aside: chosen by their text, stable under growth, order and tasks, and balanced."""

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from multitask_sentence.data.loading.tasks import TaskSource, load_tasks
from multitask_sentence.data.rows.sets import LoadedTasks
from multitask_sentence.data.rows.sides import SIDES, Sides
from multitask_sentence.data.splits.splitting import split_rows
from multitask_sentence.data.text.sameness import row_hash
from multitask_sentence.training.recipe.recipe import load_recipe

Row = tuple[str, dict[str, Any]]  # a sentence and its labels by task


def make_rows(count: int, seed: int, start: int = 0) -> list[Row]:
    """Rows with a rare and a frequent class of `mood`, three of `topic`, and a score."""
    draw = random.Random(seed)
    return [
        (
            f"text {number} {draw.random()}",
            {"mood": int(draw.random() < 0.2), "topic": draw.randrange(3), "score": draw.random()},
        )
        for number in range(start, start + count)
    ]


def split(
    rows: Sequence[Row],
    tasks: Sequence[str] = ("mood",),
    seed: int = 1,
    groups: Any = None,
    known: Any = None,
    **shares,
) -> dict[str, set[str]]:
    """By split the sentences; `split_rows` for rows that carry labels for some tasks."""
    shares, settled = shares or {"validation": 0.2}, Sides()
    if known is not None:
        settled.add(np.array(list(known)), np.array([SIDES.index(name) for name in known.values()]))
    found = split_rows(
        np.array([row_hash([sentence]) for sentence, _ in rows]),
        {task: pa.chunked_array([[labels[task] for _, labels in rows]]) for task in tasks},
        shares,
        seed,
        groups,
        settled,
    )
    assert len(found) == len(rows), "rows in are rows out"
    names = [SIDES[side] for side in found]
    return {
        split: {sentence for name, (sentence, _) in zip(names, rows, strict=True) if name == split}
        for split in ("train", *shares)
    }


def load(folder: Path, text: str, *sources: TaskSource, seed: int = 42) -> LoadedTasks:
    (folder / "rows.csv").write_text(text, encoding="utf-8")
    return load_tasks(list(sources), folder, seed)


def source(name: str = "mood", **changed: Any) -> TaskSource:
    settings = {
        "problem_type": "single_label_classification",
        "dataset": {"path": "csv", "data_files": "rows.csv"},
        "columns": {"sentence": "text", "label": "label"},
        "validation_split": 0.1,
    }
    return TaskSource(name, **{**settings, **changed})


def sentences(loaded: LoadedTasks, number: int = 0) -> dict[str, list[str]]:
    return {name: [row[0] for row in own["sentences"]] for name, own in loaded.sets[number].splits.items()}


# What moves nothing


def test_the_order_of_rows_moves_nothing() -> None:
    rows = make_rows(200, seed=0)
    shuffled = random.Random(1).sample(rows, len(rows))
    for tasks in (["mood"], ["topic", "mood"], ["score"]):
        assert split(rows, tasks) == split(shuffled, tasks)


def test_a_task_that_joins_or_leaves_after_the_first_moves_nothing() -> None:
    for seed in range(20):
        rows = make_rows(200, seed)
        assert split(rows, ["mood"]) == split(rows, ["mood", "topic"]) == split(rows, ["mood", "score", "topic"])


def test_case_white_space_and_unicode_form_move_nothing_and_keep_rows_together() -> None:
    rows = [(f"Café {number}", {"mood": number % 2}) for number in range(100)]
    twins = [(f"cafe\u0301  {number}\n", labels) for number, (_, labels) in enumerate(rows)]
    assert {row_hash([text]) for text, _ in rows} == {row_hash([text]) for text, _ in twins}
    found = split(rows + twins)
    assert len(found["validation"]) == 40
    for name in found:
        assert {row_hash([text]) for text in found[name] & {text for text, _ in rows}} == {
            row_hash([text]) for text in found[name] & {text for text, _ in twins}
        }


def test_another_seed_gives_another_split() -> None:
    rows = make_rows(200, seed=0)
    assert split(rows, seed=1) == split(rows, seed=1)
    assert split(rows, seed=1) != split(rows, seed=2)


def test_a_test_split_changes_nothing_about_validation() -> None:
    for seed in range(10):
        rows = make_rows(200, seed)
        alone, both = split(rows, validation=0.1), split(rows, validation=0.1, test=0.2)
        assert alone["validation"] == both["validation"]
        assert len(both["test"]) == 40
        assert alone["train"] == both["train"] | both["test"]


@pytest.mark.parametrize(("count", "growth", "most"), [(160, 16, 0.04), (160, 160, 0.08), (1500, 150, 0.03)])
def test_growth_brings_few_held_out_texts_into_training(count: int, growth: int, most: float) -> None:
    """The figures of the module's docstring; a split that is drawn anew would move 80 %."""
    moved = held = 0
    for seed in range(20):
        rows = make_rows(count, seed)
        before, after = split(rows), split(rows + make_rows(growth, seed + 1000, count))
        held += len(before["validation"])
        moved += len(before["validation"] & after["train"])
    assert 0 < moved / held < most


def test_a_larger_share_keeps_most_of_what_was_set_aside() -> None:
    rows = make_rows(400, seed=0)
    small, large = split(rows, validation=0.1), split(rows, validation=0.2)
    assert len(small["validation"] - large["validation"]) <= 2


# Shares


def test_each_class_and_all_together_give_their_share_to_within_a_row() -> None:
    for seed in range(30):
        rows = make_rows(170, seed)
        for share in (0.1, 0.2, 0.3):
            held = split(rows, validation=share)["validation"]
            assert abs(len(held) - share * len(rows)) <= 1
            for label, count in Counter(labels["mood"] for _, labels in rows).items():
                assert abs(sum(labels["mood"] == label for text, labels in rows if text in held) - share * count) <= 1


def test_scores_are_balanced_by_tenths() -> None:
    rows = [(f"s{number}", {"score": number**2 / 100}) for number in range(400)]
    held = split(rows, ["score"], validation=0.1)["validation"]
    assert Counter(int(text[1:]) // 40 for text in held) == dict.fromkeys(range(10), 4)


def test_labels_of_a_multi_label_task_are_balanced_by_the_rarest() -> None:
    rows = [(f"s{number}", {"tags": [1.0, float(number % 4 == 0), float(number % 20 == 0)]}) for number in range(400)]
    held = split(rows, ["tags"], validation=0.2)["validation"]
    counts = [sum(labels["tags"][place] for text, labels in rows if text in held) for place in range(3)]
    assert counts == [pytest.approx(80, abs=2), 20, 4]


def test_rows_without_the_first_task_are_balanced_by_the_next() -> None:
    rows = [
        (f"s{number}", {"mood": number % 2 if number < 300 else None, "topic": number % 3}) for number in range(480)
    ]
    held = {int(text[1:]) for text in split(rows, ["mood", "topic"], validation=0.1)["validation"]}
    assert Counter(number % 2 for number in held if number < 300) == {0: 15, 1: 15}
    assert Counter(number % 3 for number in held if number >= 300) == {0: 6, 1: 6, 2: 6}


def test_a_class_of_a_later_task_is_neither_left_out_nor_used_up() -> None:
    for seed in range(40):
        rows = [(f"s{number}", {"mood": number % 2, "topic": 0}) for number in range(100)]
        for number in range(5):
            rows[number][1]["topic"] = 1
        found = split(rows, ["mood", "topic"], seed)
        for name in ("train", "validation"):
            assert found[name] & {f"s{number}" for number in range(5)}, (seed, name)


def test_equal_sentences_stay_together_and_the_last_of_a_class_trains() -> None:
    rows = [(f"s{number // 2}", {"mood": number % 2}) for number in range(40)] + [("only", {"mood": 2})]
    for seed in range(20):
        found = split(rows, seed=seed, validation=0.9)
        assert "only" in found["train"]
        assert not found["train"] & found["validation"]


# Other sets and earlier models


def test_two_files_with_the_same_sentences_set_the_same_aside(tmp_path: Path) -> None:
    rows = make_rows(150, seed=0)
    (tmp_path / "other.csv").write_text(
        "words,topic\n" + "".join(f"{text.upper()},{labels['topic']}\n" for text, labels in reversed(rows))
    )
    text = "text,label\n" + "".join(f"{text},{labels['mood']}\n" for text, labels in rows)
    topic = source(
        "topic",
        dataset={"path": "csv", "data_files": "other.csv"},
        columns={"sentence": "words", "label": "topic"},
    )
    alone = load(tmp_path, text, source())
    loaded = load(tmp_path, text, source(), topic)
    first, second = sentences(loaded, 0), sentences(loaded, 1)
    assert first == sentences(alone)
    assert {text.upper() for text in first["validation"]} == set(second["validation"])


def test_rows_of_an_earlier_model_stay_where_they_were() -> None:
    for seed in range(10):
        rows = make_rows(160, seed)
        before = split(rows, seed=1)
        known = {row_hash([text]): name for name, texts in before.items() for text in texts}
        after = split(rows + make_rows(16, seed + 100, 160), ["topic"], seed=2, known=known)
        assert before["train"] <= after["train"]
        assert before["validation"] <= after["validation"]
        assert len(after["validation"] - before["validation"]) in (3, 4), "a share of the new rows, not all of them"


# Groups


def test_rows_of_a_group_go_to_one_side_in_any_order() -> None:
    rows = make_rows(300, seed=3)
    groups = [f"author {number % 25}" for number in range(300)]
    found = split(rows, groups=groups, validation=0.2, test=0.1)
    sides = {
        (group, name) for group, (text, _) in zip(groups, rows, strict=True) for name in found if text in found[name]
    }
    assert len(sides) == 25
    for name, due in (("validation", 60), ("test", 30)):
        assert abs(len(found[name]) - due) < 12, "to within a group"
    order = random.Random(0).sample(range(300), 300)
    assert found == split(
        [rows[row] for row in order], groups=[groups[row] for row in order], validation=0.2, test=0.1
    )


def test_a_group_larger_than_the_share_trains_and_some_group_is_always_held_out() -> None:
    rows = [(f"s{number}", {"mood": number % 2}) for number in range(100)]
    for seed in range(20):
        large = split(rows, seed=seed, groups=["large"] * 80 + [f"small {number % 4}" for number in range(20)])
        assert {f"s{number}" for number in range(80)} <= large["train"]
        assert 15 <= len(large["validation"]) <= 20
        two = split(rows, seed=seed, groups=["a"] * 60 + ["b"] * 40)
        assert len(two["validation"]) == 40


def test_group_is_a_column_of_text_or_numbers_whose_empty_cells_are_groups_of_their_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for cells in ([7, 8.0, 9, None], ["anna", "bo", "cy", ""], ["7", "8", "9", " "]):
        rows = [
            {"text": f"s{number}", "label": ["no", "yes"][number % 2], "thread": cells[number // 20]}
            for number in range(80)
        ]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        grouped = source(
            dataset={"path": "jsonl", "data_files": "rows.jsonl"},
            validation_split=0.1,
            test_split=0.25,
            group="thread",
        )
        loaded = load_tasks([grouped], tmp_path, seed=42)
        found = {name: {int(text[1:]) for text in texts} for name, texts in sentences(loaded).items()}
        for number in range(3):
            group = set(range(20 * number, 20 * number + 20))
            assert sum(bool(group & own) for own in found.values()) == 1, "a group is on one side"
        assert found["validation"] <= set(range(60, 80)), "texts without a group are held out one by one"
        assert 4 <= len(found["validation"]) <= 12
        assert 15 <= len(found["test"]) <= 25
        assert sum(map(len, found.values())) == 80
        announced = f"({len(found['test'])} of 80) set aside, whole groups of 'thread', seed 42"
        assert f"mood: no test split; 25 % of the training rows {announced}" in caplog.messages
        assert set(loaded.sets[0].splits["train"].column_names) == {"sentences", "label_mood"}


def test_a_missing_group_column_names_the_nearest(tmp_path: Path) -> None:
    message = r"rows.csv: task 'mood' needs a column 'authr', which.*Did you mean 'author'.*Correct tasks.mood.group"
    with pytest.raises(ValueError, match=message):
        load(tmp_path, "text,label,author\na,x,1\nb,y,2\n", source(group="authr"))


# What is said


def test_what_is_set_aside_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = ["rare"] * 20 + ["some"] * 120 + ["many"] * 300
    text = "text,label\n" + "".join(f"s{row},{label}\n" for row, label in enumerate(labels))
    loaded = load(tmp_path, text, source(test_split=0.05))
    validation, test = (loaded.sets[0].splits[name] for name in ("validation", "test"))
    assert Counter(validation["label_mood"]) == {0: 30, 1: 2, 2: 12}
    assert Counter(test["label_mood"]) == {0: 15, 1: 1, 2: 6}
    assert len(loaded.sets[0].splits["train"]) == 374
    for line in (
        "mood: no validation split; 10 % of the training rows (44 of 440) set aside, stratified, seed 42",
        "mood: no test split; 5 % of the training rows (22 of 440) set aside, stratified, seed 42",
    ):
        assert line in caplog.messages
    assert "mood: no test split" not in caplog.messages
    load(tmp_path, text, source())
    assert "mood: no test split" in caplog.messages


def test_a_split_without_a_row_for_a_task_is_an_error(tmp_path: Path) -> None:
    text = "text,label,score\n" + "".join(f"s{row},{'xy'[row % 2]},\n" for row in range(20)) + "t,x,1\n"
    rating = source("rating", problem_type="regression", columns={"sentence": "text", "label": "score"})
    message = re.escape("Task 'rating': validation_split 0.1 of 21 rows leaves no labelled row for validation")
    with pytest.raises(ValueError, match=message):
        load(tmp_path, text, source(), rating)
    grouped = "text,label,author\na,x,me\nb,y,me\n"
    with pytest.raises(ValueError, match=r"validation_split 0.1 of 2 rows in 1 groups leaves no labelled row"):
        load(tmp_path, grouped, source(group="author"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("validation_split: 1.0", r"tasks.mood.validation_split should be above 0 and below 1. Found 1.0"),
        ("test_split: true", r"tasks.mood.test_split should be above 0 and below 1. Found True"),
        ("test_split: '0.1'", r"tasks.mood.test_split should be above 0 and below 1. Found '0.1'"),
        ("{validation_split: 0.5, test_split: 0.5}", r"leave no row for training. Their sum should be below 1"),
        ("{validation_split: 0.1, group: [author]}", r"tasks.mood.group should be the name of a column"),
        ("group: author", r"none are. Add tasks.mood.validation_split or test_split, or remove group"),
    ],
)
def test_settings_are_checked_before_data_is_loaded(tmp_path: Path, settings: str, message: str) -> None:
    inner = settings.strip("{}")
    (tmp_path / "recipe.yaml").write_text(
        "tasks: {mood: {problem_type: regression, dataset: {path: csv, data_files: nowhere.csv}, "
        f"columns: {{sentence: s, label: l}}, {inner}}}}}\n"
    )
    with pytest.raises(ValueError, match=message):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(("key", "value"), [("validation_split", 0.2), ("test_split", 0.2), ("group", "author")])
def test_tasks_of_the_same_rows_have_to_agree(tmp_path: Path, key: str, value: Any) -> None:
    task = {"problem_type": "regression", "dataset": {"path": "csv", "data_files": "nowhere.csv"}}
    task |= {"columns": {"sentence": "s", "label": "l"}, "validation_split": 0.1}
    recipe = {"tasks": {"mood": task, "topic": {**task, key: value}}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match=f"'mood' and 'topic' read the same sentences but differ in {key}"):
        load_recipe(tmp_path / "recipe.yaml")


def test_a_split_that_is_there_is_not_set_aside_again(tmp_path: Path) -> None:
    files = {"train": "rows.csv", "validation": "rows.csv", "test": "rows.csv"}
    both = {"path": "csv", "data_files": files}
    with pytest.raises(
        ValueError, match=r"there is a test split .* and a test_split of 0.1. Remove tasks.mood.test_split"
    ):
        load(tmp_path, "text,label\na,x\nb,y\n", source(dataset=both, validation_split=None, test_split=0.1))
