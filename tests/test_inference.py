"""encode, predict and similarity: order, company, modes, odd input; the same through sentence-transformers."""

import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from transformers.modeling_outputs import BaseModelOutput

from multitask_sentence import MultiTaskModel, encoding_multitask, rows_multitask
from multitask_sentence.labelling.answers import answer_table
from multitask_sentence.rows_multitask import length_sorted_batches
from multitask_sentence.turns_multitask import evaluating

SENTENCES = [
    "The cat sat on the mat.",
    "good film!",
    "it is bad news today, but the story was fine",
    "",
    "a dog ran in the park and a bird sang under the bank",
    "good film!",
    "price",
    "market news " * 30,
]
PAIRS = [("the cat sat", "a cat sat"), ("good film!", "bad news"), ("good film!", "good film!")]
SINGLE_TASKS, PAIR_TASKS = ["mood", "tags", "rating"], ["entails", "distance", "similarity", "search"]


def assert_close(found: Any, expected: Any, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def count_backbone_passes(model: MultiTaskModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """A list that grows by the shape of `input_ids` with every pass of the backbone."""
    shapes, forward = [], model.backbone.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.backbone, "forward", counted)
    return shapes


# ---- batches ----


def test_batches_hold_every_index_once_longest_first_within_the_budget() -> None:
    generator = random.Random(0)
    lengths = [generator.randint(1, 60) for _ in range(200)]
    batches = list(length_sorted_batches(lengths, tokens_per_batch=128))
    assert sorted(index for batch in batches for index in batch) == list(range(200))
    assert all(max(lengths[index] for index in batch) * len(batch) <= 128 for batch in batches)
    flat = [lengths[index] for batch in batches for index in batch]
    assert flat == sorted(lengths, reverse=True)
    full = [len(batch) + 1 for batch in batches[:-1]]
    assert all(size * lengths[batch[0]] > 128 for size, batch in zip(full, batches, strict=False)), (
        "no batch ends while another sentence fits"
    )


def test_batches_by_worked_example() -> None:
    assert list(length_sorted_batches([2, 9, 3, 3, 20], tokens_per_batch=10)) == [[4], [1], [2, 3, 0]]
    assert list(length_sorted_batches([2, 9, 3, 3, 20], batch_size=2, tokens_per_batch=40)) == [[4, 1], [2, 3], [0]]
    assert list(length_sorted_batches([])) == []


def test_batch_ends_where_padding_would_cost_more_than_a_pass() -> None:
    lengths = [20, 19, 18, 12, 11, 11, 3]
    assert list(length_sorted_batches(lengths, most_padding=10)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(length_sorted_batches(lengths, most_padding=11)) == [[0, 1, 2, 3], [4, 5, 6]]
    assert list(length_sorted_batches(lengths, most_padding=0)) == [[0], [1], [2], [3], [4, 5], [6]]


# ---- encode ----


def test_embedding_is_the_same_alone_in_any_batch_and_in_any_order(tiny_model: MultiTaskModel) -> None:
    expected = tiny_model.encode(SENTENCES)
    assert expected.shape == (8, 24)
    assert expected.dtype == np.float32
    assert np.abs(expected[0] - expected[1]).max() > 0.1, "embeddings that are all alike would prove nothing"
    assert_close(np.stack([tiny_model.encode(sentence) for sentence in SENTENCES]), expected)
    for batch_size in (1, 2, 3, 100):
        assert_close(tiny_model.encode(SENTENCES, batch_size=batch_size), expected)
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    assert_close(tiny_model.encode([SENTENCES[index] for index in order]), expected[order])
    assert_close(tiny_model.encode(SENTENCES * 3), np.tile(expected, (3, 1)))


@pytest.mark.pretrained
def test_minilm_embedding_does_not_depend_on_company(minilm: MultiTaskModel) -> None:
    sentences = ["A cat sleeps.", "Markets fell sharply after the announcement " * 3, "Yes", "مرحبا 😀"]
    expected = np.stack([minilm.encode(sentence) for sentence in sentences])
    assert_close(minilm.encode(sentences), expected)
    assert_close(minilm.encode(sentences[::-1], batch_size=3)[::-1], expected)


def test_windows_are_put_together_in_order(tiny_model: MultiTaskModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, answers = tiny_model.encode(SENTENCES), tiny_model.predict(SENTENCES)
    monkeypatch.setattr(rows_multitask, "SENTENCES_PER_WINDOW", 3)
    assert_close(tiny_model.encode(SENTENCES), expected)
    found = tiny_model.predict(SENTENCES)
    assert_close(found["rating"]["values"], answers["rating"]["values"])
    assert found["tags"]["labels"] == answers["tags"]["labels"]


def test_streams_give_what_lists_give(tiny_model: MultiTaskModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, answers, pairs = (
        tiny_model.encode(SENTENCES),
        tiny_model.predict(SENTENCES),
        tiny_model.predict(PAIRS),
    )
    monkeypatch.setattr(rows_multitask, "SENTENCES_PER_WINDOW", 3)
    column = Dataset.from_dict({"text": SENTENCES})["text"]
    assert not isinstance(column, list), "or it is no stream that is tried"
    for stream in (lambda: column, lambda: iter(SENTENCES)):
        assert_close(tiny_model.encode(stream()), expected)
        found = tiny_model.predict(stream())
        assert list(found) == list(answers)
        assert found["tags"]["labels"] == answers["tags"]["labels"]
        assert_close(found["mood"]["probabilities"], answers["mood"]["probabilities"])
    assert_close(tiny_model.predict(iter(PAIRS))["distance"]["values"], pairs["distance"]["values"])
    embeddings = tiny_model.predict(iter(PAIRS), embeddings=True)["embedding"]
    assert_close(embeddings, tiny_model.encode([side for pair in PAIRS for side in pair]).reshape(3, 2, 24))
    assert tiny_model.encode(iter([])).shape == (0, 24)


@pytest.mark.parametrize("call", ["encode", "predict"])
def test_a_stream_is_read_one_window_ahead_and_no_further(tiny_model: MultiTaskModel, monkeypatch, call: str) -> None:
    monkeypatch.setattr(rows_multitask, "SENTENCES_PER_WINDOW", 4)
    read, read_at_pass, forward = [], [], tiny_model.backbone.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        read_at_pass.append(len(read))
        return forward(*args, **kwargs)

    monkeypatch.setattr(tiny_model.backbone, "forward", counted)
    getattr(tiny_model, call)(sentence for sentence in SENTENCES * 3 if not read.append(sentence))
    assert read_at_pass == [8, 12, 16, 20, 24, 24]


def test_a_stream_names_the_place_of_what_is_no_string(tiny_model: MultiTaskModel, monkeypatch) -> None:
    monkeypatch.setattr(rows_multitask, "SENTENCES_PER_WINDOW", 2)
    with pytest.raises(TypeError, match=r"Sentence 3 is 7 \(int\)"):
        tiny_model.encode(iter(["good", "bad", "cat", 7]))
    with pytest.raises(TypeError, match=r"Row 2 is 'cat', but should be a pair"):
        tiny_model.predict(iter([*PAIRS[:2], "cat"]))
    with pytest.raises(TypeError, match=r"Sentence 0 is \{'text': 'good'\} \(dict\)"):
        tiny_model.encode(iter(Dataset.from_dict({"text": ["good"]})))


def test_nothing_is_computed_where_a_list_holds_what_is_no_string(tiny_model: MultiTaskModel, monkeypatch) -> None:
    monkeypatch.setattr(rows_multitask, "SENTENCES_PER_WINDOW", 1)
    shapes = count_backbone_passes(tiny_model, monkeypatch)
    for call in (tiny_model.encode, tiny_model.predict):
        with pytest.raises(TypeError, match="Sentence 2 is None"):
            call(["good", "bad", None])
    assert not shapes


def test_encode_equals_forward(tiny_model: MultiTaskModel) -> None:
    for normalize in (False, True):
        tiny_model.config.normalize = normalize
        inputs = tiny_model.tokenizer(SENTENCES, padding=True, truncation=True, return_tensors="pt")
        expected = tiny_model(**inputs).sentence_embedding.detach()
        assert_close(tiny_model.encode(SENTENCES), expected)


def test_token_budget_and_batch_size_cut_the_passes(tiny_model: MultiTaskModel, monkeypatch) -> None:
    shapes = count_backbone_passes(tiny_model, monkeypatch)
    tiny_model.encode(SENTENCES)
    tokens = sum(len(ids) for ids in tiny_model.tokenizer(SENTENCES, truncation=True)["input_ids"])
    assert shapes == [(1, tokens)], "one row of real tokens"
    shapes.clear()
    tiny_model.encode(SENTENCES, batch_size=3)
    assert len(shapes) == 3
    shapes.clear()
    tiny_model.padding_free = False
    tiny_model.encode(["price " * 3] * 500)
    assert shapes == [(409, 5), (91, 5)], "at most 2,048 tokens a pass"


def test_one_string_gives_one_vector(tiny_model: MultiTaskModel) -> None:
    assert tiny_model.encode("good film!").shape == (24,)
    assert tiny_model.encode(["good film!"]).shape == (1, 24)
    assert tiny_model.encode(("good film!", "price")).shape == (2, 24)
    assert tiny_model.encode(np.array(["good film!", "price"])).shape == (2, 24)


def test_no_sentences_give_an_empty_array(tiny_model: MultiTaskModel) -> None:
    embeddings = tiny_model.encode([])
    assert embeddings.shape == (0, 24)
    assert embeddings.dtype == np.float32
    assert tiny_model.encode([], convert_to="tensor", normalize=True).shape == (0, 24)


def test_normalize_overrides_the_config(tiny_model: MultiTaskModel) -> None:
    plain = tiny_model.encode(SENTENCES)
    assert (np.abs(np.linalg.norm(plain, axis=1) - 1) > 0.1).all()
    unit = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    assert_close(tiny_model.encode(SENTENCES, normalize=True), unit)
    assert_close(tiny_model.encode(SENTENCES[0], normalize=True), unit[0])
    tiny_model.config.normalize = True
    assert_close(tiny_model.encode(SENTENCES), unit)
    assert_close(tiny_model.encode(SENTENCES, normalize=False), plain)


def test_convert_to_chooses_the_kind(tiny_model: MultiTaskModel) -> None:
    tensor = tiny_model.encode(SENTENCES, convert_to="tensor")
    assert isinstance(tensor, torch.Tensor)
    assert not tensor.requires_grad
    assert_close(tensor, tiny_model.encode(SENTENCES, convert_to="numpy"), atol=0)
    for call in (tiny_model.encode, tiny_model.predict, partial(tiny_model.similarity, SENTENCES)):
        with pytest.raises(ValueError, match=r"convert_to is 'list', but should be one of numpy, tensor"):
            call(SENTENCES, convert_to="list")
    with pytest.raises(ValueError, match=r"convert_to is 'pandas', but should be one of numpy, tensor\."):
        tiny_model.encode(SENTENCES, convert_to="pandas")


def test_tensors_are_on_the_models_device_and_of_its_dtype(tiny_model: MultiTaskModel) -> None:
    model = tiny_model.to(torch.bfloat16)
    arrays = model.predict(SENTENCES, embeddings=True)
    tensors = model.predict(SENTENCES, embeddings=True, convert_to="tensor")
    found = {
        "encode": (model.encode(SENTENCES, convert_to="tensor"), model.encode(SENTENCES)),
        "one": (model.encode(SENTENCES[0], convert_to="tensor"), model.encode(SENTENCES[0])),
        "similarity": (
            model.similarity(SENTENCES, SENTENCES, convert_to="tensor"),
            model.similarity(*[SENTENCES] * 2),
        ),
        "embedding": (tensors["embedding"], arrays["embedding"]),
        "probabilities": (tensors["mood"]["probabilities"], arrays["mood"]["probabilities"]),
        "scores": [model.predict(PAIRS, convert_to=kind)["similarity"]["scores"] for kind in ("tensor", "numpy")],
    }
    for name, (tensor, array) in found.items():
        assert (tensor.dtype, tensor.device, tensor.requires_grad) == (torch.bfloat16, model.device, False), name
        assert array.dtype == np.float32, name
        torch.testing.assert_close(tensor, torch.from_numpy(array).bfloat16(), rtol=0, atol=0)
    assert tensors["mood"]["labels"] == arrays["mood"]["labels"]
    single = model.predict(SENTENCES[0], convert_to="tensor", embeddings=True)
    assert (single["embedding"].shape, single["mood"]["probabilities"].shape) == ((24,), (3,))


def test_regression_values_as_tensors_keep_what_half_precision_has_no_room_for(tiny_model: MultiTaskModel) -> None:
    tiny_model.config.change_task("rating", target_mean=2003.0, target_deviation=7.0)
    model = tiny_model.to(torch.bfloat16)
    values = model.predict(SENTENCES, head="rating", convert_to="tensor")["rating"]["values"]
    assert values.dtype == torch.float32
    np.testing.assert_array_equal(values.numpy(), model.predict(SENTENCES)["rating"]["values"])
    assert not torch.equal(values, values.bfloat16().float()), "or nothing would be lost"


def test_frame_holds_every_answer_under_the_names_that_label_writes(tiny_model: MultiTaskModel) -> None:
    mood = tiny_model.predict(SENTENCES, head="mood")["mood"]
    sure = float(np.median(mood["probabilities"].max(axis=1)))
    tiny_model.config.change_task("mood", abstain={"confidence": sure})
    texts = pd.Series(SENTENCES, index=range(70, 70 + len(SENTENCES)))
    answers = tiny_model.predict(SENTENCES, embeddings=True)
    frame = tiny_model.predict(texts, embeddings=True, convert_to="pandas")
    assert frame.index.equals(texts.index), "rows of a filtered table stay with their answers"
    written = answer_table(tiny_model, SENTENCES, SINGLE_TASKS, embeddings=True, pairs=False)
    assert sorted(frame) == sorted(written.column_names)
    assert list(frame["mood_label"]) == answers["mood"]["labels"] and 0 < frame["mood_label"].isna().sum() < 8
    np.testing.assert_array_equal(frame["mood_probability"], mood["probabilities"].max(axis=1))
    assert list(frame["tags_labels"]) == answers["tags"]["labels"] and any(frame["tags_labels"])
    places = {label: place for place, label in enumerate(tiny_model.config.tasks["tags"].labels)}
    given = zip(answers["tags"]["labels"], answers["tags"]["probabilities"], strict=True)
    assert list(frame["tags_probabilities"]) == [[row[places[label]] for label in own] for own, row in given]
    np.testing.assert_array_equal(frame["rating_value"], answers["rating"]["values"])
    np.testing.assert_array_equal(np.stack(frame["embedding"]), answers["embedding"])
    unsure = tiny_model.predict(SENTENCES, head="tags", convert_to="pandas", abstain={"confidence": 1.0})
    assert set(unsure["tags_labels"]) == set(unsure["tags_probabilities"]) == {None}


def test_frame_of_pairs_of_one_text_and_of_nothing(tiny_model: MultiTaskModel) -> None:
    answers = tiny_model.predict(PAIRS, embeddings=True)
    frame = tiny_model.predict(PAIRS, embeddings=True, convert_to="pandas")
    columns = ["entails_label", "entails_probability", "distance_value", "similarity_score", "search_score"]
    assert list(frame) == ["embedding1", "embedding2", *columns]
    np.testing.assert_array_equal(frame["similarity_score"], answers["similarity"]["scores"])
    np.testing.assert_array_equal(np.stack(frame["embedding2"]), answers["embedding"][:, 1])
    one = tiny_model.predict(SENTENCES[0], convert_to="pandas")
    assert len(one) == 1 and one["mood_label"][0] == tiny_model.predict(SENTENCES[0])["mood"]["labels"]
    assert list(tiny_model.predict(PAIRS[0], convert_to="pandas")) == columns
    nothing = tiny_model.predict([], convert_to="pandas")
    assert nothing.shape == (0, 5) and list(nothing) == list(one)


def test_tensors_follow_the_model_to_another_device(
    tiny_model: MultiTaskModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings = torch.zeros(2, 24)
    monkeypatch.setattr(type(tiny_model), "_input_device", torch.device("meta"))  # one that every machine has
    assert tiny_model._converted(embeddings, "tensor").device.type == "meta"


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_below_one_is_an_error(tiny_model: MultiTaskModel, batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}, but should be at least 1"):
        tiny_model.encode(SENTENCES, batch_size=batch_size)


def test_long_text_is_truncated(tiny_model: MultiTaskModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiny_model.config.max_length == 20
    shapes = count_backbone_passes(tiny_model, monkeypatch)
    long = tiny_model.encode("cat " * 5000)
    assert shapes == [(1, 20)]
    assert_close(long, tiny_model.encode("cat " * 18), atol=0)
    assert np.abs(long - tiny_model.encode("cat " * 17)).max() > 1e-6


@pytest.mark.parametrize(
    "sentence",
    [
        "",
        " ",
        "😀👩‍👩‍👧‍👦🇩🇪",
        "שלום עולם",
        "مرحبا بالعالم",
        "\x00\x07\x1b[31m",
        "\ufeff\u200b\u202e",
        "\ud7ff\U0010ffff",
        "\n\t",
    ],
)
def test_odd_characters_survive(tiny_model: MultiTaskModel, sentence: str) -> None:
    alone = tiny_model.encode(sentence)
    assert np.isfinite(alone).all()
    assert_close(tiny_model.encode(["good", sentence, "the cat sat"])[1], alone)
    assert set(tiny_model.predict(sentence)) == set(SINGLE_TASKS)


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        (["good", None], r"Sentence 1 is None \(NoneType\)"),
        (["good", "fine", 3.5], r"Sentence 2 is 3\.5 \(float\)"),
        ([["good"]], r"Sentence 0 is \['good'\] \(list\)"),
        ([b"good"], r"Sentence 0 is b'good' \(bytes\)"),
    ],
)
def test_what_is_no_string_is_named_with_its_place(tiny_model: MultiTaskModel, sentences: list, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        tiny_model.encode(sentences)


@pytest.mark.parametrize(("show", "count", "expected"), [(True, 2, True), (False, 9, False), (None, 3, False)])
def test_progress_shows_where_asked(tiny_model: MultiTaskModel, capsys, show: Any, count: int, expected: bool) -> None:
    tiny_model.encode(["good"] * count, show_progress=show)
    assert ("Encoding" in capsys.readouterr().err) is expected


def test_progress_shows_by_itself_for_long_input(tiny_model: MultiTaskModel, capsys, monkeypatch) -> None:
    monkeypatch.setattr(encoding_multitask, "SENTENCES_FOR_PROGRESS", 3)
    tiny_model.encode(["good"] * 3)
    assert "3/3" in capsys.readouterr().err


# ---- modes ----


def test_modes_are_restored_and_dropout_is_off_meanwhile(tiny_model: MultiTaskModel) -> None:
    expected = tiny_model.encode(SENTENCES)
    answers = tiny_model.predict(SENTENCES)
    tiny_model.train()
    tiny_model.backbone.encoder.layer[0].eval()
    tiny_model.heads["mood"].eval()
    modes = {name: module.training for name, module in tiny_model.named_modules()}
    assert set(modes.values()) == {True, False}  # the premise: there is something of both kinds to restore
    assert_close(tiny_model.encode(SENTENCES), expected, atol=0)
    assert_close(tiny_model.predict(SENTENCES)["tags"]["probabilities"], answers["tags"]["probabilities"], atol=0)
    assert {name: module.training for name, module in tiny_model.named_modules()} == modes
    tiny_model.eval().encode(SENTENCES)
    assert not any(module.training for module in tiny_model.modules())


def test_modes_are_restored_after_an_error(tiny_model: MultiTaskModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of memory")

    tiny_model.train()
    monkeypatch.setattr(tiny_model.backbone, "forward", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        tiny_model.encode("good")
    assert all(module.training for module in tiny_model.modules())


def test_evaluating_restores_frozen_parts_as_they_were(tiny_model: MultiTaskModel) -> None:
    tiny_model.backbone.requires_grad_(False)
    tiny_model.train()
    with evaluating(tiny_model):
        assert not any(module.training for module in tiny_model.modules())
    assert not tiny_model.backbone.training
    assert tiny_model.training


# ---- predict ----


def test_predict_answers_every_task_of_the_kind(tiny_model: MultiTaskModel) -> None:
    answers = tiny_model.predict(SENTENCES)
    assert list(answers) == SINGLE_TASKS
    assert answers["mood"]["probabilities"].shape == (8, 3)
    assert_close(answers["mood"]["probabilities"].sum(axis=1), np.ones(8))
    labels = np.array(tiny_model.config.tasks["mood"].labels)
    assert answers["mood"]["labels"] == list(labels[answers["mood"]["probabilities"].argmax(axis=1)])
    assert answers["rating"]["values"].shape == (8,)
    assert list(tiny_model.predict(PAIRS)) == PAIR_TASKS


def test_predict_equals_forward(tiny_model: MultiTaskModel) -> None:
    tiny_model.config.normalize = True
    inputs = tiny_model.tokenizer(SENTENCES, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = tiny_model(**inputs).logits
    answers = tiny_model.predict(SENTENCES)
    assert_close(answers["mood"]["probabilities"], logits["mood"].softmax(dim=-1))
    assert_close(answers["tags"]["probabilities"], logits["tags"].sigmoid())
    assert_close(answers["rating"]["values"], logits["rating"])

    flat = [sentence for pair in PAIRS for sentence in pair]
    inputs = tiny_model.tokenizer(flat, padding=True, return_tensors="pt")
    rows = torch.arange(6).view(3, 2)
    with torch.no_grad():
        logits = tiny_model(**inputs, task_rows=dict.fromkeys(PAIR_TASKS, rows)).logits
    answers = tiny_model.predict(PAIRS)
    assert_close(answers["entails"]["probabilities"], logits["entails"].softmax(dim=-1))
    assert_close(answers["distance"]["values"], logits["distance"])
    assert_close(answers["similarity"]["scores"], logits["similarity"])
    assert_close(answers["search"]["scores"], logits["search"])
    assert answers["similarity"]["scores"][2] == pytest.approx(1, abs=1e-6), "a sentence and itself"


@pytest.mark.parametrize(("sentences", "tasks"), [(SENTENCES, SINGLE_TASKS), (PAIRS, PAIR_TASKS)])
def test_predict_of_all_tasks_is_one_pass(tiny_model: MultiTaskModel, monkeypatch, sentences: Any, tasks: Any) -> None:
    shapes = count_backbone_passes(tiny_model, monkeypatch)
    assert list(tiny_model.predict(sentences)) == tasks
    assert len(shapes) == 1


def test_single_row_gives_single_values(tiny_model: MultiTaskModel) -> None:
    answers, rows = tiny_model.predict("good film!"), tiny_model.predict(["good film!"])
    assert answers["mood"]["labels"] == rows["mood"]["labels"][0]
    assert isinstance(answers["mood"]["labels"], str)
    assert isinstance(answers["tags"]["labels"], list)
    assert answers["mood"]["probabilities"].shape == (3,)
    assert answers["rating"]["values"].shape == ()
    pair = tiny_model.predict(PAIRS[0])
    assert pair["similarity"]["scores"].shape == ()
    assert_close(pair["similarity"]["scores"], tiny_model.predict(PAIRS)["similarity"]["scores"][0])


def test_pairs_keep_their_sides(tiny_model: MultiTaskModel) -> None:
    (one, other) = PAIRS[0]
    there, back = tiny_model.predict([(one, other), (other, one)])["distance"]["values"]
    assert abs(there - back) > 1e-4, "concat(u, v, |u - v|) is not symmetric"
    assert_close(tiny_model.predict((other, one))["distance"]["values"], back)
    assert_close(tiny_model.predict([[one, other]])["distance"]["values"], [there])


def test_predict_order_duplicates_and_batch_size_do_not_matter(tiny_model: MultiTaskModel) -> None:
    expected = tiny_model.predict(SENTENCES)["rating"]["values"]
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    assert_close(tiny_model.predict([SENTENCES[index] for index in order])["rating"]["values"], expected[order])
    assert_close(tiny_model.predict(SENTENCES * 2, batch_size=2)["rating"]["values"], np.tile(expected, 2))
    assert expected[1] == expected[5], "the same sentence twice"


def test_multi_label_answers_follow_the_thresholds(tiny_model: MultiTaskModel) -> None:
    labels = tiny_model.config.tasks["tags"].labels
    probabilities = tiny_model.predict("good film!")["tags"]["probabilities"]
    thresholds = [0.0, 1.0, float(probabilities[2]) - 0.01, float(probabilities[3]) + 0.01]
    tiny_model.config.change_task("tags", thresholds=thresholds)
    assert tiny_model.predict("good film!")["tags"]["labels"] == [labels[0], labels[2]]
    assert tiny_model.predict(["good film!"] * 2)["tags"]["labels"] == [[labels[0], labels[2]]] * 2
    tiny_model.config.change_task("tags", thresholds=[1.0] * 4)
    assert tiny_model.predict("good film!")["tags"]["labels"] == []


def test_named_tasks_only(tiny_model: MultiTaskModel) -> None:
    assert list(tiny_model.predict(SENTENCES, tasks="rating")) == ["rating"]
    assert list(tiny_model.predict(SENTENCES, tasks=["rating", "mood"])) == ["rating", "mood"]
    assert list(tiny_model.predict(PAIRS[0], tasks="similarity")) == ["similarity"]


def test_predict_refuses_unknown_tasks_and_the_wrong_kind(tiny_model: MultiTaskModel) -> None:
    with pytest.raises(ValueError, match=r"There is no task 'moood'.*'mood'.*Known tasks: mood, tags"):
        tiny_model.predict("good", tasks="moood")
    with pytest.raises(ValueError, match=r"Task 'similarity' reads pairs \(str, str\), but was given single"):
        tiny_model.predict("good", tasks=["mood", "similarity"])
    with pytest.raises(ValueError, match=r"Task 'mood' reads single sentences, but was given pairs"):
        tiny_model.predict(PAIRS, tasks="mood")


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        (["good", ("a cat", "a dog")], r"Sentence 1 is \('a cat', 'a dog'\) \(tuple\)"),
        ([("a cat", "a dog"), "ok"], r"Row 1 is 'ok', but should be a pair of strings"),
        ([("a cat", "a dog"), ("a cat",)], r"Row 1 is \('a cat',\)"),
        (("a cat", "a dog", "a bird"), r"Row 0 is \('a cat', 'a dog', 'a bird'\)"),
        ([("a cat", "a dog"), ("a cat", None)], r"Row 1 is \('a cat', None\)"),
        (["good", 3], r"Sentence 1 is 3 \(int\)"),
    ],
)
def test_mixed_input_is_named_with_its_row(tiny_model: MultiTaskModel, sentences: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        tiny_model.predict(sentences)


def test_predict_of_nothing_gives_empty_answers(tiny_model: MultiTaskModel) -> None:
    answers = tiny_model.predict([])
    assert answers["mood"]["labels"] == answers["tags"]["labels"] == []
    assert answers["mood"]["probabilities"].shape == (0, 3)
    assert answers["rating"]["values"].shape == (0,)
    assert tiny_model.predict([], tasks=["entails", "similarity"])["entails"]["probabilities"].shape == (0, 2)


def test_predict_in_bfloat16_gives_float32_answers(tiny_backbone: str, tiny_model: MultiTaskModel) -> None:
    model = tiny_model.to(torch.bfloat16)
    assert model.encode(SENTENCES).dtype == np.float32
    answers = model.predict(SENTENCES)
    assert answers["mood"]["probabilities"].dtype == np.float32
    assert np.isfinite(answers["rating"]["values"]).all()


def test_model_without_tasks_predicts_nothing(tiny_backbone: str) -> None:
    assert MultiTaskModel.from_backbone(tiny_backbone).predict(SENTENCES) == {}


# ---- similarity ----


def test_similarity_is_the_cosine_of_every_two(tiny_model: MultiTaskModel) -> None:
    a, b = SENTENCES[:3], SENTENCES[3:8]
    u, v = tiny_model.encode(a), tiny_model.encode(b)
    expected = (u @ v.T) / np.linalg.norm(u, axis=1)[:, None] / np.linalg.norm(v, axis=1)
    found = tiny_model.similarity(a, b)
    assert found.shape == (3, 5)
    assert found.dtype == np.float32
    assert_close(found, expected)
    assert_close(tiny_model.similarity(u, v), expected)
    assert_close(tiny_model.similarity(a, torch.tensor(v)), expected)
    assert_close(tiny_model.similarity(a[0], b), expected[:1])
    assert_close(tiny_model.similarity(a, v[0]), expected[:, :1])
    assert tiny_model.similarity([], b).shape == (0, 5)


def test_similarity_takes_a_series_with_an_index_of_its_own(tiny_model: MultiTaskModel) -> None:
    sentences = ["the cat sat", "the market fell"]
    found = tiny_model.similarity(pd.Series(sentences, index=[7, 9]), sentences)
    np.testing.assert_array_equal(found, tiny_model.similarity(sentences, sentences))


def test_offloaded_model_encodes_and_predicts(tiny_model: MultiTaskModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "saved")
    device_map = {"backbone": "disk", "projection": "cpu", "heads": "cpu"}
    offloaded = MultiTaskModel.from_pretrained(
        tmp_path / "saved", device_map=device_map, offload_folder=tmp_path / "offloaded"
    )
    assert offloaded.device.type == "meta", "premise"
    sentences = ["the cat sat on the mat", "news"]
    np.testing.assert_allclose(offloaded.encode(sentences), tiny_model.encode(sentences), rtol=0, atol=1e-5)
    found, expected = offloaded.predict(sentences), tiny_model.predict(sentences)
    np.testing.assert_allclose(found["mood"]["probabilities"], expected["mood"]["probabilities"], rtol=0, atol=1e-5)
    input_ids = tiny_model.tokenizer(sentences[0], return_tensors="pt")["input_ids"]
    found, expected = offloaded(input_ids).sentence_embedding, tiny_model(input_ids).sentence_embedding
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    offloaded.add_task("joy", {"problem_type": "single_label_classification", "labels": ["no", "yes"]})
    assert offloaded.heads["joy"].layers[-1].weight.device.type == "cpu"
    assert offloaded.predict(sentences, "joy")["joy"]["probabilities"].shape == (2, 2)


def test_pooling_is_done_where_the_backbone_leaves_its_states(tiny_model: MultiTaskModel, monkeypatch) -> None:
    inputs = tiny_model.tokenizer(SENTENCES[:2], padding=True, return_tensors="pt")
    tiny_model.padding_free = False
    states = tiny_model(**inputs).last_hidden_state.to("meta")  # in place of a GPU
    monkeypatch.setattr(tiny_model.backbone, "forward", lambda **kwargs: BaseModelOutput(last_hidden_state=states))
    _, pooled = tiny_model._backbone_pass(inputs["attention_mask"], {"input_ids": inputs["input_ids"]})
    assert pooled.device.type == "meta"


def test_similarity_takes_the_embeddings_of_forward(tiny_model: MultiTaskModel) -> None:
    inputs = tiny_model.tokenizer(SENTENCES[:2], padding=True, return_tensors="pt")
    embedding = tiny_model(**inputs).sentence_embedding
    assert embedding.requires_grad
    assert_close(np.diag(tiny_model.similarity(embedding, embedding)), np.ones(2))


def test_similarity_refuses_embeddings_of_another_size(tiny_model: MultiTaskModel) -> None:
    with pytest.raises(ValueError, match=r"embeddings of shape \(4, 12\), .* embedding_dim, 24"):
        tiny_model.similarity(np.zeros((4, 12)), SENTENCES)


# ---- the other door: sentence-transformers ----


@pytest.mark.parametrize(
    "settings",
    [{}, {"pooling": "cls", "projection": {"out_features": 24}, "normalize": True, "max_length": 11}],
    ids=["defaults", "cls+projection+normalize"],
)
def test_sentence_transformers_opens_the_folder(tmp_path: Path, tiny_backbone: str, settings: dict[str, Any]) -> None:
    from sentence_transformers import SentenceTransformer

    torch.manual_seed(0)
    model = MultiTaskModel.from_backbone(tiny_backbone, **settings)
    model.save_pretrained(tmp_path)
    opened = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    assert opened.max_seq_length == model.config.max_length
    assert opened.get_embedding_dimension() == model.config.embedding_dim
    found = opened.encode(SENTENCES)
    assert_close(found, model.encode(SENTENCES))
    inputs = model.tokenizer(SENTENCES, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).sentence_embedding
        found_in_batch = opened(opened.preprocess(SENTENCES))["sentence_embedding"]
    torch.testing.assert_close(found_in_batch, expected, rtol=0, atol=0)
    assert_close(opened.similarity(found, found), model.similarity(found, found))


@pytest.mark.pretrained
def test_sentence_transformers_gives_minilm_embeddings(tmp_path: Path, minilm: MultiTaskModel) -> None:
    from sentence_transformers import SentenceTransformer

    minilm.save_pretrained(tmp_path)
    opened = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    assert opened.max_seq_length == 256
    sentences = ["A cat sleeps.", "Markets fell sharply. " * 100, "Yes"]
    assert_close(opened.encode(sentences), minilm.encode(sentences))


# ---- embeddings with the answers, and the word that chooses a head ----


@pytest.mark.parametrize("normalize", [False, True])
def test_predict_answers_with_the_embedding_of_the_same_pass(
    tiny_model: MultiTaskModel, monkeypatch: pytest.MonkeyPatch, normalize: bool
) -> None:
    tiny_model.config.normalize = normalize
    expected, answers = tiny_model.encode(SENTENCES), tiny_model.predict(SENTENCES)
    shapes = count_backbone_passes(tiny_model, monkeypatch)
    found = tiny_model.predict(SENTENCES, embeddings=True)
    assert len(shapes) == 1
    assert list(found) == ["embedding", *answers]
    np.testing.assert_array_equal(found["embedding"], expected)
    np.testing.assert_array_equal(found["mood"]["probabilities"], answers["mood"]["probabilities"])
    assert np.isclose(np.linalg.norm(expected, axis=1), 1, atol=1e-6).all() == normalize


def test_embedding_of_one_sentence_of_a_pair_and_of_rows(tiny_model: MultiTaskModel) -> None:
    single = tiny_model.predict(SENTENCES[0], embeddings=True)
    np.testing.assert_array_equal(single["embedding"], tiny_model.encode(SENTENCES[0]))
    pairs = tiny_model.predict(PAIRS, embeddings=True)["embedding"]
    assert_close(pairs, np.stack([tiny_model.encode(list(pair)) for pair in PAIRS]))
    assert tiny_model.predict(PAIRS[0], embeddings=True)["embedding"].shape == (2, 24)
    rows = tiny_model.predict(SENTENCES, embeddings=True, as_list=True)
    assert [row["embedding"] for row in rows] == tiny_model.encode(SENTENCES).tolist()
    assert tiny_model.predict(SENTENCES[0], embeddings=True, as_list=True)["embedding"] == single["embedding"].tolist()
    assert tiny_model.predict([], embeddings=True)["embedding"].shape == (0, 24)
    only = tiny_model.predict(SENTENCES, head=[], embeddings=True)
    assert list(only) == ["embedding"]


def test_head_is_the_word_of_predict_and_forward_and_older_spellings_still_work(tiny_model: MultiTaskModel) -> None:
    inputs = tiny_model.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    for head in ("mood", ["rating", "mood"]):
        names = [head] if isinstance(head, str) else head
        assert list(tiny_model.predict(SENTENCES, head=head)) == names
        assert list(tiny_model.predict(SENTENCES, tasks=head)) == names
        assert list(tiny_model(**inputs, head=head).logits) == names
        assert list(tiny_model(**inputs, task=head).logits) == names
    assert tiny_model(**inputs, head="embedding").logits == {}
    with pytest.raises(ValueError, match=r"head is 'mood' and tasks is 'tags', which mean the same"):
        tiny_model.predict(SENTENCES, head="mood", tasks="tags")
    with pytest.raises(ValueError, match=r"head is 'mood' and task is 'tags', which mean the same"):
        tiny_model(**inputs, head="mood", task="tags")
