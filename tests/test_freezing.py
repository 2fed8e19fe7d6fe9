"""Parts of a model: what belongs to each, which of them train, and what freezing saves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    MegatronBertConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from multitask_sentence import MultiTaskConfig, MultiTaskModel
from multitask_sentence.freezing_multitask import select_parts

LAYERS = 3
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "vocab_size": 99,
    "intermediate_size": 37,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
DROPOUT = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
DEBERTA = {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"], "conv_kernel_size": 3}
MODERN_BERT = {
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    **{"embedding_dropout": 0.3, "attention_dropout": 0.3, "mlp_dropout": 0.3},
}
ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "bert": lambda: BertConfig(**SIZES, **DROPOUT),
    "distilbert": lambda: DistilBertConfig(
        dim=32, n_layers=LAYERS, n_heads=4, vocab_size=99, hidden_dim=37, dropout=0.3, attention_dropout=0.3
    ),
    "roberta": lambda: RobertaConfig(**SIZES, **DROPOUT),
    "xlm-roberta": lambda: XLMRobertaConfig(**SIZES, **DROPOUT),
    "mpnet": lambda: MPNetConfig(**SIZES, **DROPOUT),
    "electra": lambda: ElectraConfig(embedding_size=16, **SIZES, **DROPOUT),
    "deberta-v2": lambda: DebertaV2Config(embedding_size=16, norm_rel_ebd="layer_norm", **DEBERTA, **SIZES, **DROPOUT),
    "modernbert": lambda: ModernBertConfig(**MODERN_BERT, **SIZES),
    "megatron-bert": lambda: MegatronBertConfig(**SIZES, **DROPOUT),
}
# What stands outside the layers, and which part it belongs to.
OUTSIDE = {
    "mpnet": {"encoder.relative_attention_bias.weight": "embeddings"},
    "electra": {"embeddings_project.weight": "embeddings", "embeddings_project.bias": "embeddings"},
    "deberta-v2": {
        "embeddings.embed_proj.weight": "embeddings",
        "encoder.rel_embeddings.weight": "embeddings",
        "encoder.LayerNorm.weight": "embeddings",
        "encoder.conv.conv.weight": "embeddings",
    },
    "modernbert": {"embeddings.norm.weight": "embeddings", "final_norm.weight": f"layers.{LAYERS - 1}"},
    "megatron-bert": {"encoder.ln.weight": f"layers.{LAYERS - 1}"},
}
TASKS = {
    "mood": {"problem_type": "single_label_classification", "labels": ["a", "b"]},
    "topic": {
        "problem_type": "single_label_classification",
        "labels": ["c", "d"],
        "head": {"hidden_dims": [7], "dropout": 0.3},
    },
    "pairs": {"problem_type": "similarity"},
}
PARTS = ["embeddings", "layers.0", "layers.1", "layers.2", "projection", "heads.mood", "heads.topic"]
BATCH = {"input_ids": torch.tensor([[1, 8, 9, 10, 2], [1, 11, 12, 2, 0]]), "attention_mask": torch.ones(2, 5).long()}


def build(architecture: str, **kwargs: Any) -> MultiTaskModel:
    torch.manual_seed(0)
    kwargs = {"tasks": TASKS, "projection": {"out_features": 24}, **kwargs}
    return MultiTaskModel(MultiTaskConfig(backbone_config=ARCHITECTURES[architecture](), **kwargs)).eval()


def frozen_parts(model: MultiTaskModel) -> list[str]:
    """Parts without a trainable parameter; none may be half frozen."""
    states = {name: {p.requires_grad for p in part.values()} for name, part in model.parts().items()}
    assert all(len(state) == 1 for state in states.values())
    return [name for name, state in states.items() if state == {False}]


# What belongs to which part


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_belongs_to_exactly_one_part(architecture):
    model = build(architecture)
    parts = model.parts()
    assert list(parts) == PARTS
    assert all(parts.values())
    owners = {name: part for part, parameters in parts.items() for name in parameters}
    assert sum(map(len, parts.values())) == len(owners)
    assert owners.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert parts[owners[name]][name] is parameter
    for name, part in OUTSIDE.get(architecture, {}).items():
        assert owners[f"backbone.{name}"] == part, name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("part", PARTS)
def test_single_trainable_part_gets_all_the_gradients_there_are(architecture, part):
    model = build(architecture)
    model.freeze("all")
    names = set(model.parts()[part])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    output = model(**BATCH)
    (output.sentence_embedding.sum() + sum(logits.square().sum() for logits in output.logits.values())).backward()
    unused = {"backbone.embeddings.token_type_embeddings.weight"}  # not in every architecture's batch
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert names - unused <= with_gradient <= names


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layers", [1, 2])
def test_no_graph_is_built_below_the_lowest_trainable_layer(architecture, layers):
    model = build(architecture)
    model.freeze("embeddings", layers=layers)
    seen: list[tuple[int, bool]] = []
    for number in range(LAYERS):
        module = model.backbone.get_submodule(layer_list(model))[number]
        module.register_forward_hook(
            lambda _module, _inputs, output, number=number: seen.append(
                (number, (output[0] if isinstance(output, tuple) else output).requires_grad)
            )
        )
    model.train()
    model(**BATCH)
    assert seen == [(number, number >= layers) for number in range(LAYERS)]


def layer_list(model: MultiTaskModel) -> str:
    name = next(iter(model.parts()["layers.0"]))
    return name.removeprefix("backbone.").split(".0.")[0]


# Frozen parts run without dropout


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_frozen_layers_of_a_trainable_backbone_run_without_dropout(architecture):
    model = build(architecture)
    model.freeze("embeddings", layers=1)
    states: list[torch.Tensor] = []
    for number in (0, 1):
        model.backbone.get_submodule(layer_list(model))[number].register_forward_hook(
            lambda _module, _inputs, output: states.append(output[0] if isinstance(output, tuple) else output)
        )
    model.train()
    for _ in range(2):
        model(**BATCH)
    first, second, again_first, again_second = states
    assert torch.equal(first, again_first)
    assert not torch.equal(second, again_second), "premise: there is dropout"


def test_mode_follows_what_is_frozen_at_once():
    model = build("bert").train()
    head, layer = model.heads["topic"].layers[-2], model.backbone.encoder.layer[0].attention.output.dropout
    assert isinstance(head, torch.nn.Dropout)
    assert isinstance(layer, torch.nn.Dropout)
    model.freeze(layers=1, heads="topic")
    assert (head.training, layer.training, model.training) == (False, False, True)
    model.unfreeze(layers=1)
    assert (head.training, layer.training) == (False, True)
    model.eval()
    model.unfreeze("all")
    assert not any(module.training for module in model.modules())


# What freeze takes


@pytest.mark.parametrize(
    ("words", "counts", "expected"),
    [
        (["backbone"], {}, PARTS[:4]),
        (["embeddings"], {}, PARTS[:1]),
        ([], {"layers": 2}, PARTS[1:3]),
        ([], {"top_layers": 2}, PARTS[2:4]),
        (["projection"], {}, ["projection"]),
        (["heads"], {}, PARTS[5:]),
        ([], {"heads": ["topic"]}, ["heads.topic"]),
        ([], {"heads": "topic"}, ["heads.topic"]),
        (["embeddings"], {"layers": 3, "heads": ["topic"]}, [*PARTS[:4], "heads.topic"]),
        (["all"], {}, PARTS),
        (["none"], {}, []),
    ],
)
def test_freeze_takes_words_counts_and_heads(words, counts, expected):
    model = build("bert")
    model.freeze(*words, **counts)
    assert frozen_parts(model) == expected
    recipe_spelling = [*words, *({key: value} for key, value in counts.items())]
    assert select_parts(PARTS, *recipe_spelling) == expected


def test_freeze_adds_up_and_unfreeze_takes_back():
    model = build("bert")
    model.freeze("projection")
    model.freeze("backbone")
    assert frozen_parts(model) == PARTS[:5]
    model.unfreeze("embeddings", top_layers=1)
    assert frozen_parts(model) == ["layers.0", "layers.1", "projection"]


@pytest.mark.parametrize(
    ("words", "counts", "message"),
    [
        ([], {}, "Name a part: backbone, embeddings, projection, heads, all, none, layers=3"),
        (["embedding"], {}, r"unknown part 'embedding'\. Did you mean 'embeddings'\? Known parts: backbone"),
        (["layers"], {}, "layers needs a number: {layers: 3}, in Python layers=3"),
        ([3], {}, "unknown part 3"),
        ([], {"layers": 4}, "layers is 4, but the backbone has 3 layers"),
        ([], {"top_layers": 0}, "top_layers is 0, but should be a whole number of at least 1"),
        ([], {"layers": True}, "layers is True, but should be a whole number"),
        (
            [],
            {"heads": ["topc"]},
            r"no task 'topc' has a head\. Did you mean 'topic'\? Tasks with a head: mood, topic",
        ),
        ([], {"heads": ["pairs"]}, "no task 'pairs' has a head"),
        ([], {"heads": []}, r"heads is \[\], but should list tasks, such as \[mood, topic\]"),
    ],
)
def test_what_freeze_does_not_know_is_an_error(words, counts, message):
    with pytest.raises(ValueError, match=message):
        build("bert").freeze(*words, **counts)


def test_part_that_the_model_lacks_is_an_error():
    model = build("bert", projection=None, tasks={"pairs": TASKS["pairs"]})
    for part in ("projection", "heads"):
        with pytest.raises(ValueError, match=rf"{part}: the model has none. Leave it out"):
            model.freeze(part)


def test_backbone_without_own_layers_is_frozen_as_a_whole_or_not_at_all():
    config = AlbertConfig(embedding_size=16, **SIZES)  # one layer, run three times
    model = MultiTaskModel(MultiTaskConfig(backbone_config=config, tasks=TASKS))
    assert list(model.parts()) == ["backbone", "heads.mood", "heads.topic"]
    model.freeze("backbone")
    assert frozen_parts(model) == ["backbone"]
    for words, counts in ((["embeddings"], {}), ([], {"layers": 1}), ([], {"top_layers": 1})):
        with pytest.raises(ValueError, match=r"no single list of its own layers.* Write backbone instead"):
            model.freeze(*words, **counts)


def test_model_opened_with_remote_code_freezes_alike(tmp_path: Path):
    build("bert").save_pretrained(tmp_path)
    assert (tmp_path / "freezing_multitask.py").is_file()
    model = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(model) is not MultiTaskModel
    model.freeze("embeddings", layers=2, heads=["topic"])
    assert frozen_parts(model) == [*PARTS[:3], "heads.topic"]
