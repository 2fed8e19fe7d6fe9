"""A model's answers as columns of a table, beside those of the input.

answer_columns   the columns of the answers, by name, with their types
answer_table     the answers of some rows
"""

from typing import Any

import numpy as np
import pyarrow as pa

from ..modeling_multitask import MultiTaskModel
from ..tasks_multitask import TaskConfig


def answer_columns(model: MultiTaskModel, tasks: list[str], embeddings: bool, pairs: bool) -> dict[str, pa.DataType]:
    """
    What is added to the input's columns, by name.

    Of each task `<task>_label` and `<task>_probability` (single label), `<task>_labels` and `<task>_probabilities` of
    the labels that were given (multi-label), `<task>_value` (regression), or `<task>_score` (similarity, contrastive).
    A task that knows its scope also gives `<task>_out_of_scope`, a percentile. With `embeddings` also `embedding`, or
    `embedding1` and `embedding2` of pairs: lists of a fixed size.
    """
    columns: dict[str, pa.DataType] = {}
    for name in tasks:
        kind, has_scope = model.config.tasks[name].kind, model.config.tasks[name].out_of_scope
        if kind.is_multi_label:
            columns |= {f"{name}_labels": pa.list_(pa.string()), f"{name}_probabilities": pa.list_(pa.float32())}
        elif kind.has_labels:
            columns |= {f"{name}_label": pa.string(), f"{name}_probability": pa.float32()}
        else:
            columns[f"{name}_{'value' if kind.has_head else 'score'}"] = pa.float32()
        if has_scope:
            columns[f"{name}_out_of_scope"] = pa.float32()
    if embeddings:
        names = ["embedding1", "embedding2"] if pairs else ["embedding"]
        columns |= dict.fromkeys(names, pa.list_(pa.float32(), model.config.embedding_dim))
    return columns


def _values(answer: dict[str, Any], task: TaskConfig) -> list[Any]:
    """One task's answer in the order of `answer_columns`."""
    if "labels" not in answer:
        return list(answer.values())
    labels, probabilities = answer["labels"], answer["probabilities"]
    scope = [answer["out_of_scope"]] if "out_of_scope" in answer else []
    if not task.kind.is_multi_label:
        return [labels, probabilities.max(axis=1), *scope]
    places = {label: place for place, label in enumerate(task.labels)}
    rows = zip(probabilities, labels, strict=True)
    return [labels, [own and [row[places[label]] for label in own] for row, own in rows], *scope]


def _vectors(vectors: np.ndarray) -> pa.Array:
    """`(rows, embedding_dim)` as lists of a fixed size."""
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[-1])


def answer_table(
    model: MultiTaskModel, rows: list[str] | list[tuple[str, str]], tasks: list[str], embeddings: bool, pairs: bool
) -> pa.Table:
    """The answers of rows, all of them strings or pairs, as a table with `answer_columns`."""
    schema = pa.schema(answer_columns(model, tasks, embeddings, pairs).items())
    if not rows:
        return schema.empty_table()
    answers = model.predict(rows, head=tasks, show_progress=False, embeddings=embeddings)
    vectors = answers.get("embedding")
    values = [value for name in tasks for value in _values(answers[name], model.config.tasks[name])]
    arrays = [pa.array(value, type=kind) for value, kind in zip(values, schema.types, strict=False)]
    if vectors is not None:
        arrays += [_vectors(vectors[:, 0]), _vectors(vectors[:, 1])] if pairs else [_vectors(vectors)]
    return pa.Table.from_arrays(arrays, schema=schema)


__all__ = ["answer_columns", "answer_table"]
