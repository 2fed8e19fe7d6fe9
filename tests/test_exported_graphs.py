"""Traced, exported and compiled models: they take any lengths, answer as the model does, and log nothing."""

from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from multitask_sentence import MultiTaskModel, passes_multitask
from multitask_sentence.modeling_multitask import MultiTaskForSequenceClassification


def batch(*lengths: int) -> dict[str, torch.Tensor]:
    """Token ids and a mask of sentences of these lengths."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    generator = torch.Generator().manual_seed(sum(lengths))
    return {"input_ids": torch.randint(5, 99, mask.shape, generator=generator), "attention_mask": mask}


# PyTorch 2.7 cannot take a configuration of transformers into a graph.
OLD = torch.__version__.startswith("2.7.")
ONE_GRAPH = pytest.mark.skipif(OLD, reason="PyTorch 2.7 breaks the graph at transformers' configuration")

EXAMPLE = batch(7, 4, 2)
OTHERS = [batch(7, 3, 3), batch(7, 2, 4), batch(9, 5), batch(1, 12, 6, 3)]  # the first two have the example's sum


@pytest.fixture
def model(tiny_model: MultiTaskModel) -> MultiTaskModel:
    assert tiny_model.padding_free, "otherwise nothing is tried here"
    return tiny_model


def assert_equal_where_there_are_tokens(
    found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...], mask: torch.Tensor
) -> None:
    assert len(found) == len(expected)
    for got, wanted in zip(found, expected, strict=True):
        is_token_states = wanted.dim() == 3
        got, wanted = (got[mask.bool()], wanted[mask.bool()]) if is_token_states else (got, wanted)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_traced_model_answers_other_lengths_as_the_model_does(model: MultiTaskModel, tmp_path: Path) -> None:
    expected = [model(**inputs, return_dict=False) for inputs in OTHERS]
    model.config.return_dict = False
    torch.jit.trace(model, example_kwarg_inputs=EXAMPLE, check_trace=False).save(tmp_path / "traced.pt")
    traced = torch.jit.load(tmp_path / "traced.pt")
    for inputs, wanted in zip(OTHERS, expected, strict=True):
        assert_equal_where_there_are_tokens(traced(**inputs), wanted, inputs["attention_mask"])


@torch.no_grad()
def test_model_without_tokenizer_is_traced_as_one_with_it(model: MultiTaskModel) -> None:
    model.config.return_dict = False
    bare = MultiTaskModel(model.config).eval()
    bare.load_state_dict(model.state_dict())
    assert "tokenizer" in dir(model)
    assert "tokenizer" not in dir(bare)
    traced = torch.jit.trace(bare, example_kwarg_inputs=EXAMPLE, check_trace=False)
    for inputs in OTHERS:
        assert_equal_where_there_are_tokens(traced(**inputs), model(**inputs), inputs["attention_mask"])
    with pytest.raises(ValueError, match="has no tokenizer yet"):
        bare.tokenizer  # noqa: B018 - that it is not listed changes nothing for whoever asks


@torch.no_grad()
def test_traced_view_of_one_head_answers_other_lengths(model: MultiTaskModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    view = MultiTaskForSequenceClassification.from_pretrained(tmp_path, task="mood", return_dict=False)
    traced = torch.jit.trace(view, example_kwarg_inputs=EXAMPLE)
    for inputs in OTHERS:
        expected = model(**inputs, task="mood").logits["mood"]
        torch.testing.assert_close(traced(**inputs)[0], expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=ONE_GRAPH)])
def test_exported_model_answers_other_batches_and_lengths(model: MultiTaskModel, strict: bool) -> None:
    sizes = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("sequence", min=1, max=20)}
    shapes = dict.fromkeys(EXAMPLE, sizes)
    exported = torch.export.export(model, (), kwargs=EXAMPLE, dynamic_shapes=shapes, strict=strict).module()
    for inputs in OTHERS:
        found = exported(**inputs).to_tuple()
        assert_equal_where_there_are_tokens(found, model(**inputs).to_tuple(), inputs["attention_mask"])


@ONE_GRAPH
@torch.no_grad()
def test_model_compiles_to_one_whole_graph_without_logging(
    model: MultiTaskModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [model(**inputs).to_tuple() for inputs in OTHERS]
    lines: list[str] = []
    monkeypatch.setattr(passes_multitask.logger, "info_once", lines.append)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for inputs, wanted in zip(OTHERS, expected, strict=True):
        assert_equal_where_there_are_tokens(compiled(**inputs).to_tuple(), wanted, inputs["attention_mask"])
    assert lines == []


@ONE_GRAPH
def test_compiled_training_has_two_graphs_however_lengths_change(model: MultiTaskModel) -> None:
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model.train(), backend="eager")
    for step, lengths in enumerate([(9, 4, 4, 2), (5, 5, 3, 2), (8, 7, 6, 6), (12, 2, 9, 3), (3, 3, 3, 10)]):
        rows = {"mood": torch.arange(2 + step % 2), "similarity": torch.tensor([[2, 3]])}
        logits = compiled(**batch(*lengths), task_rows=rows).logits
        (logits["mood"].sum() + logits["similarity"].sum()).backward()
    assert dict(counters["graph_break"]) == {}
    assert counters["stats"]["unique_graphs"] <= 2  # one for the first lengths, one for all
    torch._dynamo.reset()


@torch.no_grad()
def test_onnx_model_has_the_names_and_the_answers(model: MultiTaskModel, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    sizes = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("sequence", min=1, max=20)}
    expected = [model(**inputs, return_dict=False) for inputs in OTHERS]
    model.config.return_dict = False
    torch.onnx.export(
        model,
        (),
        str(tmp_path / "model.onnx"),
        kwargs=EXAMPLE,
        dynamo=True,
        output_names=model.output_names(),
        dynamic_shapes=dict.fromkeys(EXAMPLE, sizes),
    )
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [output.name for output in session.get_outputs()] == model.output_names()
    for inputs, wanted in zip(OTHERS, expected, strict=True):
        found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        found = tuple(map(torch.from_numpy, found))
        assert_equal_where_there_are_tokens(found, wanted, inputs["attention_mask"])
