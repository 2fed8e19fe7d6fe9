"""A model's answers as columns of a table, beside those of the input.

column_types     the columns of the answers, by name, with their types
answer_table     the answers of some rows
"""

from typing import Any

import numpy as np
import pyarrow as pa

from ..answers_multitask import answer_columns
from ..modeling_multitask import MultiTaskModel


def column_types(model: MultiTaskModel, tasks: list[str], embeddings: bool, pairs: bool) -> dict[str, pa.DataType]:
    """
    What is added to the input's columns, by name.

    Of each task those of `answers_multitask.answer_columns`. With `embeddings` also `embedding`, or `embedding1` and
    `embedding2` of pairs: lists of a fixed size.
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


def _vectors(vectors: np.ndarray) -> pa.Array:
    """`(rows, embedding_dim)` as lists of a fixed size."""
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[-1])


def answer_table(
    model: MultiTaskModel, rows: list[str] | list[tuple[str, str]], tasks: list[str], embeddings: bool, pairs: bool
) -> pa.Table:
    """The answers of rows, all of them strings or pairs, as a table with `column_types`."""
    schema = pa.schema(column_types(model, tasks, embeddings, pairs).items())
    if not rows:
        return schema.empty_table()
    answers = model.predict(rows, head=tasks, show_progress=False, embeddings=embeddings)
    vectors = answers.get("embedding")
    columns: dict[str, Any] = {}
    for name in tasks:
        columns |= answer_columns(name, model.config.tasks[name], answers[name])
    arrays = [pa.array(value, type=schema.field(name).type) for name, value in columns.items()]
    if vectors is not None:
        arrays += [_vectors(vectors[:, 0]), _vectors(vectors[:, 1])] if pairs else [_vectors(vectors)]
    return pa.Table.from_arrays(arrays, schema=schema)


__all__ = ["answer_table", "column_types"]
