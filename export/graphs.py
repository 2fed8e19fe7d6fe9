"""The model as graphs: a batch of sentences, and pairs of their embeddings.

SentenceGraph, PairGraph   what is traced
trace                      a graph as an ONNX model, by transformers' own exporter
save_onnx, save_openvino   its files
"""

import contextlib
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..heads_multitask import task_logits
from ..modeling_multitask import MultiTaskModel

EXAMPLE_SENTENCES = 3  # neither 1, which a trace may take for a constant, nor the length of one of them
EXAMPLE_TOKENS = 7
LARGEST_FILE = 1_900_000_000  # bytes; protobuf ends at 2 GiB, so weights beyond it go into a file of their own
# They tell of every step, of packages that they were not tried with, and of torchvision.
NOISY_LOGGERS = ("transformers.exporters", "torch.onnx", "torch.export", "onnxscript", "onnx_ir")
BATCH = torch.export.Dim("batch", min=1, max=1_000_000)


class SentenceGraph(nn.Module):
    """
    Tokens to the sentence embedding and the logits of every task that reads single sentences.

    Outputs: `sentence_embedding (batch, embedding_dim)` as `forward` gives it; where that has length 1, also
    `unnormalized_embedding`, which pairs are compared by; and `logits.TASK` for each task, in its units.
    """

    model: MultiTaskModel

    def __init__(self, model: MultiTaskModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        _, pooled = self.model._backbone_pass(attention_mask, {"input_ids": input_ids}, {})
        embedding = self.model._project(pooled)
        if self.model.config.normalize:
            found = {"sentence_embedding": F.normalize(embedding, dim=-1), "unnormalized_embedding": embedding}
        else:
            found = {"sentence_embedding": embedding}
        names = [name for name, task in self.model.config.tasks.items() if not task.pair]
        logits = task_logits(self.model, embedding, names)
        return found | {f"logits.{name}": logits[name] for name in names}


class PairGraph(nn.Module):
    """
    Two embeddings that were not normalised, `(pairs, embedding_dim)` each, to `logits.TASK` of every pair task.

    Similarity and contrastive tasks give the cosine `(pairs,)`.
    """

    model: MultiTaskModel

    def __init__(self, model: MultiTaskModel):
        super().__init__()
        self.model = model

    def forward(self, embedding1: torch.Tensor, embedding2: torch.Tensor) -> dict[str, torch.Tensor]:
        names = [name for name, task in self.model.config.tasks.items() if task.pair]
        pairs = torch.arange(2 * embedding1.shape[0]).reshape(2, -1).T  # (pairs, 2): places in both, one after another
        logits = task_logits(self.model, torch.cat([embedding1, embedding2]), names, dict.fromkeys(names, pairs))
        return {f"logits.{name}": logits[name] for name in names}


Graph = SentenceGraph | PairGraph


def graphs_of(model: MultiTaskModel) -> dict[str, Graph]:
    """The graphs that a model needs by their names: `sentences`, and `pairs` where a task compares two."""
    has_pairs = any(task.pair for task in model.config.tasks.values())
    graphs: dict[str, Graph] = {"sentences": SentenceGraph(model)}
    return graphs | {"pairs": PairGraph(model)} if has_pairs else graphs


def _example(graph: Graph) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Inputs to trace with, and which of their sizes may change."""
    if isinstance(graph, PairGraph):
        size = graph.model.config.embedding_dim
        generator = torch.Generator().manual_seed(0)
        sides = torch.randn(2, EXAMPLE_SENTENCES, size, generator=generator)
        inputs = {"embedding1": sides[0], "embedding2": sides[1]}
        return inputs, {name: {0: BATCH} for name in inputs}
    config = graph.model.config
    tokens = min(EXAMPLE_TOKENS, config.max_length)
    input_ids = torch.arange(EXAMPLE_SENTENCES * tokens).reshape(EXAMPLE_SENTENCES, tokens) % config.vocab_size
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, tokens - 1 :] = 0  # padding, which a trace without any might leave out
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    length = torch.export.Dim("length", min=1, max=max(2, config.max_length))
    return inputs, {name: {0: BATCH, 1: length} for name in inputs}


@contextlib.contextmanager
def _plain_attention(model: MultiTaskModel) -> Iterator[None]:
    """Attention written out as products and a softmax: engines know that form, and fuse it."""
    config = model.backbone.config
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


def trace(graph: Graph) -> Any:
    """
    The graph as an ONNX model (`onnx_ir.Model`) in float32; batch and length may be any.

    Raises:
        ImportError: a package is missing.
        ValueError: something in the model cannot be exported; says what.
    """
    try:
        from transformers.exporters import OnnxConfig, OnnxExporter
    except ImportError as error:
        raise ImportError("export needs transformers 5.23 or newer: pip install 'transformers>=5.23'.") from error
    inputs, shapes = _example(graph)
    backbone = graph.model.config.backbone_config.model_type
    noisy = [logging.getLogger(name) for name in NOISY_LOGGERS]
    levels = [logger.level for logger in noisy]
    try:
        for logger in noisy:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _plain_attention(graph.model):
            warnings.simplefilter("ignore")
            exporter: Any = OnnxExporter()  # which takes any module, whatever its type says
            exported = exporter.export(graph.eval(), inputs, OnnxConfig(dynamic_shapes=shapes))
    except ImportError as error:
        raise ImportError(f"export needs onnx and onnxscript: pip install onnx onnxscript ({error}).") from error
    except Exception as error:  # torch.export and onnxscript raise whatever they meet
        said = " ".join(str(error.__cause__ or error).split())
        raise ValueError(
            f"{backbone} cannot be exported as a graph: {type(error.__cause__ or error).__name__}: {said[:600]}"
        ) from error
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)
    _name_sizes(exported.program, shapes)
    return exported.program


def _name_sizes(program: Any, shapes: dict[str, Any]) -> None:
    """Give sizes that may change the names of `shapes` everywhere; torch calls them s43 or the like."""
    names = {}
    for value in program.graph.inputs:
        for axis, dimension in shapes[value.name].items():
            names[value.shape[axis].value] = dimension.__name__
    inner = (output for node in program.graph.all_nodes() for output in node.outputs)
    for value in (*program.graph.inputs, *inner):
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and size.value is not None:
                value.shape[axis] = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), size.value)


def save_onnx(program: Any, path: Path) -> None:
    """Write an ONNX model to one file, or its weights beside it as `<path>.data` where they are too large for one."""
    import onnx_ir

    size = sum(
        value.const_value.nbytes for value in program.graph.initializers.values() if value.const_value is not None
    )
    onnx_ir.save(program, path, external_data=f"{path.name}.data" if size > LARGEST_FILE else None)


def save_openvino(onnx_path: Path, path: Path) -> None:
    """Convert an ONNX file to OpenVINO's .xml and .bin, in float32."""
    import openvino

    openvino.save_model(openvino.Core().read_model(onnx_path), os.fspath(path), compress_to_fp16=False)
