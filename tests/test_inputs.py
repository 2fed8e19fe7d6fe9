"""What a person may hand over to encode, predict and the pipeline; everything else is refused, with the remedy."""

import io
import json
import logging
from collections import UserDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, DatasetDict

from multitask_sentence import MultiTaskModel
from multitask_sentence.pipeline_multitask import MultiTaskPipeline

SENTENCES = ["the cat sat", "good film", "bad news today"]
FRAME = pd.DataFrame({"text": SENTENCES, "label": [0, 1, 2]})
LISTS: dict[str, Callable[[], Any]] = {
    "list": lambda: SENTENCES,
    "array of strings": lambda: np.array(SENTENCES),
    "array of objects": lambda: np.array(SENTENCES, dtype=object),
    "series": lambda: FRAME["text"],
    "series with rows of other names": lambda: pd.Series(SENTENCES, index=["columns", "readline", "ndim"]),
    "index": lambda: pd.Index(SENTENCES),
    "datasets column": lambda: Dataset.from_pandas(FRAME)["text"],
    "stream's column": lambda: Dataset.from_pandas(FRAME).to_iterable_dataset()["text"],
    "generator": lambda: (sentence for sentence in SENTENCES),
    "keys": lambda: dict.fromkeys(SENTENCES).keys(),
    "map": lambda: map(str, SENTENCES),
}


class Lying:
    """Holds other rows than its length says."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[str]:
        return iter(SENTENCES)


NO_LISTS: dict[str, tuple[Callable[[], Any], str]] = {
    "frame of one column": (lambda: FRAME[["text"]], r"a DataFrame, .* as in .*df\['text'\]\. Its columns: 'text'\."),
    "frame": (lambda: FRAME, r"a DataFrame, .*Its columns: 'text', 'label'\."),
    "arrow table": (lambda: pa.table({"text": SENTENCES}), r"a Table, .*as in table\['text'\].*columns: 'text'\."),
    "data set": (lambda: Dataset.from_pandas(FRAME), r"a Dataset, .*Its columns: 'text', 'label'\."),
    "stream": (lambda: Dataset.from_pandas(FRAME).to_iterable_dataset(), "a IterableDataset, .*table"),
    "splits": (lambda: DatasetDict(train=Dataset.from_pandas(FRAME)), "a DatasetDict, .*table"),
    "dictionary": (lambda: {"text": SENTENCES}, r"a dict, .*mapping\['text'\].*Its keys: 'text'\."),
    "other mapping": (lambda: UserDict(a="the cat", b="sat"), r"a UserDict, .*Its keys: 'a', 'b'\."),
    "set": (lambda: set(SENTENCES), "a set, which has no order.*sorted"),
    "frozen set": (lambda: frozenset(SENTENCES), "a set, which has no order.*sorted"),
    "bytes": (lambda: b"the cat sat", "a bytes, .*Decode them"),
    "open file": (lambda: io.StringIO("the cat\nsat\n"), r"a StringIO, .*file\.read\(\)\.splitlines\(\)"),
    "array of two dimensions": (lambda: FRAME[["text"]].to_numpy(), r"a ndarray, .* 2 dimensions.*array\[:, 0\]"),
    "array of no dimension": (lambda: np.array("the cat"), r"a ndarray, .*a single value.*array\.item\(\) in a list"),
    "number": (lambda: 5, "a int, .*Give a list of strings"),
    "nothing": (lambda: None, "a NoneType, .*Give a list of strings"),
}


@pytest.fixture
def calls(tiny_model: MultiTaskModel) -> dict[str, Callable[[Any], Any]]:
    """Every way to hand over several texts."""
    return {
        "encode": tiny_model.encode,
        "predict": tiny_model.predict,
        "predict with embeddings": partial(tiny_model.predict, embeddings=True),
        "similarity": lambda rows: tiny_model.similarity(SENTENCES, rows),
        "similarity, first": lambda rows: tiny_model.similarity(rows, SENTENCES),
        "pipeline": MultiTaskPipeline(tiny_model, tiny_model.tokenizer, task="multitask"),
    }


CALLS = ["encode", "predict", "predict with embeddings", "similarity", "similarity, first", "pipeline"]


@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_texts_of_any_kind_give_the_same(tiny_model: MultiTaskModel, kind: str, calls: dict) -> None:
    rows, expected = LISTS[kind], tiny_model.encode(list(SENTENCES))
    np.testing.assert_array_equal(tiny_model.encode(rows()), expected)
    np.testing.assert_array_equal(tiny_model.predict(rows(), embeddings=True)["embedding"], expected)
    ratings = tiny_model.predict(SENTENCES)["rating"]["values"]
    np.testing.assert_array_equal(tiny_model.predict(rows())["rating"]["values"], ratings)
    np.testing.assert_array_equal(tiny_model.similarity(rows(), expected), tiny_model.similarity(expected, expected))
    assert [row["rating"]["value"] for row in calls["pipeline"](rows())] == ratings.tolist()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", NO_LISTS)
def test_what_is_no_list_of_texts_is_refused_with_the_remedy(calls: dict, kind: str, call: str) -> None:
    make, message = NO_LISTS[kind]
    if call == "pipeline" and kind in ("dictionary", "other mapping", "splits"):
        message = r"should be \{'text': str\} or \{'text': str, 'text_pair': str\}"
    with pytest.raises(TypeError, match=message):
        calls[call](make())


def test_a_real_open_file_is_refused(tiny_model: MultiTaskModel, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("the cat\nsat\n", encoding="utf-8")
    with path.open(encoding="utf-8") as file, pytest.raises(TypeError, match="an open file"):
        tiny_model.predict(file)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("length", "found"), [(5, "3"), (2, "more"), (0, "more")])
def test_length_that_is_not_that_of_the_rows_is_an_error(calls: dict, call: str, length: int, found: str) -> None:
    with pytest.raises(
        ValueError, match=f"a Lying whose length is {length}, but iterating over it gives {found} rows"
    ):
        calls[call](Lying(length))
    assert calls["encode"](Lying(3)).shape == (3, 24)


def test_list_that_grows_meanwhile_is_an_error(tiny_model: MultiTaskModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multitask_sentence.rows_multitask.SENTENCES_PER_WINDOW", 1)
    texts, forward = list(SENTENCES), tiny_model.backbone.forward
    monkeypatch.setattr(
        tiny_model.backbone, "forward", lambda *args, **kwargs: (texts.append("dog"), forward(*args, **kwargs))[1]
    )
    with pytest.raises(ValueError, match="a list whose length is 3, but iterating over it gives"):
        tiny_model.encode(texts)


@pytest.mark.parametrize(
    ("side", "message"),
    [
        ([0.5, 1.0], r"Sentence 0 is 0\.5"),
        ([None, "a cat"], "Sentence 0 is None"),
        (["a cat", None], "Sentence 1"),
        ([["a cat"]], r"Sentence 0 is \['a cat'\] \(list\)"),
    ],
)
def test_similarity_names_what_is_neither_sentence_nor_embedding(tiny_model, side: list, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        tiny_model.similarity(SENTENCES, side)


@pytest.mark.parametrize("kind", [list, np.stack, lambda rows: [torch.tensor(row) for row in rows], pd.Series, iter])
def test_similarity_takes_embeddings_of_any_kind(tiny_model: MultiTaskModel, kind: Callable) -> None:
    embeddings = tiny_model.encode(SENTENCES)
    expected = tiny_model.similarity(SENTENCES, SENTENCES)
    np.testing.assert_array_equal(tiny_model.similarity(SENTENCES, kind(list(embeddings))), expected)


# ---- tasks ----


def test_predict_says_where_no_task_reads_the_kind(tiny_backbone: str) -> None:
    mood = {"problem_type": "single_label_classification", "labels": ["bad", "good"]}
    model = MultiTaskModel.from_backbone(tiny_backbone, {"mood": mood, "topic": mood})
    for pairs in (("a cat", "a dog"), [("a cat", "a dog")]):
        with pytest.raises(
            ValueError, match=r"No task reads pairs\. The tasks mood, topic read single sentences\. Give"
        ):
            model.predict(pairs)
    assert model.predict([("a cat", "a dog")], embeddings=True)["embedding"].shape == (1, 2, 32)
    model = MultiTaskModel.from_backbone(tiny_backbone, {"similar": {"problem_type": "similarity"}})
    with pytest.raises(
        ValueError, match=r"No task reads single sentences\. The tasks similar read pairs \(str, str\)"
    ):
        model.predict(SENTENCES)
    assert model.predict(SENTENCES, tasks=[]) == {}


@pytest.mark.parametrize("head", [5, b"mood", ["mood", None], [["mood"]], True])
def test_heads_that_are_no_names_are_refused(tiny_model: MultiTaskModel, head: Any) -> None:
    message = r"head is .*, but should be a task's name or a list of them. Known tasks: mood"
    with pytest.raises(TypeError, match=message):
        tiny_model.predict("good", head=head)
    with pytest.raises(TypeError, match=message):
        tiny_model(input_ids=torch.tensor([[2, 5, 3]]), head=head)


@pytest.mark.parametrize("batch_size", ["8", 2.5, True])
def test_batch_size_that_is_no_whole_number_is_refused(tiny_model: MultiTaskModel, batch_size: Any) -> None:
    with pytest.raises(TypeError, match=r"batch_size is .*, but should be a whole number"):
        tiny_model.encode(SENTENCES, batch_size=batch_size)
    assert tiny_model.encode(SENTENCES, batch_size=np.int64(2)).shape == (3, 24)


# ---- half characters ----


def test_half_a_character_is_read_as_the_replacement_character_and_counted(tiny_model, caplog, monkeypatch) -> None:
    monkeypatch.setattr("multitask_sentence.rows_multitask.SENTENCES_PER_WINDOW", 2)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    cut, mended = ["good", "cat \ud83d", "dog", "\udc00 news"], ["good", "cat \ufffd", "dog", "\ufffd news"]
    np.testing.assert_array_equal(tiny_model.encode(cut), tiny_model.encode(mended))
    places = [record.getMessage() for record in caplog.records]
    assert ["Row 1 is 'cat \\ud83d'" in places[0], "Row 3 is '\\udc00 news'" in places[1]] == [True, True]
    assert all("read as U+FFFD, in 1 sentences" in place for place in places)
    assert tiny_model.predict(cut)["mood"]["labels"] == tiny_model.predict(mended)["mood"]["labels"]
    np.testing.assert_array_equal(tiny_model.encode("cat \ud83d"), tiny_model.encode("cat \ufffd"))
    caplog.clear()
    found = tiny_model.predict([("good", "dog"), ("good", "cat \ud83d")], tasks="distance")["distance"]["values"]
    expected = tiny_model.predict([("good", "cat \ufffd")], tasks="distance")["distance"]["values"][0]
    assert found[1] == pytest.approx(expected, abs=1e-5)
    assert "Row 1 is 'cat" in caplog.text


def test_two_halves_that_belong_together_are_one_character(tiny_model: MultiTaskModel) -> None:
    np.testing.assert_array_equal(tiny_model.encode(["a \ud83d\ude00"]), tiny_model.encode(["a \U0001f600"]))


# ---- answers that json takes ----


def test_answers_as_a_list_pass_json_and_are_those_of_predict(tiny_model: MultiTaskModel) -> None:
    arrays, rows = tiny_model.predict(SENTENCES), tiny_model.predict(SENTENCES, as_list=True)
    assert json.loads(json.dumps(rows)) == rows
    assert [row["mood"]["label"] for row in rows] == arrays["mood"]["labels"]
    assert [row["tags"]["labels"] for row in rows] == arrays["tags"]["labels"]
    assert [row["rating"]["value"] for row in rows] == arrays["rating"]["values"].tolist()
    labels = ["negative", "neutral", "positive"]
    expected = arrays["mood"]["probabilities"][1].tolist()
    assert rows[1]["mood"]["scores"] == dict(zip(labels, expected, strict=True))
    assert rows[1]["mood"]["score"] == max(expected)
    single = tiny_model.predict(SENTENCES[1], as_list=True)
    assert single["mood"]["label"] == rows[1]["mood"]["label"]
    assert json.loads(json.dumps(single)) == single
    pairs = [("the cat", "a dog"), ("good", "bad")]
    scores = tiny_model.predict(pairs)["similarity"]["scores"].tolist()
    assert [row["similarity"]["score"] for row in tiny_model.predict(pairs, as_list=True)] == scores
    assert tiny_model.predict([], as_list=True) == []
    assert tiny_model.predict(SENTENCES, tasks=[], as_list=True) == [{}, {}, {}]


def test_rows_of_the_pipeline_pass_json(tiny_model: MultiTaskModel, calls: dict) -> None:
    rows = calls["pipeline"](SENTENCES)
    assert json.loads(json.dumps(rows)) == rows
    assert rows[0]["embedding"] == tiny_model.encode(SENTENCES)[0].tolist()
    assert {name: answer for name, answer in rows[0].items() if name != "embedding"} == tiny_model.predict(
        SENTENCES, as_list=True
    )[0]
