"""The counted pass: a stream is read once, and all that is learnt of its rows but their texts is kept.

StreamCounter   a stream to a part with label cells, and numbers in place of texts
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Features, Value
from datasets.utils import tqdm

from ..files.parts import Part, roots_of
from ..files.streams import CountedPart, StandIns, Stream
from ..rows.canonical import ROW_COLUMN, RowsWriter
from ..sources.loading import REVIEWS
from ..sources.task_source import TaskSource, sentence_columns
from ..text.half_characters import REPLACEMENT
from ..text.sameness import TEXT_RULES

logger = logging.getLogger(__name__)

OWN_PREFIX = "counted "  # before the names of our columns, among those of the file


def _columns_to_keep(sources: Sequence[TaskSource], piece: Part) -> list[str]:
    """The columns with labels and conditions, after a look at all that the tasks name."""
    kept: dict[str, None] = {}
    for source in sources:
        for key, names in source.columns.items():
            for name in names if isinstance(names, list) else [names]:
                piece.column(source.name, key, name)  # which tells of a column that is missing
                if key == "label":
                    kept |= dict.fromkeys(roots_of(name, piece.rows.column_names))
                else:
                    piece.check_texts(source.name, key, name)
        for name in source.where or {}:
            piece.column(source.name, f"where.{name}", name)
            kept |= dict.fromkeys(roots_of(name, piece.rows.column_names))
    return [*kept, *(name for name in REVIEWS if name in piece.rows.column_names and name not in kept)]


class StreamCounter:
    """
    Reads streams to their ends, one after another.

    Args:
        sources: tasks that read the same texts.
        folder: takes what is kept, and may be removed once labels are read.
    """

    def __init__(self, sources: Sequence[TaskSource], folder: Path):
        self.sources, self.folder = sources, folder
        self.rows = self.streams = 0

    def __call__(self, stream: Stream) -> CountedPart:
        """
        What is known of a stream.

        Raises:
            ValueError: it cannot be read, it holds no rows, or a column is missing.
        """
        part = _count(self.sources, stream, self.rows, self.folder / f"{self.streams}.arrow")
        self.rows, self.streams = self.rows + len(part.rows), self.streams + 1
        return part


def _count(sources: Sequence[TaskSource], stream: Stream, first_row: int, path: Path) -> CountedPart:
    """The rows of the stream are numbered from `first_row` on."""
    source, columns = sources[0], sentence_columns(sources[0])
    rules = list(TEXT_RULES.values())[: len(columns)]  # by which such rows are compared
    numbers = {name: OWN_PREFIX + name for name in (ROW_COLUMN, *(rule.__name__ for rule in rules))}
    stand_ins = [StandIns() for _ in columns]
    writer, kept, count, spoilt = None, [], 0, []
    with tqdm(desc=f"Counting {stream.where}", unit=" rows") as bar:
        for piece in stream.pieces():
            rows = piece.rows
            if writer is None:
                kept = _columns_to_keep(sources, piece)
                features = {name: rows.features[name] for name in kept}
                writer = RowsWriter(path, Features(features | dict.fromkeys(numbers.values(), Value("int64"))))
            if stream.look is not None:
                stream.look(rows, count)
            cells = [piece.column(source.name, key, name)[:] for key, name in columns]
            is_text = np.logical_and.reduce([own.add(found) for own, found in zip(stand_ins, cells, strict=True)])
            texts = [row if whole else () for row, whole in zip(zip(*cells, strict=True), is_text, strict=True)]
            spoilt += [row for row, own in enumerate(texts, count) if any(REPLACEMENT in text for text in own)]
            found = {name: rows.data.column(name) for name in kept}
            found[numbers[ROW_COLUMN]] = pa.array(np.arange(first_row + count, first_row + count + len(rows)))
            for rule in rules:
                found[numbers[rule.__name__]] = pa.array(np.fromiter(map(rule, texts), np.int64, len(rows)))
            writer.write(found)
            count += len(rows)
            bar.update(len(rows))
    if writer is None:
        raise ValueError(f"Task {source.name!r}: {stream.where} holds no rows. Add rows, or name other files.")
    if stream.finish is not None:
        stream.finish(count)
    if spoilt:
        logger.info(
            f"{source.name}: U+FFFD, as halves of characters are read, stands in {len(spoilt)} rows of "
            f"{stream.where}, first in row {spoilt[0] + 1}"
        )
    stand_for = {(key, str(name)): own.cells() for (key, name), own in zip(columns, stand_ins, strict=True)}
    return CountedPart(stream.where, writer.close(), **stream.options, texts=stand_for, numbers=numbers)


__all__ = ["StreamCounter"]
