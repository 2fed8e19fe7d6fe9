"""Training rows that a task is measured on: found across tasks, told of, or taken out."""

from typing import Any

import pytest
from datasets import Dataset

from multitask_sentence.data.rows.held_out import announce_held_out, drop_held_out, held_out_sentences
from multitask_sentence.data.rows.sets import LabelledSet, LoadedTasks
from multitask_sentence.data.text.sameness import text_key
from multitask_sentence.training.recipe.recipe import load_recipe


def two_sets_of_pairs() -> LoadedTasks:
    """A training pair of `paraphrase` stands in the test split of `similarity`, the other way round, in other case."""

    def split(task: str, rows: list[list[str]], labels: list[Any]) -> Dataset:
        return Dataset.from_dict({"sentences": rows, f"label_{task}": labels})

    paraphrase = {
        "train": split("paraphrase", [["A dog  ran.", "The DOG ran."], ["a b", "c d"], ["e", "f"]], [1, 0, 1]),
        "validation": split("paraphrase", [["g", "h"]], [1]),
    }
    similarity = {
        "train": split("similarity", [["a b", "x"], ["y", "z"], ["g", "h"]], [1.0, 2.0, 3.0]),
        "validation": split("similarity", [["c d", "x"]], [1.0]),
        "test": split("similarity", [["the dog ran.", "a dog ran."], ["y", "z"]], [4.0, 2.0]),
    }
    return LoadedTasks([LabelledSet(["paraphrase"], paraphrase), LabelledSet(["similarity"], similarity)])


def train_rows(loaded: LoadedTasks) -> list[list[list[str]]]:
    return [labelled_set.splits["train"]["sentences"][:] for labelled_set in loaded.sets]


def test_whole_rows_are_dropped_in_either_order_whatever_their_case_and_white_space(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loaded = two_sets_of_pairs()
    drop_held_out(loaded)
    # A single shared sentence (a b, x, c d) is no reason; (y, z) stands in the set's own test split.
    assert train_rows(loaded) == [[["a b", "c d"], ["e", "f"]], [["a b", "x"]]]
    assert loaded.sets[0].splits["train"]["label_paraphrase"][:] == [0, 1]
    stand = "training rows stand in a validation or test split"
    assert caplog.messages == [
        f"paraphrase: 1 of 3 {stand} (similarity) and are left out",
        f"similarity: 2 of 3 {stand} (similarity, paraphrase) and are left out",
    ]


def test_a_pair_of_one_sentence_twice_is_not_that_sentence() -> None:
    pairs = Dataset.from_dict({"sentences": [["A man plays.", "a man plays."]], "label_similarity": [5.0]})
    texts = Dataset.from_dict({"sentences": [["A man plays."]], "label_topic": [0]})
    train = Dataset.from_dict({"sentences": [["b"]], "label_topic": [0]})
    sets = [LabelledSet(["similarity"], {"train": pairs}), LabelledSet(["topic"], {"train": train, "test": texts})]
    loaded = LoadedTasks(sets)
    drop_held_out(loaded)
    assert len(loaded.sets[0].splits["train"]) == 1


def test_other_splits_stay_as_they_are() -> None:
    loaded, untouched = two_sets_of_pairs(), two_sets_of_pairs()
    drop_held_out(loaded)
    for found, before in zip(loaded.sets, untouched.sets, strict=True):
        for split in set(before.splits) - {"train"}:
            assert found.splits[split].to_dict() == before.splits[split].to_dict()


def test_without_dropping_every_row_stays_and_overlaps_between_tasks_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loaded = two_sets_of_pairs()
    announce_held_out(loaded)
    assert train_rows(loaded) == train_rows(two_sets_of_pairs())
    told = [announcement.split(", whose")[0] for announcement in caplog.messages]
    assert told == [
        "paraphrase: 1 of 3 training rows stand in the validation or test split of similarity",
        "similarity: 1 of 3 training rows stand in the validation or test split of paraphrase",
    ]
    assert "`drop_held_out: true`" in caplog.messages[0]


def test_clean_sets_are_not_talked_about(caplog: pytest.LogCaptureFixture) -> None:
    loaded = two_sets_of_pairs()
    del loaded.sets[0]
    del loaded.sets[0].splits["test"]
    before = train_rows(loaded)
    announce_held_out(loaded)
    drop_held_out(loaded)
    assert caplog.messages == []
    assert train_rows(loaded) == before


def test_of_a_contrastive_row_anchor_and_positive_count() -> None:
    rows = {"sentences": [["q", "p", "n"], ["q2", "p2", "n"]], "label_search": [1.0, 1.0]}
    held = {"sentences": [["P", "Q", "other"]], "label_search": [1.0]}
    splits = {"train": Dataset.from_dict(rows), "validation": Dataset.from_dict(held)}
    loaded = LoadedTasks([LabelledSet(["search"], splits)])
    drop_held_out(loaded)
    assert train_rows(loaded) == [[["q2", "p2", "n"]]]


def test_a_task_without_a_labelled_row_left_is_an_error() -> None:
    train = {"sentences": [["a"], ["b"]], "label_mood": [0, None], "label_topic": [None, 1]}
    test = {"sentences": [["A"]], "label_mood": [0], "label_topic": [1]}
    splits = {"train": Dataset.from_dict(train), "test": Dataset.from_dict(test)}
    with pytest.raises(ValueError, match=r"Task 'mood': drop_held_out leaves no labelled training row"):
        drop_held_out(LoadedTasks([LabelledSet(["mood", "topic"], splits)]))


def test_held_out_sentences_are_all_of_validation_and_test() -> None:
    expected = {"g", "h", "c d", "x", "the dog ran.", "a dog ran.", "y", "z"}
    assert held_out_sentences(two_sets_of_pairs()) == expected
    assert text_key(" A\n dog\tRAN ") == "a dog ran"


def test_a_recipe_says_true_or_false(tmp_path) -> None:
    path = tmp_path / "recipe.yaml"
    task = "tasks: {mood: {problem_type: regression, dataset: {path: csv}, columns: {sentence: s, label: l}}}\n"
    path.write_text(task)
    assert load_recipe(path).drop_held_out is False
    path.write_text(task + "drop_held_out: true\n")
    assert load_recipe(path).drop_held_out is True
    path.write_text(task + "drop_held_out: test\n")
    with pytest.raises(ValueError, match=r"drop_held_out is 'test', but should be true or false"):
        load_recipe(path)
