"""Texts beyond max_length: cut by `forward` to what the tokenizer would have kept, so that every door agrees."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from multitask_sentence import MultiTaskModel
from multitask_sentence.tokenizer_multitask import tokens_kept_at_start, truncate_batch

TASKS: dict[str, dict[str, Any]] = {
    "mood": {"problem_type": "single_label_classification", "labels": ["negative", "neutral", "positive"]},
    "tags": {"problem_type": "multi_label_classification", "labels": ["animal", "place"]},
    "rating": {"problem_type": "regression"},
}
LONG = "the cat sat on the mat and the bird sang in the park today , it was good news ! " * 3
TEXTS = ["a dog", LONG, "", "good film " * 6, "[SEP] the \u200b film [PAD] ?"]
MAX_LENGTH = 12


@pytest.fixture(scope="module")
def model(tiny_backbone: str) -> MultiTaskModel:
    """Read only."""
    torch.manual_seed(5)
    return MultiTaskModel.from_backbone(tiny_backbone, tasks=TASKS, max_length=MAX_LENGTH)


@pytest.fixture(scope="module")
def folder(model: MultiTaskModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("truncation") / "saved"
    model.save_pretrained(folder)
    return str(folder)


def whole(model: MultiTaskModel, texts: list[str], **options: Any) -> dict[str, torch.Tensor]:
    tokens = model.tokenizer(texts, padding=True, return_tensors="pt", **options)
    return dict(tokens)


def test_premise_what_lies_beyond_max_length_would_change_the_answer(
    tiny_backbone: str, model: MultiTaskModel
) -> None:
    longer = MultiTaskModel.from_backbone(tiny_backbone, max_length=60)
    assert np.abs(longer.encode(LONG) - model.encode(LONG)).max() > 1e-2


@pytest.mark.parametrize("side", ["right", "left"], ids=["padded at the right", "padded at the left"])
@pytest.mark.parametrize("padding_free", [None, False], ids=["packed", "padded"])
def test_forward_cuts_as_the_tokenizer_does(model: MultiTaskModel, monkeypatch, padding_free, side: str) -> None:
    monkeypatch.setattr(model, "padding_free", padding_free)
    batch = whole(model, [LONG, "good film " * 6], padding_side=side)
    assert batch["input_ids"].shape[1] > MAX_LENGTH, "premise: too long"
    assert 0 in batch["attention_mask"], "premise: padding"
    cut = whole(model, [LONG, "good film " * 6], truncation=True)
    assert cut["input_ids"].shape == (2, MAX_LENGTH) and (cut["attention_mask"] == 1).all(), "premise: no padding"
    with torch.no_grad():
        found, expected = model(**batch), model(**cut)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=0)
    torch.testing.assert_close(found.sentence_embedding, expected.sentence_embedding, rtol=0, atol=0)
    for task in TASKS:
        torch.testing.assert_close(found.logits[task], expected.logits[task], rtol=0, atol=0)


def test_forward_beyond_the_positions_of_the_backbone_works(model: MultiTaskModel) -> None:
    positions = model.config.backbone_config.max_position_embeddings
    text = "the cat " * positions
    batch = whole(model, [text])
    assert batch["input_ids"].shape[1] > positions, "premise"
    with torch.no_grad():
        found = model(**batch).sentence_embedding[0]
    np.testing.assert_allclose(found, model.encode(text), rtol=0, atol=1e-6)


def test_text_of_exactly_max_length_is_not_touched(model: MultiTaskModel) -> None:
    batch = whole(model, ["the " * (MAX_LENGTH - 2)])
    assert batch["input_ids"].shape[1] == MAX_LENGTH, "premise"
    with torch.no_grad():
        assert model(**batch).last_hidden_state.shape[1] == MAX_LENGTH


def test_given_positions_and_embeddings_are_cut_too(model: MultiTaskModel) -> None:
    batch, cut = whole(model, [LONG]), whole(model, [LONG], truncation=True)
    length = batch["input_ids"].shape[1]
    with torch.no_grad():
        expected = model(**cut).sentence_embedding
        positions = torch.arange(length)[None]
        found = model(input_ids=batch["input_ids"], position_ids=positions).sentence_embedding
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        embeds = model.get_input_embeddings()(batch["input_ids"])
        found = model(inputs_embeds=embeds).sentence_embedding
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_one_head_view_and_its_pipeline_answer_as_predict(model: MultiTaskModel, folder: str) -> None:
    expected = model.predict(TEXTS, tasks="mood")["mood"]["probabilities"]
    view = AutoModelForSequenceClassification.from_pretrained(folder, task="mood", trust_remote_code=True)
    with torch.no_grad():
        found = view(**whole(model, TEXTS)).logits.softmax(dim=-1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    classify = pipeline(
        "text-classification", model=folder, trust_remote_code=True, model_kwargs={"head": "mood"}, top_k=None
    )
    for answers, row in zip(classify(TEXTS), expected, strict=True):
        scores = {answer["label"]: answer["score"] for answer in answers}
        np.testing.assert_allclose([scores[label] for label in TASKS["mood"]["labels"]], row, rtol=0, atol=1e-6)


def test_feature_extraction_pipeline_gives_the_states_of_what_is_kept(model: MultiTaskModel, folder: str) -> None:
    extract = pipeline("feature-extraction", model=folder, trust_remote_code=True)
    for text, states in zip(TEXTS, extract(TEXTS), strict=True):
        np.testing.assert_allclose(np.mean(states[0], axis=0), model.encode(text), rtol=0, atol=1e-5)


def test_readme_example_without_truncation_gives_what_encode_gives(model: MultiTaskModel, folder: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        output = model(**tokenizer(TEXTS, padding=True, return_tensors="pt"))
    np.testing.assert_allclose(output.sentence_embedding, model.encode(TEXTS), rtol=0, atol=1e-6)


def test_sentence_transformers_may_read_more_where_its_user_says_so(
    tiny_backbone: str, model: MultiTaskModel, folder: str
) -> None:
    opened = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(opened.encode(TEXTS), model.encode(TEXTS), rtol=0, atol=1e-5)
    opened.max_seq_length = 60
    longer = MultiTaskModel.from_backbone(tiny_backbone, max_length=60)
    np.testing.assert_allclose(opened.encode(TEXTS), longer.encode(TEXTS), rtol=0, atol=1e-5)


def test_tokens_kept_at_start_follow_the_tokenizer(model: MultiTaskModel, monkeypatch) -> None:
    assert tokens_kept_at_start(model.tokenizer, 12) == 11  # and [SEP]
    monkeypatch.setattr(model.tokenizer, "truncation_side", "left")
    assert tokens_kept_at_start(model.tokenizer, 12) == 1  # [CLS], and the end of the text
    assert tokens_kept_at_start(None, 12) == 12


def test_truncate_batch_keeps_start_and_end_of_long_rows_and_all_of_short_ones() -> None:
    ids = torch.tensor([[1, 2, 3, 4, 5, 6], [0, 0, 7, 8, 0, 9], [1, 2, 3, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 1], [1, 1, 1, 0, 0, 0]])
    cut, cut_mask = truncate_batch({"input_ids": ids}, mask, max_length=4, kept_at_start=3)
    assert cut["input_ids"].tolist() == [[1, 2, 3, 6], [7, 8, 9, 0], [1, 2, 3, 0]]
    assert cut_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0]]


@pytest.mark.parametrize("padding_free", [True, False])
def test_text_beyond_all_positions_says_how_to_cut_it(folder: str, padding_free: bool) -> None:
    opened = MultiTaskModel.from_pretrained(folder, max_length=200)
    opened.padding_free = padding_free
    text = "the cat " * 50
    for use in (opened.encode, lambda text: opened(**whole(opened, [text]))):
        with pytest.raises(ValueError, match=r"has 102 tokens, but .* positions for 64.*config\.max_length = 64"):
            use(text)
    opened.config.max_length = 64
    assert opened.encode(text).shape == (32,)
