"""Ways to an int8 graph: what is written, and how.

    dynamic                 ONNX Runtime: int8 weights, activations quantised as they come
    static                  ONNX Runtime: int8 weights and activations, by ranges found on training text
    dynamic128, dynamic32   OpenVINO: int8 weights, activations quantised as they come, so many of a token together

All but the heads is quantised: they are small, and what they read has lost enough.
"""

import io
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.graphs import in_a_thread_of_its_own

Feeds = list[dict[str, np.ndarray]]
CALIBRATION_SENTENCES = 200


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantisers' warnings, which tell of other workflows than this one, and their bars."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def onnx_head_nodes(path: Path, embedding: str) -> list[str]:
    """Names of the nodes of an ONNX graph that read `embedding`, and what comes of it."""
    import onnx

    reached, names = {embedding}, []
    for node in onnx.load(path, load_external_data=False).graph.node:  # in the order of computation
        if reached.intersection(node.input):
            reached.update(node.output)
            # ONNX Runtime first makes a MatMul of a Gemm, under this name.
            names += [node.name, f"{node.name}_MatMul"] if node.op_type == "Gemm" else [node.name]
    return names


def openvino_head_nodes(model: Any, embedding: str) -> list[str]:
    """The same of an OpenVINO graph."""
    output = next(output for output in model.outputs if embedding in output.get_names())
    waiting, names = [output.get_node().input_value(0)], set()
    while waiting:
        for reader in waiting.pop().get_target_inputs():
            node = reader.get_node()
            if node.get_friendly_name() not in names and node.get_type_name() != "Result":
                names.add(node.get_friendly_name())
                waiting.extend(node.outputs())
    return sorted(names)


def _onnx_dynamic(source: Path, target: Path, feeds: Feeds, embedding: str) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options = {"per_channel": True, "weight_type": QuantType.QInt8}
    quantize_dynamic(source, target, nodes_to_exclude=onnx_head_nodes(source, embedding), **options)


def _onnx_static(source: Path, target: Path, feeds: Feeds, embedding: str) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    graph = onnx.load(source, load_external_data=False).graph
    weights = {weight.name for weight in graph.initializer}
    # Attention multiplies activations with each other: there int8 loses most, and gains least.
    products = [node.name for node in graph.node if node.op_type == "MatMul" and not weights.intersection(node.input)]
    quantize_static(
        source,
        target,
        Reader(),
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=[*products, *onnx_head_nodes(source, embedding)],
    )


def _openvino_dynamic(group_size: int, source: Path, target: Path, feeds: Feeds, embedding: str) -> None:
    import nncf
    import openvino

    model = openvino.Core().read_model(source)
    heads = nncf.IgnoredScope(names=openvino_head_nodes(model, embedding), validate=False)
    quantised = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM, ignored_scope=heads)
    # The file itself says how activations are quantised: so many of a token share a range.
    quantised.set_rt_info(str(group_size), ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
    openvino.save_model(quantised, os.fspath(target), compress_to_fp16=False)


# By engine: each takes a float32 graph, where to write, inputs of training text, and the output that the heads read.
METHODS: dict[str, dict[str, Callable[[Path, Path, Feeds, str], None]]] = {
    "onnx": {"dynamic": _onnx_dynamic, "static": _onnx_static},
    "openvino": {"dynamic128": partial(_openvino_dynamic, 128), "dynamic32": partial(_openvino_dynamic, 32)},
}
INT8_FILES = {"onnx": "model_int8.onnx", "openvino": "openvino_model_int8.xml"}


def quantise(engine: str, method: str, source: Path, target: Path, feeds: Feeds, embedding: str) -> None:
    """Write an int8 graph beside nothing: its weights stand in `target` itself (.onnx), or next to it (.xml)."""
    with _quiet():
        in_a_thread_of_its_own(METHODS[engine][method], source, target, feeds, embedding)
