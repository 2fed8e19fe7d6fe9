"""A padded batch that goes through the backbone in parts by length: same states, same gradients, less padding."""

from typing import Any

import pytest
import torch
from transformers import DebertaV2Config, MPNetConfig

from multitask_sentence import MultiTaskConfig, MultiTaskModel
from multitask_sentence.passes_multitask import divide

SIZES: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99, "intermediate_size": 37}
SIZES |= {"hidden_size": 32, "max_position_embeddings": 64, "initializer_range": 0.2}
BACKBONES = {"mpnet": MPNetConfig(**SIZES), "deberta-v2": DebertaV2Config(**SIZES)}
LENGTHS = (3, 40, 1, 5, 9, 5, 12, 8, 3, 3, 7, 20, 1, 2, 11, 6, 4)


def build(backbone: str, pooling: str = "mean") -> MultiTaskModel:
    torch.manual_seed(0)
    return MultiTaskModel(MultiTaskConfig(backbone_config=BACKBONES[backbone], pooling=pooling)).eval()


def batch(lengths: tuple[int, ...] = LENGTHS, side: str = "right") -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 99, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    places, counts = torch.arange(max(lengths)), torch.tensor(lengths)[:, None]
    mask = (places < counts if side == "right" else places >= max(lengths) - counts).long()
    return {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}


def lengths_seen(model: MultiTaskModel) -> list[tuple[int, ...]]:
    """A list that grows with the shape of the ids of every pass of the backbone."""
    shapes: list[tuple[int, ...]] = []
    model.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return shapes


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_states_and_gradients_equal_those_of_the_whole_batch(backbone, pooling):
    model, inputs = build(backbone, pooling), batch()
    shapes, found = lengths_seen(model), []
    for model.padding_free in (None, False):
        model.zero_grad()
        output = model(**inputs)
        (output.sentence_embedding * torch.linspace(-1, 1, 32)).sum().backward()
        gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        found.append((output, gradients))
    assert shapes == [(5, 3), (5, 6), (5, 12), (2, 40), (17, 40)]
    (parts, gradients), (whole, expected) = found
    seen = inputs["attention_mask"].bool()
    assert parts.last_hidden_state.shape == whole.last_hidden_state.shape
    torch.testing.assert_close(parts.last_hidden_state[seen], whole.last_hidden_state[seen], rtol=0, atol=1e-5)
    torch.testing.assert_close(parts.sentence_embedding, whole.sentence_embedding, rtol=0, atol=1e-5)
    assert gradients.keys() == expected.keys() and max(grad.abs().max() for grad in expected.values()) > 0.01
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("lengths", "side"),
    [(LENGTHS[:15], "right"), ((9,) * 16, "right"), ((9,) * 14 + (10, 11), "right"), (LENGTHS, "left")],
    ids=["few rows", "one length", "little padding", "padded on the left"],
)
def test_batch_that_would_gain_little_goes_as_a_whole(lengths, side):
    model, inputs = build("mpnet"), batch(lengths, side)
    shapes = lengths_seen(model)
    model(**inputs)
    assert shapes == [tuple(inputs["input_ids"].shape)]


def test_rows_without_a_token_take_one_place():
    mask = torch.zeros(16, 30, dtype=torch.long)
    mask[:3] = 1
    parts = divide(mask)
    assert [length for _, length in parts] == [1, 1, 1, 30]
    assert sorted(torch.cat([rows for rows, _ in parts]).tolist()) == list(range(16))


def test_states_that_are_asked_for_are_those_of_the_whole_batch():
    model, inputs = build("mpnet"), batch()
    shapes = lengths_seen(model)
    assert len(model(**inputs, output_hidden_states=True).hidden_states) == 3
    assert shapes == [(17, 40)]
