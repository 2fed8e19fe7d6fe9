"""What computes a graph: ONNX Runtime or OpenVINO, whichever it was exported for.

Each takes arrays by the names of the graph's inputs, and gives those of the named outputs. Each says how many tokens
it computes fast at once (`tokens_per_pass`), and how many of them may be padding before a further pass is cheaper
(`most_padding`).
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np


def in_a_thread_of_its_own(function: Callable[..., Any], *arguments: Any) -> Any:
    """
    What a function returns, called in a new thread. Whatever loads OpenVINO goes through here.

    OpenVINO 2026.4 gives the thread that loads it another stack for signal handlers, and takes it back with its core.
    Where cores do not go in the reverse of the order in which they came, the thread is left with a freed stack. The
    next signal that Python handles then kills the process without a word: SIGTERM, or the end of a child process once
    PyTorch's `DataLoader` has had workers. Here it is the new thread that gets the stack, and it ends.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(function, *arguments).result()


class OnnxGraph:
    """A graph on ONNX Runtime; calls from several threads are safe."""

    package = "onnxruntime"
    # As measured: a pass starts cheaply, and what it computes should stay in a core's own cache.
    tokens_per_pass = 768
    most_padding = 16

    def __init__(self, path: Path, precision: str, threads: int | None, shares_cores: bool = False):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        # Threads ask again and again for more to do, which is fast where nobody else needs their cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(not shares_cores)))
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
        return [np.asarray(found) for found in self.session.run(outputs, inputs)]


class OpenVINOGraph:
    """A graph on OpenVINO; calls from several threads are safe."""

    package = "openvino"
    # As measured: it makes itself ready for every new shape of a batch, so fewer passes are better.
    tokens_per_pass = 2048
    most_padding = 64

    def __init__(self, path: Path, precision: str, threads: int | None, shares_cores: bool = False):
        import openvino

        # Where nothing is said, OpenVINO computes in bfloat16 on CPUs that have it.
        settings = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        self.compiled = in_a_thread_of_its_own(core.compile_model, core.read_model(path), "CPU", settings)
        self.local = threading.local()  # a request serves one thread

    def __call__(self, inputs: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
        if not hasattr(self.local, "request"):
            self.local.request = self.compiled.create_infer_request()
        found = self.local.request.infer(inputs)
        return [np.array(found[name], dtype=np.float32) for name in outputs]


GRAPHS = {"onnx": OnnxGraph, "openvino": OpenVINOGraph}


def open_graph(engine: str, path: Path, precision: str, threads: int | None, shares_cores: bool) -> Any:
    """
    A graph, ready to compute.

    Raises:
        OSError: the file is missing.
        ValueError: the engine cannot read it.
        ImportError: the engine is not installed.
    """
    if not path.is_file():
        raise OSError(f"{path} is missing. Download it, or export, again.")
    try:
        return GRAPHS[engine](path, precision, threads, shares_cores)
    except ImportError:
        raise
    except Exception as error:  # each engine has errors of its own
        said = " ".join(str(error).split())
        raise ValueError(
            f"{path}: {engine} cannot read the graph ({said:.300}). If it is damaged, download it, or export, again."
        ) from error
