"""The door of sentence-transformers: it opens, evaluates, trains and saves a model; ours starts from its folders."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import (
    AdaptiveLayerLoss,
    CoSENTLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch import nn
from transformers import AutoModel

from multitask_sentence import MultiTaskModel

SENTENCES = ["The cat sat on the mat.", "good film", "", "the bird sang " * 30, "story , market !", "a dog"]
PAIRS = {
    "sentence1": ["the cat sat", "a good film", "the bird sang", "bad price"],
    "sentence2": ["a cat sat on the mat", "fine story", "the dog ran", "it was very good today"],
    "score": [0.9, 0.7, 0.3, 0.0],
}
TASKS = {
    "mood": {"problem_type": "single_label_classification", "labels": ["negative", "neutral", "positive"]},
    "rating": {"problem_type": "regression", "head": {"hidden_dims": [7, 5]}},
    "entails": {"problem_type": "single_label_classification", "labels": ["no", "yes"], "pair": True},
    "similarity": {"problem_type": "similarity"},
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


@pytest.fixture(scope="module")
def model(tiny_backbone: str) -> MultiTaskModel:
    """A model with every task of `TASKS` and a projection to 24. Read only."""
    torch.manual_seed(1)
    return MultiTaskModel.from_backbone(tiny_backbone, tasks=TASKS, projection={"out_features": 24}, max_length=20)


@pytest.fixture(scope="module")
def folder(model: MultiTaskModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, saved, with the card of a run. Read only."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nThe card of the run.\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def opened(folder: Path) -> SentenceTransformer:
    """`folder`, opened. Read only."""
    return open_folder(folder)


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SentenceTransformer, float, Path]:
    """`folder`, trained with CoSENT; its loss; and where its Trainer (`run`) and it (`again`) saved. Read only."""
    root = tmp_path_factory.mktemp("trained")
    opened = open_folder(folder)
    loss = train(opened, CoSENTLoss, root / "run")
    opened.save_pretrained(str(root / "again"))
    return opened, loss, root


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
    settings = [{}, {"normalize": True}, {"pooling": "cls"}, {"pooling": "max"}, {"projection": {"out_features": 32}}]
    embeddings = [MultiTaskModel.from_backbone(tiny_backbone, **each).encode(SENTENCES) for each in settings]
    for index, one in enumerate(embeddings):
        for other in embeddings[:index]:
            assert np.abs(one - other).max() > 1e-2


def test_long_text_is_truncated_at_max_length(model: MultiTaskModel, opened: SentenceTransformer) -> None:
    assert opened.max_seq_length == model.config.max_length == 20
    long = "the bird sang " * 30
    short, shorter = (" ".join(long.split()[:words]) for words in (18, 17))
    assert opened.preprocess([long])["input_ids"].shape == (1, 20)
    embedding = opened.encode(long)
    np.testing.assert_array_equal(embedding, opened.encode(short))
    assert np.abs(embedding - opened.encode(shorter)).max() > 1e-4, "premise: the last word within counts"
    np.testing.assert_allclose(embedding, model.encode(long), rtol=0, atol=1e-5)


# ---- what people call ----


def test_encode_takes_one_sentence_or_many(model: MultiTaskModel, opened: SentenceTransformer) -> None:
    many = opened.encode(SENTENCES, batch_size=2)
    assert many.shape == (len(SENTENCES), 24)
    np.testing.assert_allclose(many, model.encode(SENTENCES), rtol=0, atol=1e-5)
    for sentence, row in zip(SENTENCES, many, strict=True):
        one = opened.encode(sentence)
        assert one.shape == (24,)
        np.testing.assert_allclose(one, row, rtol=0, atol=1e-5)


def test_queries_and_documents_are_embedded_like_any_sentence(opened: SentenceTransformer) -> None:
    expected = opened.encode(SENTENCES)
    np.testing.assert_array_equal(opened.encode_query(SENTENCES), expected)
    np.testing.assert_array_equal(opened.encode_document(SENTENCES), expected)


def test_similarity_is_the_cosine(model: MultiTaskModel, opened: SentenceTransformer) -> None:
    embeddings = opened.encode(SENTENCES)
    assert np.abs(np.linalg.norm(embeddings, axis=1) - 1).min() > 0.1, "premise: a dot product is no cosine"
    found = opened.similarity(embeddings, embeddings[:2])
    assert found.shape == (len(SENTENCES), 2)
    np.testing.assert_allclose(found, model.similarity(SENTENCES, SENTENCES[:2]), rtol=0, atol=1e-5)


def test_truncate_dim_keeps_the_first_units(folder: Path, opened: SentenceTransformer) -> None:
    truncated = open_folder(folder, truncate_dim=16)
    assert opened.get_embedding_dimension() == 24
    assert truncated.get_embedding_dimension() == 16
    expected = opened.encode(SENTENCES)[:, :16]
    np.testing.assert_array_equal(truncated.encode(SENTENCES), expected)
    np.testing.assert_array_equal(opened.encode(SENTENCES, truncate_dim=16), expected)


def test_evaluator_finds_the_spearman_of_our_own_cosines(model: MultiTaskModel, opened: SentenceTransformer) -> None:
    cosines = np.diag(model.similarity(PAIRS["sentence1"], PAIRS["sentence2"]))
    for scores, expected in ((cosines, 1.0), (-cosines, -1.0)):
        gold = (scores - scores.min()) / np.ptp(scores)
        evaluator = EmbeddingSimilarityEvaluator(PAIRS["sentence1"], PAIRS["sentence2"], gold.tolist())
        found = evaluator(opened)
        assert evaluator.primary_metric == "spearman_cosine"
        assert found["spearman_cosine"] == pytest.approx(expected)


# ---- modules ----


def test_folder_without_projection_opens_as_transformer_pooling_and_normalize(
    tiny_backbone: str, tmp_path: Path
) -> None:
    for normalize in (False, True):
        model = MultiTaskModel.from_backbone(tiny_backbone, pooling="max", normalize=normalize)
        model.save_pretrained(tmp_path / str(normalize))
        opened = open_folder(tmp_path / str(normalize))
        assert [type(module) for module in opened] == [Transformer, Pooling] + [Normalize] * normalize
        assert opened[1].pooling_mode == "max"
        assert opened[1].get_embedding_dimension() == model.config.embedding_dim


def test_token_embeddings_are_those_of_the_model(tiny_backbone: str, tmp_path: Path) -> None:
    model = MultiTaskModel.from_backbone(tiny_backbone)
    model.save_pretrained(tmp_path)
    found = open_folder(tmp_path).encode(SENTENCES, output_value="token_embeddings", batch_size=2)
    for sentence, states in zip(SENTENCES, found, strict=True):
        with torch.no_grad():
            expected = model(**model.tokenizer(sentence, return_tensors="pt", truncation=True)).last_hidden_state[0]
        torch.testing.assert_close(states, expected, rtol=0, atol=1e-5)


def test_losses_that_look_at_the_layers_find_them(tiny_backbone: str, tmp_path: Path) -> None:
    model = MultiTaskModel.from_backbone(tiny_backbone)
    model.save_pretrained(tmp_path)
    opened = open_folder(tmp_path)
    features = [dict(opened.preprocess(PAIRS[name])) for name in ("sentence1", "sentence2")]
    loss = AdaptiveLayerLoss(opened, CoSENTLoss(opened))
    loss(features, torch.tensor(PAIRS["score"])).backward()
    gradients = [layer.output.dense.weight.grad for layer in opened.transformers_model.backbone.encoder.layer]
    assert len(gradients) == model.config.backbone_config.num_hidden_layers and all(
        gradient.abs().sum() > 0 for gradient in gradients
    )


def test_prompt_can_be_left_out_of_pooling(tiny_backbone: str, tmp_path: Path) -> None:
    model = MultiTaskModel.from_backbone(tiny_backbone)
    model.save_pretrained(tmp_path)
    opened = open_folder(tmp_path)
    opened.set_pooling_include_prompt(False)
    states = opened.encode("the dog a good film", output_value="token_embeddings")
    found = opened.encode("a good film", prompt="the dog ")
    np.testing.assert_allclose(found, states[3:].mean(dim=0), rtol=0, atol=1e-5)  # without [CLS] and the prompt


# ---- further training ----


def assert_trained(trained: SentenceTransformer, model: MultiTaskModel) -> None:
    """Everything that the embedding reads has changed, and no head has."""
    before, after = model.state_dict(), trained.transformers_model.state_dict()
    assert set(after) == set(before)
    unchanged = {name for name, value in after.items() if torch.equal(value, before[name])}
    assert unchanged == {name for name in before if name.startswith("heads.")}


def test_training_with_cosent_changes_the_encoder_and_leaves_the_heads(
    trained: tuple[SentenceTransformer, float, Path], model: MultiTaskModel
) -> None:
    opened, loss, _ = trained
    assert math.isfinite(loss) and loss > 0
    assert_trained(opened, model)


def test_training_with_ranking_changes_the_encoder_and_leaves_the_heads(
    folder: Path, model: MultiTaskModel, tmp_path: Path
) -> None:
    opened = open_folder(folder)
    loss = train(opened, MultipleNegativesRankingLoss, tmp_path)
    assert math.isfinite(loss) and loss > 0
    assert_trained(opened, model)


@pytest.mark.parametrize("place", ["again", "run/checkpoint-3"])
def test_folder_saved_there_after_training_opens_through_both_doors(
    trained: tuple[SentenceTransformer, float, Path], model: MultiTaskModel, place: str
) -> None:
    opened, _, root = trained
    expected, vectors = embed_batch(opened), opened.encode(SENTENCES)
    assert np.abs(vectors - model.encode(SENTENCES)).max() > 1e-3, "premise: training moved the embeddings"

    again = open_folder(root / place)
    torch.testing.assert_close(embed_batch(again), expected, rtol=0, atol=0)
    assert again.max_seq_length == 20

    loaded = AutoModel.from_pretrained(root / place, trust_remote_code=True)
    assert type(loaded).__name__ == "MultiTaskModel"
    assert loaded.config.tasks == model.config.tasks
    torch.testing.assert_close(forward_batch(loaded, again.preprocess(SENTENCES)), expected, rtol=0, atol=0)
    np.testing.assert_allclose(loaded.encode(SENTENCES), vectors, rtol=0, atol=1e-5)
    heads = loaded.heads.state_dict()
    for name, value in model.heads.state_dict().items():
        torch.testing.assert_close(heads[name], value, rtol=0, atol=0)
    found = loaded.predict(SENTENCES)
    assert set(found) == {"mood", "rating"}
    with torch.no_grad():
        moods = model.heads["mood"](torch.from_numpy(vectors)).softmax(dim=-1)
    np.testing.assert_allclose(found["mood"]["probabilities"], moods, rtol=0, atol=1e-5)


def test_folder_saved_there_holds_everything_that_ours_does(folder: Path, tmp_path: Path) -> None:
    open_folder(folder).save_pretrained(str(tmp_path / "again"))
    files = {path.name for path in folder.iterdir()}
    assert files <= {path.name for path in (tmp_path / "again").iterdir()}
    for name in sorted(files):
        if name.endswith((".py", ".safetensors")) or name == "tokenizer.json":
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
    assert again.truncate_dim == 16
    np.testing.assert_array_equal(again.encode_query(SENTENCES), opened.encode_query(SENTENCES))


def test_settings_chosen_there_follow_the_model_and_not_the_folder(
    folder: Path, tiny_backbone: str, tmp_path: Path
) -> None:
    chosen = {"prompts": {"query": "the cat "}, "default_prompt_name": "query", "truncate_dim": 16}
    open_folder(folder, similarity_fn_name="dot", **chosen).save_pretrained(str(tmp_path / "chosen"))

    def found(name: str) -> dict[str, Any]:
        return json.loads((tmp_path / name / "config_sentence_transformers.json").read_text())

    expected = found("chosen")
    assert expected["similarity_fn_name"] == "dot"
    assert expected.items() >= {**chosen, "prompts": expected["prompts"]}.items()
    model = MultiTaskModel.from_pretrained(tmp_path / "chosen")
    model.save_pretrained(tmp_path / "again")
    other = MultiTaskModel.from_backbone(tiny_backbone)
    other.save_pretrained(tmp_path / "other")
    model.save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "again")
    assert found("other") == expected
    assert found("again")["prompts"] == {}
    open_folder(tmp_path / "chosen", prompts={"query": "a dog "}).save_pretrained(str(tmp_path / "chosen"))
    assert found("chosen")["prompts"]["query"] == "a dog "


def test_card_is_kept_by_its_save_unless_it_was_trained_there(
    opened: SentenceTransformer, folder: Path, trained: tuple[SentenceTransformer, float, Path], tmp_path: Path
) -> None:
    opened.save_pretrained(str(tmp_path))
    assert (tmp_path / "README.md").read_bytes() == (folder / "README.md").read_bytes()
    assert "CoSENTLoss" in (trained[2] / "again" / "README.md").read_text(encoding="utf-8")


# ---- and back: a model starts from what sentence-transformers saved ----


@pytest.mark.parametrize(
    ("pooling", "dense", "normalize"),
    [
        ("mean", False, False),
        ("mean", True, True),
        ("cls", False, True),
        ("cls", True, False),
        ("max", False, False),
        ("max", True, True),
    ],
)
def test_model_started_from_its_folder_keeps_the_embedding_and_gives_it_back(
    tiny_backbone: str, tmp_path: Path, pooling: str, dense: bool, normalize: bool
) -> None:
    torch.manual_seed(3)
    modules = [Transformer(tiny_backbone, max_seq_length=20), Pooling(32, pooling)]
    modules += [Dense(32, 24, activation_function=nn.Tanh())] if dense else []
    modules += [Normalize()] if normalize else []
    theirs = SentenceTransformer(modules=modules, device="cpu")
    theirs.save_pretrained(str(tmp_path / "theirs"))
    features = theirs.preprocess(SENTENCES)
    expected = embed_batch(theirs)

    model = MultiTaskModel.from_backbone(str(tmp_path / "theirs"))
    model.save_pretrained(tmp_path / "ours")
    back = embed_batch(open_folder(tmp_path / "ours"))
    torch.testing.assert_close(back, forward_batch(model, features), rtol=0, atol=0)
    torch.testing.assert_close(back, expected, rtol=0, atol=1e-6)  # computed without padding, in another order
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(forward_batch(model, features), expected, rtol=0, atol=0)
