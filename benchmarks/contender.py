"""One contender of benchmarks/serving.py in a process of its own: opens a model, and answers on its standard input.

    python benchmarks/contender.py "ONNX float32" FOLDER PLAIN_FOLDER THREADS

Each line in is a JSON object: `call` (`encode`, `predict`, or `answers` for predictions as a list), `sentences`,
`one_by_one`, `batch_size` (of sentence-transformers), `save` (a file for the embeddings). Each line out is one, too:
`seconds` of each call, `processor_seconds` of all of them, `labels` by task or `answers`, and `megabytes`, the most
memory that the process has had. Only what the contender needs is imported, so that the time until the first answer is
its cold start. The contenders of `OPTIMUM` run in another Python where `--optimum_python` says so.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
SENTENCE_TRANSFORMERS = "sentence-transformers torch"
OPTIMUM = ("sentence-transformers OpenVINO float32", "sentence-transformers OpenVINO")  # need optimum-intel
ONE_MODEL_A_TASK = "ONNX float32, one model a task"

Encode = Callable[[Any, int | None], Any]
Predict = Callable[..., Any]


def open_torch(dtype: str, folder: str, threads: int) -> tuple[Encode, Predict]:
    import torch
    from transformers import AutoModel

    torch.set_num_threads(threads)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=dtype).eval()
    return (lambda rows, size: model.encode(rows, size, show_progress=False)), model.predict


def open_runtime(engine: str, precision: str, folder: str, threads: int) -> tuple[Encode, Predict]:
    sys.path.insert(0, folder)
    from runtime_multitask import MultiTaskRuntime  # ty: ignore[unresolved-import] - it stands in the folder

    model = MultiTaskRuntime.from_pretrained(folder, engine, precision, threads)
    return (lambda rows, size: model.encode(rows, size, show_progress=False)), model.predict


def open_one_model_a_task(folder: str, threads: int) -> tuple[Encode, Predict]:
    """A model for each task that reads sentences, each with an encoder of its own, which reads all of them."""
    sys.path.insert(0, folder)
    from runtime_multitask import MultiTaskRuntime  # ty: ignore[unresolved-import]

    first = MultiTaskRuntime.from_pretrained(folder, "onnx", "float32", threads)
    names = [name for name, task in first.tasks.items() if not task.pair]
    models = {names[0]: first}
    for name in names[1:]:
        models[name] = MultiTaskRuntime.from_pretrained(folder, "onnx", "float32", threads)
    return (lambda rows, size: first.encode(rows, size, show_progress=False)), (
        lambda rows, **options: {name: models[name].predict(rows, head=name)[name] for name in names}
    )


def open_sentence_transformers(backend: str, plain: str, threads: int, **settings: Any) -> tuple[Encode, Predict]:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    if backend == "openvino":
        settings = {"ov_config": {"INFERENCE_NUM_THREADS": threads, **settings}}
    options: dict[str, Any] = {"backend": backend, "model_kwargs": settings}
    model = SentenceTransformer(plain, device="cpu", **options)

    def encode(rows: list[str], size: int | None) -> Any:
        return model.encode(rows, batch_size=size or 32, show_progress_bar=False)

    return encode, lambda rows, **options: {}


CONTENDERS: dict[str, Callable[[str, str, int], tuple[Encode, Predict]]] = {
    "torch float32": lambda folder, plain, threads: open_torch("float32", folder, threads),
    "torch bfloat16": lambda folder, plain, threads: open_torch("bfloat16", folder, threads),
    "ONNX float32": lambda folder, plain, threads: open_runtime("onnx", "float32", folder, threads),
    "ONNX int8": lambda folder, plain, threads: open_runtime("onnx", "int8", folder, threads),
    "OpenVINO float32": lambda folder, plain, threads: open_runtime("openvino", "float32", folder, threads),
    "OpenVINO bfloat16": lambda folder, plain, threads: open_runtime("openvino", "bfloat16", folder, threads),
    "OpenVINO int8": lambda folder, plain, threads: open_runtime("openvino", "int8", folder, threads),
    ONE_MODEL_A_TASK: lambda folder, plain, threads: open_one_model_a_task(folder, threads),
    SENTENCE_TRANSFORMERS: lambda folder, plain, threads: open_sentence_transformers("torch", plain, threads),
    OPTIMUM[0]: lambda folder, plain, threads: open_sentence_transformers(
        "openvino", plain, threads, INFERENCE_PRECISION_HINT="f32"
    ),
    OPTIMUM[1]: lambda folder, plain, threads: open_sentence_transformers("openvino", plain, threads),
}


def answer(encode: Encode, predict: Predict, request: dict[str, Any]) -> dict[str, Any]:
    sentences, call, found, seconds = request["sentences"], request["call"], [], []
    processor_seconds = time.process_time()
    for rows in sentences if request.get("one_by_one") else [sentences]:
        started = time.perf_counter()
        if call == "encode":
            found.append(encode(rows, request.get("batch_size")))
        else:
            found.append(predict(rows, as_list=call == "answers"))
        seconds.append(time.perf_counter() - started)
    content: dict[str, Any] = {"seconds": seconds, "processor_seconds": time.process_time() - processor_seconds}
    if call == "answers":
        content["answers"] = found[0]
    elif call == "predict":
        content["labels"] = {task: given["labels"] for task, given in found[0].items() if "labels" in given}
    elif request.get("save"):
        import numpy as np

        np.save(request["save"], found[0])
    return content


def peak_memory() -> float:
    """The most megabytes that this process has had; `ru_maxrss` begins with those of the process that started it."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    name, folder, plain, threads = sys.argv[1:]
    replies = os.fdopen(os.dup(1), "w")  # what libraries print does not belong among the replies
    os.dup2(2, 1)

    def reply(**content: Any) -> None:
        replies.write(json.dumps({**content, "megabytes": peak_memory()}))
        replies.write("\n")
        replies.flush()

    try:
        encode, predict = CONTENDERS[name](folder, plain, int(threads))
    except Exception as error:  # whatever the other libraries raise where something is missing
        reply(failure=" ".join(str(error).split()))
        return
    reply(seconds=[time.perf_counter() - STARTED])
    for line in sys.stdin:
        reply(**answer(encode, predict, json.loads(line)))


if __name__ == "__main__":
    main()
