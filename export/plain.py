"""The model as ordinary folders without custom code, for servers and loaders that run none.

    export_plain    DIR/embedding for sentence-transformers, and DIR/TASK for each head that an architecture of
                    transformers has with equal numbers

A sequence classifier of transformers reads the first token through one dense layer, whose activation the architecture
fixes, and a linear one. So a head fits where pooling is `cls`, and projection and head together are these two layers.
"""

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification

from ..adapter_multitask import has_adapter
from ..heads_multitask import calibrated, task_logits
from ..manifest_multitask import MANIFEST_FILE, update_manifest
from ..modeling_multitask import MultiTaskModel
from ..staging_multitask import as_disk_error, files_of
from .check import SENTENCES, TOLERANCE
from .folder import put_in_place, staging_folder

# Of each architecture with such a classifier: the activation of its dense layer, and where both layers stand.
CLASSIFIERS = {
    "bert": ("tanh", "bert.pooler.dense", "classifier"),
    "roberta": ("tanh", "classifier.dense", "classifier.out_proj"),
    "xlm-roberta": ("tanh", "classifier.dense", "classifier.out_proj"),
    "camembert": ("tanh", "classifier.dense", "classifier.out_proj"),
    "mpnet": ("tanh", "classifier.dense", "classifier.out_proj"),
    "electra": ("gelu", "classifier.dense", "classifier.out_proj"),
    "distilbert": ("relu", "pre_classifier", "classifier"),
    "deberta-v2": (None, "pooler.dense", "classifier"),  # its configuration names the activation
}
# Activations of a projection that sentence-transformers' Dense finds in torch, by transformers' names.
DENSE_ACTIVATIONS = {
    "linear": "torch.nn.modules.linear.Identity",
    "tanh": "torch.nn.modules.activation.Tanh",
    "relu": "torch.nn.modules.activation.ReLU",
    "gelu": "torch.nn.modules.activation.GELU",
    "silu": "torch.nn.modules.activation.SiLU",
    "sigmoid": "torch.nn.modules.activation.Sigmoid",
}
MODULES = "sentence_transformers.models"


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_embedding(model: MultiTaskModel, folder: Path) -> None:
    """Transformer, Pooling, and where the model has them Dense and Normalize, as sentence-transformers saves them."""
    config = model.config
    activation = config.projection.activation if config.projection else None
    if activation is not None and activation not in DENSE_ACTIVATIONS:
        raise ValueError(
            f"The projection's activation {activation!r} has no class of torch's that sentence-transformers could "
            f"name, so there is no plain folder with equal numbers. It has {', '.join(DENSE_ACTIVATIONS)}."
        )
    model.backbone.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    hidden_size, modules = config.backbone_config.hidden_size, ["Transformer", "Pooling"]
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": config.max_length, "do_lower_case": False})
    modes = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    pooling = {f"pooling_mode_{mode}": config.pooling == name for name, mode in modes.items()}
    _write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden_size, **pooling})
    if model.projection is not None:
        linear = model.projection.linear
        dense = {
            "in_features": hidden_size,
            "out_features": config.embedding_dim,
            "bias": linear.bias is not None,
            "activation_function": DENSE_ACTIVATIONS[activation],
        }
        _write_json(folder / "2_Dense" / "config.json", dense)
        weights = {f"linear.{name}": value.detach().contiguous() for name, value in linear.named_parameters()}
        save_file(weights, folder / "2_Dense" / "model.safetensors")
        modules.append("Dense")
    if config.normalize:
        modules.append("Normalize")
    listed = [
        {"idx": index, "name": str(index), "path": f"{index}_{kind}" if index else "", "type": f"{MODULES}.{kind}"}
        for index, kind in enumerate(modules)
    ]
    _write_json(folder / "modules.json", listed)
    similarity = {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine", "prompts": {}}
    _write_json(folder / "config_sentence_transformers.json", similarity)


def _check_embedding(model: MultiTaskModel, folder: Path) -> float:
    """The largest difference of what sentence-transformers opens."""
    from sentence_transformers import SentenceTransformer

    found = SentenceTransformer(os.fspath(folder), device="cpu", trust_remote_code=False).encode(SENTENCES)
    difference = float(np.abs(found - model.encode(SENTENCES)).max())
    if not difference <= TOLERANCE:
        raise ValueError(f"The plain embedding differs from the model's by {difference:.1e}. Nothing was written.")
    return difference


def layers_of(model: MultiTaskModel, task: str) -> list[tuple[nn.Linear, str]]:
    """The linear layers from the pooled vector to a head's logits, each with the activation after it."""
    head: Any = model.heads[task].layers
    linears = [layer for layer in head if isinstance(layer, nn.Linear)]
    activation = model.config.tasks[task].head.activation
    layers = [(linear, activation) for linear in linears[:-1]] + [(linears[-1], "linear")]
    if model.projection is not None:
        layers.insert(0, (model.projection.linear, model.config.projection.activation))
    return layers


def why_no_classifier(model: MultiTaskModel, task: str) -> str | None:
    """Why no sequence classifier of transformers gives a head's numbers; `None` where one does."""
    config = model.config
    kind, hidden_size = config.backbone_config.model_type, config.backbone_config.hidden_size
    if not config.tasks[task].kind.has_labels or config.tasks[task].pair:
        return "it does not classify single sentences"
    if kind not in CLASSIFIERS:
        return f"a sequence classifier of {kind} has other layers"
    if config.pooling != "cls":
        return f"a sequence classifier of {kind} reads the first token, and pooling is {config.pooling!r}"
    layers, activation = layers_of(model, task), CLASSIFIERS[kind][0]
    if activation is None and len(layers) == 1:
        return None  # its dense layer may be the identity
    if len(layers) != 2 or layers[0][0].out_features != hidden_size or activation not in (None, layers[0][1]):
        return (
            f"a sequence classifier of {kind} has one hidden layer of size {hidden_size}"
            f"{f' with {activation}' if activation else ''}, and projection and head have "
            f"{[(layer.out_features, after) for layer, after in layers[:-1]] or 'none'}"
        )
    return None


def _copy_linear(source: nn.Linear, target: nn.Linear) -> None:
    target.weight.copy_(source.weight)
    target.bias.copy_(source.bias if source.bias is not None else torch.zeros_like(target.bias))


@torch.no_grad()
def make_classifier(model: MultiTaskModel, task: str) -> nn.Module:
    """The sequence classifier of transformers that gives a head's logits, calibrated where the task is."""
    labels = model.config.tasks[task].labels
    config = copy.deepcopy(model.config.backbone_config)
    config._attn_implementation = None  # not the one that reads batches without padding
    config.id2label, config.label2id = dict(enumerate(labels)), {label: place for place, label in enumerate(labels)}
    config.problem_type = model.config.tasks[task].problem_type
    _, dense, last = CLASSIFIERS[config.model_type]
    layers = layers_of(model, task)
    if len(layers) == 1:
        identity = nn.Linear(config.hidden_size, config.hidden_size)
        identity.weight.copy_(torch.eye(config.hidden_size))
        identity.bias.zero_()
        layers.insert(0, (identity, "linear"))
    if config.model_type == "deberta-v2":
        config.pooler_hidden_act, config.pooler_hidden_size = layers[0][1], config.hidden_size
    plain = AutoModelForSequenceClassification.from_config(config).float().eval()
    plain.base_model.load_state_dict(model.backbone.state_dict(), strict=False)
    _copy_linear(layers[0][0], plain.get_submodule(dense))
    _copy_linear(layers[1][0], plain.get_submodule(last))
    if temperatures := model.config.tasks[task].temperatures:  # one, or one for each label
        plain.get_submodule(last).weight.div_(torch.tensor(temperatures)[:, None])
        plain.get_submodule(last).bias.div_(torch.tensor(temperatures))
    return plain


@torch.no_grad()
def _write_classifier(model: MultiTaskModel, task: str, folder: Path) -> float:
    """Save a head's classifier; the largest difference of its logits, opened again."""
    make_classifier(model, task).save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    opened = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = model.tokenizer(SENTENCES, padding=True, truncation=True, return_tensors="pt")
    found = opened(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    embeddings = torch.as_tensor(model.encode(SENTENCES, normalize=False))
    expected = calibrated(model.config.tasks[task], task_logits(model, embeddings, [task])[task])
    difference = float(((found - expected).abs() / expected.abs().clamp(min=1)).max())
    if not difference <= TOLERANCE:
        raise ValueError(f"The plain classifier of {task!r} differs by {difference:.1e}. Nothing was written.")
    return difference


def export_plain(model: MultiTaskModel, folder: Path) -> dict[str, float | str]:
    """
    Write `folder/embedding` and a folder for each head that has an equal; whole and checked, or nothing.

    Args:
        model: in float32. An adapter is folded into the backbone of a copy.
        folder: replaced where it is there.

    Returns by name the largest difference to the model, or why there is no such folder.

    Raises:
        ValueError: the projection has no equal, or a folder gives other numbers.
        ImportError: sentence-transformers, which the embedding is checked with, is not installed.
    """
    try:
        import sentence_transformers  # noqa: F401
    except ImportError as error:
        raise ImportError("--plain needs sentence-transformers: pip install 'sentence-transformers>=5.4'.") from error
    if has_adapter(model.backbone):
        model = copy.deepcopy(model)  # the caller's keeps its adapter
        model.merge_adapter()
    folder.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, float | str] = {}
    with as_disk_error(folder), staging_folder(folder.parent, ".plain-") as temporary:
        staging = temporary / "plain"
        staging.mkdir()
        write_embedding(model, staging / "embedding")
        found["embedding"] = _check_embedding(model, staging / "embedding")
        for task in model.config.tasks:
            reason = why_no_classifier(model, task)
            found[task] = _write_classifier(model, task, staging / task) if reason is None else reason
        for made in staging.iterdir():  # each may go where it likes
            update_manifest(made)
        put_in_place(staging, folder, temporary / "old")
    if (folder.parent / MANIFEST_FILE).is_file():
        update_manifest(folder.parent, [f"{folder.name}/{name}" for name in files_of(folder)])
    return found
