"""Ordinary folders without custom code: opened by sentence-transformers and transformers alone, with equal numbers."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast, pipeline

from helpers.backbones import CONFIGS
from multitask_sentence import MultiTaskConfig, MultiTaskModel
from multitask_sentence.commands import export as command
from multitask_sentence.export.plain import export_plain, why_no_classifier
from multitask_sentence.manifest_multitask import find_changes

SENTENCES = ["the cat sat on the mat", "", "good film !", "the bird sang " * 30]
MOOD = {"problem_type": "single_label_classification", "labels": ["negative", "neutral", "positive"]}
TAGS = {"problem_type": "multi_label_classification", "labels": ["animal", "place"]}
# The dense layer that each architecture's classifier has, as a head's hidden layer.
DENSE = {
    "bert": "tanh",
    "distilbert": "relu",
    "roberta": "tanh",
    "xlm-roberta": "tanh",
    "mpnet": "tanh",
    "electra": "gelu",
    "deberta-v2": "silu",  # any
}


def build(
    architecture: str, tokenizer: PreTrainedTokenizerFast, tasks: dict[str, Any], **settings: Any
) -> MultiTaskModel:
    torch.manual_seed(0)
    config = MultiTaskConfig(backbone_config=CONFIGS[architecture](), tasks=tasks, max_length=20, **settings)
    model = MultiTaskModel(config).eval()
    model.tokenizer = tokenizer
    return model


def dense_head(activation: str) -> dict[str, Any]:
    return {"hidden_dims": [32], "activation": activation}


@pytest.mark.parametrize("architecture", DENSE)
def test_head_of_the_architectures_own_shape_becomes_its_classifier(
    architecture: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    head = dense_head(DENSE[architecture])
    tasks = {
        "mood": {**MOOD, "head": head, "temperatures": [1.6]},
        "tags": {**TAGS, "head": head, "temperatures": [0.5, 3.0]},
    }
    model = build(architecture, tiny_tokenizer, tasks, pooling="cls")
    found = export_plain(model, tmp_path / "plain")
    assert set(found) == {"embedding", "mood", "tags"} and max(map(float, found.values())) <= 1e-5
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain" / "mood")
    assert not hasattr(opened.config, "auto_map")
    assert opened.config.id2label == {0: "negative", 1: "neutral", 2: "positive"}
    assert not list((tmp_path / "plain").rglob("*.py"))
    assert not any("multitask" in path.read_text() for path in (tmp_path / "plain").rglob("*.json"))
    expected = model.predict(SENTENCES, as_list=True)
    for task in ("mood", "tags"):
        classify = pipeline("text-classification", model=str(tmp_path / "plain" / task), top_k=None)
        for rows, wanted in zip(classify(SENTENCES, truncation=True), expected, strict=True):
            scores = {row["label"]: row["score"] for row in rows}
            assert scores == pytest.approx(wanted[task]["scores"], abs=1e-5)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("bert", {"pooling": "mean", "normalize": True}),
        ("roberta", {"pooling": "max", "projection": {"out_features": 24, "activation": "tanh"}}),
        (
            "distilbert",
            {"pooling": "cls", "projection": {"out_features": 40, "activation": "gelu"}, "normalize": True},
        ),
        ("modernbert", {"projection": {"out_features": 24, "activation": "linear", "bias": False}}),
    ],
)
def test_embedding_opens_in_sentence_transformers_without_trust(
    architecture: str, settings: dict[str, Any], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = build(architecture, tiny_tokenizer, {"mood": MOOD}, **settings)
    export_plain(model, tmp_path / "plain")
    opened = SentenceTransformer(str(tmp_path / "plain" / "embedding"), trust_remote_code=False, device="cpu")
    np.testing.assert_allclose(opened.encode(SENTENCES), model.encode(SENTENCES), rtol=0, atol=1e-5)
    kinds = ["Transformer", "Pooling", *(["Dense"] if model.projection else [])]
    kinds += ["Normalize"] if model.config.normalize else []
    assert [type(module).__name__ for module in opened] == kinds
    assert opened.max_seq_length == 20
    (tmp_path / "plain" / "embedding" / "modules.json").write_text("[]")
    assert list(find_changes(tmp_path / "plain" / "embedding")) == ["modules.json"], "it has a manifest of its own"


def test_projection_may_be_the_dense_layer(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    projection = {"out_features": 32, "activation": "tanh", "bias": False}
    model = build("bert", tiny_tokenizer, {"mood": MOOD}, pooling="cls", projection=projection)
    assert float(export_plain(model, tmp_path / "plain")["mood"]) <= 1e-5


def test_linear_head_fits_where_the_activation_may_be_none(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = build("deberta-v2", tiny_tokenizer, {"mood": MOOD}, pooling="cls")
    assert float(export_plain(model, tmp_path / "plain")["mood"]) <= 1e-5


@pytest.mark.parametrize(
    ("architecture", "task", "settings", "reason"),
    [
        ("bert", {**MOOD, "head": dense_head("tanh")}, {"pooling": "mean"}, "pooling is 'mean'"),
        ("bert", {**MOOD, "head": dense_head("relu")}, {"pooling": "cls"}, "with tanh, and .*'relu'"),
        ("bert", MOOD, {"pooling": "cls"}, "one hidden layer of size 32 with tanh, and projection and head have none"),
        ("roberta", {**MOOD, "head": {"hidden_dims": [8], "activation": "tanh"}}, {"pooling": "cls"}, "size 32"),
        ("modernbert", MOOD, {"pooling": "cls"}, "a sequence classifier of modernbert has other layers"),
        ("bert", {**MOOD, "pair": True}, {"pooling": "cls"}, "does not classify single sentences"),
        ("bert", {"problem_type": "regression"}, {"pooling": "cls"}, "does not classify"),
    ],
)
def test_head_without_an_equal_is_left_out_with_the_reason(
    architecture: str,
    task: dict[str, Any],
    settings: dict[str, Any],
    reason: str,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = build(architecture, tiny_tokenizer, {"task": task}, **settings)
    assert re.search(reason, why_no_classifier(model, "task") or "it has one")


def test_adapter_is_folded_into_the_folders_and_the_model_keeps_it(tiny_backbone: str, tmp_path: Path) -> None:
    tasks = {"mood": {**MOOD, "head": dense_head("tanh")}}
    model = MultiTaskModel.from_backbone(tiny_backbone, tasks=tasks, pooling="cls", max_length=20).eval()
    model.add_adapter(LoraConfig(r=3, target_modules=["query", "value"], init_lora_weights=False))
    embeddings = model.encode(SENTENCES)
    found = export_plain(model, tmp_path / "plain")
    assert max(map(float, found.values())) <= 1e-5
    opened = SentenceTransformer(str(tmp_path / "plain" / "embedding"), trust_remote_code=False, device="cpu")
    np.testing.assert_allclose(opened.encode(SENTENCES), embeddings, rtol=0, atol=1e-5)
    assert model.active_adapters() and (model.encode(SENTENCES) == embeddings).all()


def test_projection_without_an_equal_is_refused_and_nothing_is_written(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = build("bert", tiny_tokenizer, {}, projection={"out_features": 24, "activation": "gelu_new"})
    with pytest.raises(ValueError, match="'gelu_new' has no class of torch's"):
        export_plain(model, tmp_path / "plain")
    assert list(tmp_path.iterdir()) == []


def test_disk_without_room_leaves_nothing_and_is_said_in_one_line(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    resource = pytest.importorskip("resource")
    build("bert", tiny_tokenizer, {"mood": MOOD}).save_pretrained(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))  # no file may grow beyond it
    try:
        with pytest.raises(SystemExit, match=r"not everything could be written.*Make room on the disk"):
            command.main([str(tmp_path), "--plain"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [path for path in tmp_path.iterdir() if "plain" in path.name]


def test_command_writes_into_the_folder_and_says_what_is_left_out(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build("bert", tiny_tokenizer, {"mood": MOOD}).save_pretrained(tmp_path)
    for _ in range(2):  # the second time in place of the first
        command.main([str(tmp_path), "--plain"])
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'plain' / 'embedding'}: largest difference " in printed
    assert f"No {tmp_path / 'plain' / 'mood'}: a sequence classifier of bert reads the first token" in printed
    assert not (tmp_path / "plain" / "mood").exists()
    with pytest.raises(SystemExit):
        command.main([str(tmp_path), "--plain", "--int8"])
