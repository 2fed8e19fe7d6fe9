"""The doors that a saved folder is opened through, and what they answer. Run as a file, it opens one of them.

    python commands/_doors.py SOURCE DOOR OUT

It imports nothing of this package, so that what opens here opens for somebody who has only the folder.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

SENTENCES = [
    "The committee will publish its findings in spring.",
    "I would happily stay here again!",
    "Prices went up; nobody was surprised, least of all the shopkeepers around the corner from the old station.",
    "Cafe, naive, emoji \N{ROCKET} and a little \N{ARABIC LETTER ALEF}\N{ARABIC LETTER LAM}.",
    "",
    "\t\n ",
    "one\N{ZERO WIDTH SPACE}word e\N{COMBINING ACUTE ACCENT} \N{REPLACEMENT CHARACTER} <s> [SEP] </s>\N{NULL}",
    "It took so long that nobody could say any more how it had begun. " * 80,  # more than 1,000 tokens
]
MOST_HEADS = 10  # that the sequence classifier is opened for: each opens the whole model
FLOAT32 = {"trust_remote_code": True, "dtype": "float32"}


def _tasks(config: Any) -> dict[str, dict[str, Any]]:
    """Task settings as config.json has them: the code beside the weights may be of any version."""
    return config.to_dict()["tasks"]


def _auto_model(source: str) -> dict[str, Any]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(source, **FLOAT32)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=True)
    with torch.no_grad():
        output = model(**tokenizer(SENTENCES, padding=True, return_tensors="pt"))
    found = {"embedding": output.sentence_embedding}
    tasks = _tasks(model.config)
    for task, logits in output.logits.items():
        if tasks[task].get("labels"):
            logits = logits / torch.tensor(tasks[task].get("temperatures") or [1.0])  # as `predict` calibrates
            is_multi_label = tasks[task]["problem_type"] == "multi_label_classification"
            logits = logits.sigmoid() if is_multi_label else logits.softmax(dim=-1)
        found[task] = logits
    return {name: values.float().numpy() for name, values in found.items()}


def _auto_config(source: str) -> dict[str, Any]:
    from transformers import AutoConfig

    AutoConfig.from_pretrained(source, trust_remote_code=True)
    return {}


def _encode_and_predict(source: str) -> dict[str, Any]:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(source, **FLOAT32)
    answers = model.predict(SENTENCES)
    found = {task: answer.get("probabilities", answer.get("values")) for task, answer in answers.items()}
    return {"embedding": model.encode(SENTENCES), **found}


def _sequence_classification(source: str) -> dict[str, Any]:
    from transformers import AutoConfig, pipeline

    found, tasks = {}, _tasks(AutoConfig.from_pretrained(source, trust_remote_code=True))
    fitting = [task for task, settings in tasks.items() if settings.get("labels") and not settings["pair"]]
    for task in fitting[:: -(-len(fitting) // MOST_HEADS) or 1]:
        classify = pipeline("text-classification", model=source, model_kwargs={"head": task}, **FLOAT32)
        answers = classify(SENTENCES, top_k=None)
        rows = [{row["label"]: row["score"] for row in rows} for rows in answers]
        found[task] = np.array([[row[label] for label in tasks[task]["labels"]] for row in rows])
    return found


def _multitask_pipeline(source: str) -> dict[str, Any]:
    from transformers import pipeline

    rows = pipeline("multitask", model=source, **FLOAT32)(SENTENCES)
    found: dict[str, list] = {}
    for row in rows:
        for name, answer in row.items():
            scores = answer if name == "embedding" else answer.get("scores", answer.get("value"))
            found.setdefault(name, []).append(list(scores.values()) if isinstance(scores, dict) else scores)
    return {name: np.array(values) for name, values in found.items()}


def _feature_extraction(source: str) -> dict[str, Any]:
    from transformers import pipeline

    pipeline("feature-extraction", model=source, **FLOAT32)(SENTENCES)
    return {}


def _sentence_transformer(source: str) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(source, trust_remote_code=True, model_kwargs={"dtype": "float32"})
    return {"embedding": model.encode(SENTENCES)}


def _runtime(engine: str, source: str) -> dict[str, Any]:
    """The runtime that stands in the folder, in a process that imports no torch; all files are hashed."""
    import hashlib

    if not os.path.isdir(source):
        from huggingface_hub import hf_hub_download

        sys.path.insert(0, os.path.dirname(hf_hub_download(source, "runtime_multitask.py")))
    else:
        sys.path.insert(0, source)
    from runtime_multitask import MultiTaskRuntime  # ty: ignore[import-not-found] - it stands in the folder

    model = MultiTaskRuntime.from_pretrained(source, engine=engine)
    for name, expected in model.record["files"].items():
        path = model.folder / engine / name
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != expected["sha256"]:
            raise ValueError(f"{path} is damaged: it is not what was exported. Export again.")
    answers = model.predict(SENTENCES, embeddings=True)
    embedding = answers.pop("embedding")
    return {
        "embedding": embedding,
        **{task: found.get("probabilities", found.get("values")) for task, found in answers.items()},
    }


# The first is what the others are compared with.
DOORS: dict[str, Callable[[str], dict[str, Any]]] = {
    "AutoModel": _auto_model,
    "AutoConfig": _auto_config,
    "model.encode, model.predict": _encode_and_predict,
    'pipeline("text-classification")': _sequence_classification,
    'pipeline("multitask")': _multitask_pipeline,
    'pipeline("feature-extraction")': _feature_extraction,
    "SentenceTransformer": _sentence_transformer,
    "MultiTaskRuntime (onnx)": partial(_runtime, "onnx"),
    "MultiTaskRuntime (openvino)": partial(_runtime, "openvino"),
}

if __name__ == "__main__":
    source, door, out = sys.argv[1:]
    # With a prefix: a task may be called `file`, which is an argument of savez.
    np.savez(out, **{f"of {name}": values for name, values in DOORS[door](source).items()})
