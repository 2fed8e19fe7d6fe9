"""The collator: one padded batch in which every distinct sentence stands once, and each task's rows and labels."""

import pytest
import torch
from transformers import AutoTokenizer

from helpers import trainer as helpers
from multitask_sentence.data.collation import MultiTaskCollator, sentence_id
from multitask_sentence.tasks_multitask import complete_task


@pytest.fixture(scope="module")
def collator(tmp_path_factory):
    tokenizer = AutoTokenizer.from_pretrained(helpers.make_backbone(tmp_path_factory.mktemp("backbone")))
    tasks = {name: complete_task(name, task) for name, task in helpers.TASKS.items()}
    return MultiTaskCollator(tokenizer, tasks, max_length=6)


def assert_equal(found: torch.Tensor, expected: list, dtype: torch.dtype):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=dtype).reshape(found.shape), rtol=0, atol=0)


def test_batch_is_the_worked_example(collator):
    batch = collator(
        [
            {"sentences": ["word0 word1"], "label_sentiment": 2, "label_tags": [1.0, 0.0]},
            {"sentences": ["word2"], "label_sentiment": None, "label_tags": [1.0, 1.0]},
            {"sentences": ["word3 word4 word5", "word0 word1"], "label_pairs": 4.5},
            {"sentences": ["word2"], "label_rating": 0.25, "label_sentiment": 0},
            {"sentences": ["word2", "word6", "word0 word1"], "label_search": 1.0},
        ]
    )
    # [PAD] 0, [CLS] 2, [SEP] 3, word0 is 5
    assert batch["input_ids"].tolist() == [[2, 5, 6, 3, 0], [2, 7, 3, 0, 0], [2, 8, 9, 10, 3], [2, 11, 3, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert {task: rows.tolist() for task, rows in batch["task_rows"].items()} == {
        "sentiment": [0, 1],
        "tags": [0, 1],
        "rating": [1],
        "pairs": [[2, 0]],
        "search": [[1, 3, 0]],
    }
    assert {task: labels.tolist() for task, labels in batch["labels"].items()} == {
        "sentiment": [2, 0],
        "tags": [[1.0, 0.0], [1.0, 1.0]],
        "rating": [0.25],
        "pairs": [4.5],
        "search": [[sentence_id("word2"), sentence_id("word6"), sentence_id("word0 word1")]],
    }
    assert set(batch) == {"input_ids", "attention_mask", "task_rows", "labels"}


def test_labels_and_rows_have_the_types_that_losses_and_indexing_need(collator):
    batch = collator(
        [
            {"sentences": ["word0"], "label_sentiment": 1, "label_tags": [1, 0], "label_rating": 3},
            {"sentences": ["word0", "word1"], "label_pairs": 4},
        ]
    )
    assert {rows.dtype for rows in batch["task_rows"].values()} == {torch.long}
    assert batch["labels"]["sentiment"].dtype == torch.long
    assert {batch["labels"][task].dtype for task in ("tags", "rating", "pairs")} == {torch.float}
    assert batch["labels"]["search"].dtype == torch.long


def test_tasks_without_a_labelled_row_have_zero_rows_of_the_right_shape(collator):
    batch = collator([{"sentences": [""]}])
    assert batch["input_ids"].tolist() == [[2, 3]]
    shapes = {"sentiment": (0,), "tags": (0,), "rating": (0,), "pairs": (0, 2), "search": (0, 2)}
    assert {task: tuple(rows.shape) for task, rows in batch["task_rows"].items()} == shapes
    assert {rows.dtype for rows in batch["task_rows"].values()} == {torch.long}
    shapes = {"sentiment": (0,), "tags": (0, 2), "rating": (0,), "pairs": (0,), "search": (0, 2)}
    assert {task: tuple(labels.shape) for task, labels in batch["labels"].items()} == shapes
    assert batch["labels"]["sentiment"].dtype == torch.long


def test_label_zero_is_a_label(collator):
    batch = collator([{"sentences": ["word0"], "label_sentiment": 0, "label_rating": 0.0, "label_tags": [0.0, 0.0]}])
    assert_equal(batch["labels"]["sentiment"], [0], torch.long)
    assert_equal(batch["labels"]["rating"], [0.0], torch.float)
    assert_equal(batch["labels"]["tags"], [[0.0, 0.0]], torch.float)


def test_sentence_that_stands_in_many_rows_is_tokenized_once(collator):
    rows = [{"sentences": ["word0", "word0"], "label_pairs": 5.0}, {"sentences": ["word0"], "label_sentiment": 1}] * 3
    batch = collator(rows)
    assert batch["input_ids"].shape == (1, 3)
    assert batch["task_rows"]["pairs"].tolist() == [[0, 0]] * 3
    assert batch["task_rows"]["sentiment"].tolist() == [0, 0, 0]


def test_sentence_ids_are_equal_for_equal_sentences_and_the_same_in_every_process():
    assert sentence_id("A sentence.") == -6969591972114224424
    assert len({sentence_id(sentence) for sentence in (*helpers.make_sentences(500, 0), "", " ")}) == 502


def test_row_with_labels_for_a_few_tasks_feeds_only_those_and_is_encoded_once(collator):
    rows = [
        {"sentences": ["word0"], "label_sentiment": 1, "label_rating": None, "label_tags": [1.0, 0.0]},
        {"sentences": ["word1"], "label_sentiment": None, "label_rating": 0.5, "label_tags": None},
        {"sentences": ["word0", "word1"], "label_pairs": 3.0},
    ]
    batch = collator(rows)
    assert len(batch["input_ids"]) == 2
    assert {task: found.tolist() for task, found in batch["task_rows"].items() if len(found)} == {
        "sentiment": [0],
        "tags": [0],
        "rating": [1],
        "pairs": [[0, 1]],
    }


def test_long_sentence_is_truncated_to_max_length(collator):
    batch = collator([{"sentences": [" ".join(helpers.WORDS[:20])], "label_sentiment": 1}])
    assert batch["input_ids"].tolist() == [[2, 5, 6, 7, 8, 3]]


def test_batch_goes_through_the_model_as_it_is(collator, tmp_path):
    model = helpers.make_model(helpers.make_backbone(tmp_path))
    batch = collator(
        [
            {"sentences": ["word0"], "label_sentiment": 1, "label_rating": 1.0},
            {"sentences": ["word1", "word2"], "label_pairs": 4.0},
        ]
    )
    del batch["labels"]
    logits = model(**batch).logits
    shapes = {"sentiment": (1, 3), "tags": (0, 2), "rating": (1,), "pairs": (1,), "search": (0,)}
    assert {task: tuple(value.shape) for task, value in logits.items()} == shapes
