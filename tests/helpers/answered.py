"""Which chunks a labelling job computes: those of which no part was left."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from multitask_sentence.labelling import inputs, job


@contextmanager
def answered_chunks() -> Iterator[list[int]]:
    """The numbers of the chunks that are answered in this process meanwhile, in no order."""
    answer, numbers = job.ChunkLabeller.__call__, []

    def answer_and_note(self: job.ChunkLabeller, chunk: inputs.Chunk) -> object:
        numbers.append(chunk.number)
        return answer(self, chunk)

    with mock.patch.object(job.ChunkLabeller, "__call__", answer_and_note):
        yield numbers
