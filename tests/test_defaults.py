"""PyTorch's own defaults, for the type and the device of new tensors, change no answer."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch

from multitask_sentence import MultiTaskModel
from multitask_sentence.pipeline_multitask import MultiTaskPipeline

SENTENCES = ["the cat sat on the mat", "a good film", "bad news today", "dog", "dog"]
PAIRS = [("the cat", "a dog"), ("good", "bad film")]
CALLS: dict[str, Callable[[MultiTaskModel], Any]] = {
    "encode": lambda model: model.encode(SENTENCES),
    "encode one": lambda model: model.encode(SENTENCES[0], normalize=True),
    "encode nothing": lambda model: model.encode([]),
    "encode a stream": lambda model: model.encode(iter(SENTENCES)),
    "predict": lambda model: model.predict(SENTENCES, as_list=True),
    "predict pairs": lambda model: model.predict(PAIRS, as_list=True),
    "predict nothing": lambda model: model.predict([])["mood"]["probabilities"],
    "predict with embeddings": lambda model: model.predict(PAIRS, embeddings=True)["embedding"],
    "similarity": lambda model: model.similarity(SENTENCES, [model.encode("dog")]),
    "similarity to nothing": lambda model: model.similarity(SENTENCES, []),
    "pipeline": lambda model: MultiTaskPipeline(model, device="cpu")(SENTENCES),
    "forward": lambda model: model(torch.tensor([[2, 5, 6, 3]], device="cpu")).sentence_embedding.detach().numpy(),
    "long forward": lambda model: model(torch.full((1, 30), 7, device="cpu")).sentence_embedding.detach().numpy(),
}


@pytest.fixture(params=["float16", "bfloat16", "float64", "meta"])
def other_default(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Sets another default, which is gone after the test."""

    with ExitStack() as device:

        def set_default() -> None:
            if request.param == "meta":
                device.enter_context(torch.device("meta"))
            else:
                torch.set_default_dtype(getattr(torch, request.param))

        yield set_default
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("padding_free", [None, False], ids=["packed", "padded"])
@pytest.mark.parametrize("call", CALLS)
def test_answers_are_those_of_the_usual_defaults(tiny_model, other_default, call: str, padding_free) -> None:
    tiny_model.padding_free = padding_free
    expected = CALLS[call](tiny_model)
    other_default()
    found = CALLS[call](tiny_model)
    if isinstance(expected, np.ndarray):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


def test_new_head_is_one_of_the_model_whatever_the_defaults(tiny_model: MultiTaskModel, other_default) -> None:
    expected = tiny_model.encode(SENTENCES)
    other_default()
    tiny_model.add_task("new", {"problem_type": "single_label_classification", "labels": ["a", "b"]})
    assert {(weight.dtype, weight.device.type) for weight in tiny_model.parameters()} == {(torch.float32, "cpu")}
    assert tiny_model.predict(SENTENCES)["new"]["probabilities"].shape == (5, 2)
    np.testing.assert_array_equal(tiny_model.encode(SENTENCES), expected)


def test_training_step_has_the_same_gradients(tiny_model: MultiTaskModel, other_default) -> None:
    def gradient() -> torch.Tensor:
        torch.manual_seed(0)
        tiny_model.zero_grad()
        input_ids = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]], device="cpu")
        tiny_model.train()(input_ids, attention_mask=(input_ids != 0).long()).logits["mood"].sum().backward()
        return tiny_model.heads["mood"].layers[-1].weight.grad.clone()

    expected = gradient()
    other_default()
    torch.testing.assert_close(gradient(), expected, rtol=0, atol=0)
