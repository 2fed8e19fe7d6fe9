"""encode and predict go through the model's own call where somebody compiled it or put hooks on it."""

from typing import Any

import numpy as np
import pytest
import torch

from multitask_sentence import MultiTaskModel

SENTENCES = ["the cat sat on the mat", "a good film", "bad news today", "dog"]
PAIRS = [("the cat", "a dog"), ("good", "bad film")]


class CountingBackend:
    """A compiler that changes nothing and counts how often its graphs run."""

    def __init__(self) -> None:
        self.graphs = self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        self.graphs += 1

        def run(*args: torch.Tensor) -> Any:
            self.runs += 1
            return graph.forward(*args)

        return run


@pytest.mark.parametrize("normalize", [False, True])
def test_encode_and_predict_run_the_compiled_model(tiny_model: MultiTaskModel, normalize: bool) -> None:
    tiny_model.config.normalize = normalize
    expected, answers = tiny_model.encode(SENTENCES), tiny_model.predict(SENTENCES, as_list=True)
    pairs = tiny_model.predict(PAIRS)["distance"]["values"]
    backend = CountingBackend()
    tiny_model.compile(backend=backend)
    try:
        np.testing.assert_allclose(tiny_model.encode(SENTENCES), expected, rtol=0, atol=1e-5)
        # PyTorch 2.7 cannot take a configuration of transformers into a graph, and makes several.
        graphs = backend.runs
        assert graphs == 1 or (graphs > 1 and torch.__version__.startswith("2.7."))
        found = tiny_model.predict(SENTENCES, as_list=True)
        assert backend.runs == 2 * graphs
        assert [row["mood"]["label"] for row in found] == [row["mood"]["label"] for row in answers]
        np.testing.assert_allclose(
            [row["rating"]["value"] for row in found],
            [row["rating"]["value"] for row in answers],
            rtol=1e-2,
            atol=1e-8,
        )
        np.testing.assert_allclose(tiny_model.predict(PAIRS)["distance"]["values"], pairs, rtol=1e-2, atol=1e-8)
        for length in range(2, 12):
            np.testing.assert_allclose(
                tiny_model.encode([f"{'dog ' * length}", "cat"])[1], tiny_model.encode("cat"), rtol=0, atol=1e-5
            )
        assert backend.graphs <= 4 * graphs, "shapes become dynamic instead of a graph for each"
    finally:
        torch._dynamo.reset()


def test_hooks_see_what_encode_and_predict_compute_and_may_change_it(tiny_model: MultiTaskModel) -> None:
    expected, ratings = tiny_model.encode(SENTENCES), tiny_model.predict(SENTENCES)["rating"]["values"]
    seen = []
    before = tiny_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    np.testing.assert_allclose(tiny_model.encode(SENTENCES), expected, rtol=0, atol=1e-5)
    assert seen == [(4, 8)]
    before.remove()

    def double(module: torch.nn.Module, args: tuple, output: Any) -> Any:
        output.sentence_embedding = 2 * output.sentence_embedding
        return output

    after = tiny_model.register_forward_hook(double)
    np.testing.assert_allclose(tiny_model.encode(SENTENCES), 2 * expected, rtol=0, atol=1e-5)
    assert np.abs(tiny_model.predict(SENTENCES)["rating"]["values"] / ratings - 1).min() > 0.1
    after.remove()
    np.testing.assert_array_equal(tiny_model.encode(SENTENCES), expected)


def test_forward_normalises_as_it_is_told(tiny_model: MultiTaskModel) -> None:
    input_ids = torch.tensor([[2, 5, 6, 3]])
    plain = tiny_model(input_ids).sentence_embedding
    unit = tiny_model(input_ids, normalize=True).sentence_embedding
    torch.testing.assert_close(unit, plain / plain.norm(dim=-1, keepdim=True))
    tiny_model.config.normalize = True
    torch.testing.assert_close(tiny_model(input_ids).sentence_embedding, unit, rtol=0, atol=0)
    torch.testing.assert_close(tiny_model(input_ids, normalize=False).sentence_embedding, plain, rtol=0, atol=0)
