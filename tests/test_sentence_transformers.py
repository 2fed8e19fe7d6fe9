"""The door of sentence-transformers: it opens, evaluates, trains and saves a model, and a model starts from what it saved."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn
from transformers import AutoModel

from multitask_sentence import MultiTaskModel

SENTENCES = ["The cat sat on the mat.", "good film", "", "the bird sang " * 30, "story , market !", "a dog"]
PAIRS = {
    "sentence1": ["the cat sat", "a good film", "the bird sang", "bad price"],
    "sentence2": ["a cat sat on the mat", "fine story", "the dog ran", "it was very good today"],
    "score": [0.9, 0.7, 0.3, 0.0],
}
PROJECTIONS = {"plain": None, "projection": {"out_features": 24}}


def open_folder(folder: Path, **options: Any) -> SentenceTransformer:
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu", **options)


def embed_batch(opened: SentenceTransformer, sentences: list[str] = SENTENCES) -> torch.Tensor:
    """One batch through every module: `(sentences, embedding_dim)`."""
    with torch.no_grad():
        return opened(opened.preprocess(sentences))["sentence_embedding"]


def forward_batch(model: MultiTaskModel, features: dict[str, Any]) -> torch.Tensor:
    """The model's own forward on the tensors that sentence-transformers made: `(sentences, embedding_dim)`."""
    tensors = {name: value for name, value in features.items() if isinstance(value, torch.Tensor)}
    with torch.no_grad():
        return model(**tensors).sentence_embedding


def train(opened: SentenceTransformer, loss: type[nn.Module], folder: Path) -> float:
    """Three steps of sentence-transformers' own Trainer; the training loss."""
    columns = PAIRS if loss is CoSENTLoss else {name: PAIRS[name] for name in ("sentence1", "sentence2")}
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        weight_decay=0.1,
        save_steps=3,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(
        model=opened, args=arguments, train_dataset=Dataset.from_dict(columns), loss=loss(opened)
    )
    return trainer.train().training_loss


@pytest.fixture
def folder(tiny_model: MultiTaskModel, tmp_path: Path) -> Path:
    """`tiny_model`, saved."""
    tiny_model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


# ---- the same numbers ----


@pytest.mark.parametrize("normalize", [False, True], ids=["as it is", "normalized"])
@pytest.mark.parametrize("projection", list(PROJECTIONS))
@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_opened_folder_gives_the_same_bits_as_forward(
    tiny_backbone: str, tmp_path: Path, pooling: str, projection: str, normalize: bool
) -> None:
    torch.manual_seed(2)
    model = MultiTaskModel.from_backbone(
        tiny_backbone, pooling=pooling, projection=PROJECTIONS[projection], normalize=normalize, max_length=20
    )
    model.save_pretrained(tmp_path)
    opened = open_folder(tmp_path)
    features = opened.preprocess(SENTENCES)
    assert 0 in features["attention_mask"], "premise: a batch with padding"
    found, encoded = embed_batch(opened), model.encode(SENTENCES)
    torch.testing.assert_close(found, forward_batch(model, features), rtol=0, atol=0)
    np.testing.assert_allclose(found, encoded, rtol=0, atol=1e-5)
    np.testing.assert_allclose(opened.encode(SENTENCES), encoded, rtol=0, atol=1e-5)
    lengths = np.linalg.norm(encoded, axis=1)
    assert np.allclose(lengths, 1, rtol=0, atol=1e-6) == normalize
    assert opened.get_embedding_dimension() == model.config.embedding_dim == found.shape[1]


def test_settings_of_the_embedding_are_told_apart(tiny_backbone: str) -> None:
    """The premise of the test above: a door that left out pooling, projection or normalisation would be seen."""
    settings = [
        {"pooling": pooling, "normalize": normalize} for pooling in ("mean", "cls", "max") for normalize in (False, True)
    ]
    embeddings = [MultiTaskModel.from_backbone(tiny_backbone, **each).encode(SENTENCES) for each in settings]
    for index, one in enumerate(embeddings):
        for other in embeddings[:index]:
            assert np.abs(one - other).max() > 1e-2


def test_long_text_is_truncated_at_max_length(tiny_model: MultiTaskModel, folder: Path) -> None:
    opened = open_folder(folder)
    assert opened.max_seq_length == tiny_model.config.max_length == 20
    long = "the bird sang " * 30
    short, shorter = (" ".join(long.split()[:words]) for words in (18, 17))
    assert opened.preprocess([long])["input_ids"].shape == (1, 20)
    embedding = opened.encode(long)
    np.testing.assert_array_equal(embedding, opened.encode(short))
    assert np.abs(embedding - opened.encode(shorter)).max() > 1e-4, "premise: the last word within counts"
    np.testing.assert_allclose(embedding, tiny_model.encode(long), rtol=0, atol=1e-5)


# ---- what people call ----


def test_encode_takes_one_sentence_or_many(tiny_model: MultiTaskModel, folder: Path) -> None:
    opened = open_folder(folder)
    many = opened.encode(SENTENCES, batch_size=2)
    assert many.shape == (len(SENTENCES), 24)
    np.testing.assert_allclose(many, tiny_model.encode(SENTENCES), rtol=0, atol=1e-5)
    for sentence, row in zip(SENTENCES, many, strict=True):
        one = opened.encode(sentence)
        assert one.shape == (24,)
        np.testing.assert_allclose(one, row, rtol=0, atol=1e-5)


def test_queries_and_documents_are_embedded_like_any_sentence(folder: Path) -> None:
    opened = open_folder(folder)
    expected = opened.encode(SENTENCES)
    np.testing.assert_array_equal(opened.encode_query(SENTENCES), expected)
    np.testing.assert_array_equal(opened.encode_document(SENTENCES), expected)


def test_similarity_is_the_cosine(tiny_model: MultiTaskModel, folder: Path) -> None:
    opened = open_folder(folder)
    embeddings = opened.encode(SENTENCES)
    assert np.abs(np.linalg.norm(embeddings, axis=1) - 1).min() > 0.1, "premise: a dot product is no cosine"
    found = opened.similarity(embeddings, embeddings[:2])
    assert found.shape == (len(SENTENCES), 2)
    np.testing.assert_allclose(found, tiny_model.similarity(SENTENCES, SENTENCES[:2]), rtol=0, atol=1e-5)


def test_truncate_dim_keeps_the_first_units(folder: Path) -> None:
    whole, opened = open_folder(folder), open_folder(folder, truncate_dim=16)
    assert whole.get_embedding_dimension() == 24
    assert opened.get_embedding_dimension() == 16
    expected = whole.encode(SENTENCES)[:, :16]
    np.testing.assert_array_equal(opened.encode(SENTENCES), expected)
    np.testing.assert_array_equal(whole.encode(SENTENCES, truncate_dim=16), expected)


def test_evaluator_finds_the_spearman_of_our_own_cosines(tiny_model: MultiTaskModel, folder: Path) -> None:
    cosines = np.diag(tiny_model.similarity(PAIRS["sentence1"], PAIRS["sentence2"]))
    for scores, expected in ((cosines, 1.0), (-cosines, -1.0)):
        gold = (scores - scores.min()) / np.ptp(scores)
        evaluator = EmbeddingSimilarityEvaluator(PAIRS["sentence1"], PAIRS["sentence2"], gold.tolist())
        found = evaluator(open_folder(folder))
        assert evaluator.primary_metric == "spearman_cosine"
        assert found["spearman_cosine"] == pytest.approx(expected)


# ---- further training ----


@pytest.mark.parametrize("loss", [CoSENTLoss, MultipleNegativesRankingLoss])
def test_training_there_changes_the_encoder_and_leaves_the_heads(
    tiny_model: MultiTaskModel, folder: Path, tmp_path: Path, loss: type[nn.Module]
) -> None:
    opened = open_folder(folder)
    before = {name: value.clone() for name, value in opened.transformers_model.state_dict().items()}
    assert math.isfinite(train(opened, loss, tmp_path / "run"))
    after = opened.transformers_model.state_dict()
    assert set(after) == set(before) == set(tiny_model.state_dict())
    unchanged = {name for name, value in after.items() if torch.equal(value, before[name])}
    assert unchanged == {name for name in before if name.startswith("heads.")}


def test_folder_saved_there_after_training_opens_through_both_doors(
    tiny_model: MultiTaskModel, folder: Path, tmp_path: Path
) -> None:
    opened = open_folder(folder)
    train(opened, CoSENTLoss, tmp_path / "run")
    opened.save_pretrained(str(tmp_path / "again"))
    expected, vectors = embed_batch(opened), opened.encode(SENTENCES)
    assert np.abs(vectors - tiny_model.encode(SENTENCES)).max() > 1e-3, "premise: training moved the embeddings"

    for place in (tmp_path / "again", tmp_path / "run" / "checkpoint-3"):
        again = open_folder(place)
        torch.testing.assert_close(embed_batch(again), expected, rtol=0, atol=0)
        assert again.max_seq_length == 20
        model = AutoModel.from_pretrained(place, trust_remote_code=True)
        assert type(model).__name__ == "MultiTaskModel"
        assert model.config.tasks == tiny_model.config.tasks
        torch.testing.assert_close(forward_batch(model, again.preprocess(SENTENCES)), expected, rtol=0, atol=0)
        np.testing.assert_allclose(model.encode(SENTENCES), vectors, rtol=0, atol=1e-5)
        for name, value in tiny_model.heads.state_dict().items():
            torch.testing.assert_close(model.heads.state_dict()[name], value, rtol=0, atol=0)
        assert set(model.predict("a good film")) == {"mood", "tags", "rating"}
        embedding = torch.from_numpy(model.encode(["a good film"]))
        moods = tiny_model.heads["mood"](embedding).softmax(dim=-1)[0].detach()
        found = model.predict("a good film", "mood")["mood"]["probabilities"]
        np.testing.assert_allclose(found, moods, rtol=0, atol=1e-6)


def test_folder_saved_there_holds_everything_that_ours_does(folder: Path, tmp_path: Path) -> None:
    open_folder(folder).save_pretrained(str(tmp_path / "again"))
    files = {path.name for path in folder.iterdir()}
    assert files <= {path.name for path in (tmp_path / "again").iterdir()}
    for name in sorted(files):
        if name.endswith((".py", ".safetensors")) or name in ("modules.json", "tokenizer.json"):
            assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name
    ours, theirs = (json.loads((place / "config.json").read_text()) for place in (folder, tmp_path / "again"))
    for key in ("architectures", "auto_map", "custom_pipelines", "tasks", "pooling", "projection", "normalize"):
        assert theirs[key] == ours[key]


def test_settings_chosen_there_are_kept_by_its_save(folder: Path, tmp_path: Path) -> None:
    opened = open_folder(folder, prompts={"query": "the cat "}, similarity_fn_name="dot", truncate_dim=16)
    opened.save_pretrained(str(tmp_path / "again"))
    again = open_folder(tmp_path / "again")
    assert again.prompts["query"] == "the cat "
    assert again.similarity_fn_name == "dot"
    np.testing.assert_array_equal(again.encode_query(SENTENCES), opened.encode_query(SENTENCES)[:, :24])


def test_maximum_length_chosen_there_is_kept_by_its_save(folder: Path, tmp_path: Path) -> None:
    opened = open_folder(folder)
    opened.max_seq_length = 9
    opened.save_pretrained(str(tmp_path / "again"))
    again, model = open_folder(tmp_path / "again"), AutoModel.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert again.max_seq_length == 9
    np.testing.assert_allclose(model.encode(SENTENCES), opened.encode(SENTENCES), rtol=0, atol=1e-5)


# ---- and back: a model starts from what sentence-transformers saved ----


@pytest.mark.parametrize("normalize", [False, True], ids=["as it is", "normalized"])
@pytest.mark.parametrize("dense", [False, True], ids=["plain", "dense"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_model_started_from_its_folder_keeps_the_embedding_and_gives_it_back(
    tiny_backbone: str, tmp_path: Path, pooling: str, dense: bool, normalize: bool
) -> None:
    torch.manual_seed(3)
    modules = [Transformer(tiny_backbone, max_seq_length=20), Pooling(32, pooling)]
    modules += [Dense(32, 24, activation_function=nn.Tanh())] if dense else []
    modules += [Normalize()] if normalize else []
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "theirs"))
    theirs = SentenceTransformer(str(tmp_path / "theirs"), device="cpu")
    expected, features = embed_batch(theirs), theirs.preprocess(SENTENCES)

    model = MultiTaskModel.from_backbone(str(tmp_path / "theirs"))
    model.save_pretrained(tmp_path / "ours")
    print("MAXDIFF", pooling, dense, normalize, (forward_batch(model, features)-expected).abs().max().item(), model.padding_free)
    torch.testing.assert_close(forward_batch(model, features), expected, rtol=0, atol=0)
    torch.testing.assert_close(embed_batch(open_folder(tmp_path / "ours")), expected, rtol=0, atol=0)
