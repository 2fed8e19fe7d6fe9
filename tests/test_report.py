"""The table of rows, labels, lengths and overlaps."""

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from multitask_sentence.data.report import describe, format_report
from multitask_sentence.data.rows.sets import LabelledSet, LoadedTasks
from multitask_sentence.problem_types_multitask import PROBLEM_TYPES


class WordTokenizer:
    """One token a word and two special ones; `?` is unknown. Remembers what it was given."""

    unk_token_id = 9
    bos_token_id = eos_token_id = cls_token_id = sep_token_id = pad_token_id = None

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, sentences: list[str], truncation: bool, padding: bool, **_: bool) -> dict[str, list[list[int]]]:
        assert not truncation
        assert not padding
        self.seen += sentences
        return {"input_ids": [[0, 0, *(9 * (word == "?") for word in sentence.split())] for sentence in sentences]}


def loaded_tasks() -> LoadedTasks:
    train = {
        "sentences": [["a b c"], ["a"], ["a"], ["d d d d d d"]],
        "label_mood": [0, 1, 1, None],
        "label_tags": [[1.0, 0.0], [1.0, 1.0], None, None],
        "label_rating": [None, None, None, 2.5],
    }
    test = {"sentences": [["a"], ["d d d d d d"]], "label_mood": [1, 0], "label_tags": [[0.0, 0.0]] * 2}
    pairs = {"sentences": [["q", "r"], ["s", "t"]], "label_search": [1.0, 1.0]}
    more_pairs = {"sentences": [["u", "q"], ["v", "w"]], "label_search": [1.0, 1.0]}
    return LoadedTasks(
        [
            LabelledSet(
                ["mood", "tags", "rating"],
                {"train": Dataset.from_dict(train), "test": Dataset.from_dict(test | {"label_rating": [1.0, 4.0]})},
            ),
            LabelledSet(["search"], {"train": Dataset.from_dict(pairs), "test": Dataset.from_dict(more_pairs)}),
        ],
        labels={"mood": ["bad", "good"], "tags": ["x", "y"]},
        score_ranges={"rating": (2.5, 2.5)},
        kinds={
            "mood": PROBLEM_TYPES["single_label_classification"],
            "tags": PROBLEM_TYPES["multi_label_classification"],
            "rating": PROBLEM_TYPES["regression"],
            "search": PROBLEM_TYPES["contrastive"],
        },
    )


def row_of(rows: list[dict], task: str, split: str) -> dict:
    return next(row for row in rows if (row["task"], row["split"]) == (task, split))


def test_describe_counts_only_the_rows_labelled_for_the_task() -> None:
    rows = describe(loaded_tasks(), WordTokenizer(), max_length=4)
    assert row_of(rows, "mood", "train") == {
        "task": "mood",
        "split": "train",
        "rows": 3,
        "labels": {"bad": 1, "good": 2},
        "tokens_mean": pytest.approx(11 / 3),
        "tokens_p95": 5,
        "tokens_max": 5,
        "truncated_share": pytest.approx(1 / 3),
        "unknown_share": 0.0,
        "duplicates": 1,
    }
    assert row_of(rows, "tags", "train")["labels"] == {"x": 2, "y": 1}
    assert row_of(rows, "rating", "test")["labels"] == {"min": 1.0, "mean": 2.5, "max": 4.0}
    assert row_of(rows, "search", "train")["labels"] is None


def test_in_train_is_judged_within_the_task_and_by_whole_rows_in_either_order() -> None:
    loaded = loaded_tasks()
    loaded.sets[1].splits["test"] = Dataset.from_dict(
        {"sentences": [["R", "q"], ["v", "q"]], "label_search": [1.0, 1.0]}
    )
    rows = describe(loaded, WordTokenizer(), max_length=4)
    # "d d d d d d" stands in the file's train split, but not with a label for mood
    assert row_of(rows, "mood", "test")["in_train"] == 1
    assert row_of(rows, "rating", "test")["in_train"] == 1
    assert row_of(rows, "search", "test")["in_train"] == 1
    assert "in_train" not in row_of(rows, "mood", "train")


def test_each_distinct_sentence_is_tokenized_once() -> None:
    tokenizer = WordTokenizer()
    describe(loaded_tasks(), tokenizer, max_length=4)
    assert sorted(tokenizer.seen) == ["", "a", "a b c", "d d d d d d", "q", "r", "s", "t", "u", "v", "w"]


def test_truncated_share_leaves_out_a_sentence_of_exactly_the_maximum_length() -> None:
    rows = describe(loaded_tasks(), WordTokenizer(), max_length=5)
    assert row_of(rows, "mood", "train")["truncated_share"] == 0.0
    assert row_of(rows, "mood", "test")["truncated_share"] == 0.5


def test_report_shows_shares_scores_and_a_warning_for_every_overlap() -> None:
    text = format_report(describe(loaded_tasks(), WordTokenizer(), max_length=4))
    assert "bad 33 %, good 67 %" in text
    assert "x 100 %, y 50 %" in text
    assert "1 to 4, mean 2.50" in text
    assert "4 / 5 / 5" in text
    assert "1 of 2 test rows of mood stand in its training split too: scores there are flattering." in text
    assert text.count("flattering") == 3
    assert (
        format_report([row for row in describe(loaded_tasks(), WordTokenizer(), 4) if row["split"] == "train"]).count(
            "flattering"
        )
        == 0
    )


def test_report_names_the_six_most_frequent_of_many_labels() -> None:
    row = row_of(describe(loaded_tasks(), WordTokenizer(), 4), "mood", "train")
    row |= {"rows": 1000, "labels": {"l1": 0, "l2": 1, "l3": 3, "l4": 100, "l5": 120, "l6": 150, "l7": 180, "l8": 200}}
    text = " ".join(format_report([row]).split())
    for expected in ("l8 20 %, l7 18 %", "l6 15 %", "l5 12 %", "l3 <1 %", "and 2 more"):
        assert expected in text
    assert "l2" not in text


def one_task(*texts: str, test: tuple[str, ...] = ()) -> LoadedTasks:
    splits = {
        name: Dataset.from_dict({"sentences": [[text] for text in own], "label_mood": [0.5] * len(own)})
        for name, own in (("train", texts), ("test", test))
        if own
    }
    return LoadedTasks([LabelledSet(["mood"], splits)], kinds={"mood": PROBLEM_TYPES["regression"]})


def test_duplicates_and_in_train_see_neither_case_nor_white_space_nor_unicode_form() -> None:
    loaded = one_task("A  cat", "a cat\n", "Caf\u00e9", "cafe\u0301", "dog", test=("CAT", " a CAT", "dog"))
    rows = describe(loaded, WordTokenizer(), max_length=9)
    assert row_of(rows, "mood", "train")["duplicates"] == 2
    assert row_of(rows, "mood", "test")["in_train"] == 2


def test_contrastive_rows_with_other_negatives_are_no_duplicates() -> None:
    loaded = loaded_tasks()
    rows = [["q", "p", "n"], ["Q", "p", "m"], ["q", "p", "N"]]
    loaded.sets[1].splits = {"train": Dataset.from_dict({"sentences": rows, "label_search": [1.0] * 3})}
    assert row_of(describe(loaded, WordTokenizer(), 9), "search", "train")["duplicates"] == 1


def test_unknown_share_is_that_of_the_tokens_without_special_ones() -> None:
    loaded = one_task("a ? b", "? c d e", test=("? ?",))
    rows = describe(loaded, WordTokenizer(), max_length=9)
    assert row_of(rows, "mood", "train")["unknown_share"] == pytest.approx(2 / 7)
    text = format_report(rows)
    assert "29 %" in text
    (warning,) = [line for line in text.splitlines() if "cannot read" in line]
    assert "cannot read much of mood: 29 % of its train, 100 % of its test tokens are unknown" in warning
    assert "backbone: sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2" in warning
    others = [{**row, "task": f"task{number}"} for number in range(12) for row in rows]
    (warning,) = [line for line in format_report(others).splitlines() if "cannot read" in line]
    assert "task8, task9 and 2 more: 29 % of its train, 100 % of its test tokens" in warning


def test_a_few_unknown_tokens_are_shown_without_a_warning() -> None:
    text = format_report(describe(one_task("? " + "a " * 19), WordTokenizer(), 99))
    assert " 5 % " in text
    assert "cannot read" not in text


def trained_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of another family than WordPiece, trained on a few words."""
    words = ["a cat sat on the mat", "good news of the market"]
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|end|>"])
        names = {"unk_token": "<|end|>", "eos_token": "<|end|>", "bos_token": "<|end|>"}  # as GPT-2 has them
        tokenizer.train_from_iterator(words, trainer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <|end|>", special_tokens=[("<|end|>", tokenizer.token_to_id("<|end|>"))]
        )
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<unk>", "</s>"], unk_token="<unk>")
    tokenizer.train_from_iterator(words, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>" if kind == "unigram" else None)


def test_tokenizers_of_every_family_are_asked_for_what_they_do_not_know(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    readable, foreign = one_task("the cat sat", "the market"), one_task("外卖太差", "快递很好")
    for tokenizer, expected in (
        (tiny_tokenizer, 1.0),
        (trained_tokenizer("bytes"), 0.0),
        (trained_tokenizer("without unknown"), 0.0),
    ):
        assert describe(foreign, tokenizer, 64)[0]["unknown_share"] == expected
        assert describe(readable, tokenizer, 64)[0]["unknown_share"] == 0.0
    unigram = trained_tokenizer("unigram")
    assert describe(foreign, unigram, 64)[0]["unknown_share"] >= 0.5
    assert describe(readable, unigram, 64)[0]["unknown_share"] == 0.0
