"""Work and memory that must not grow faster than the data: wrong rows, changed labels, arrays on a full disk."""

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, Features, Value

from multitask_sentence.data.cache.arrays import BATCH_ROWS, cached_text, write_array
from multitask_sentence.data.cache.sets import open_split
from multitask_sentence.data.rows.canonical import RowsWriter, rewrite
from multitask_sentence.data.text import problems as problems_module
from multitask_sentence.data.text.problems import CellError, Problems

FEATURES = Features({"label_mood": Value("int64")})


class Counted(dict):
    """A mapping that counts how often somebody goes through it."""

    times = 0

    def __iter__(self) -> Iterator[Any]:
        self.times += 1
        return super().__iter__()

    def items(self) -> Any:
        self.times += 1
        return super().items()


def test_changed_labels_are_gone_through_once_and_stand_in_their_rows() -> None:
    count = 3 * BATCH_ROWS + 5
    rows = Dataset.from_dict({"label_mood": np.arange(count)}, FEATURES)
    changed = Counted({count - 1: -1, BATCH_ROWS: None, 7: -2, BATCH_ROWS - 1: -3})
    found = rewrite(rows, RowsWriter(None, FEATURES), np.arange(count) != 5, {"label_mood": changed})
    expected = [changed.get(row, row) for row in range(count) if row != 5]
    assert found["label_mood"][:] == expected
    assert changed.times == 1


def test_wrong_rows_are_known_one_by_one_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems_module, "MOST_KNOWN", 20)
    error, found = CellError("found 'x'.", "Correct the row."), Problems()
    for _ in range(2):  # splits, which read the same file
        for row in range(20):
            found.add("rows.csv", row, error)
    with pytest.raises(ValueError, match=r"^rows\.csv, row 1: .*\n20 cells cannot be read") as caught:
        found.raise_all()
    assert "  and 10 more\n" in f"{caught.value}\n"
    for row in range(20, 1000):
        found.add("rows.csv", row, error)
    assert len(found.known) <= 21
    with pytest.raises(ValueError, match=r"\nmore than 20 cells cannot be read") as caught:
        found.raise_all()
    assert "  and more\n" in f"{caught.value}\n"


@pytest.mark.parametrize("kind", ["text", "array"])
def test_a_full_disk_is_told_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    writer = RowsWriter(tmp_path / "train.arrow", FEATURES)
    writer.write({"label_mood": pa.array([1, 2])})
    writer.close()
    rows = open_split(tmp_path / "train.arrow")

    def full(path: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=rf"{tmp_path}: the disk is full\. Make room, or set HF_DATASETS_CACHE"):
        if kind == "text":
            cached_text(rows, "words", lambda: "long")
        else:
            write_array(rows, "numbers", [np.arange(2)])
    assert [path.name for path in tmp_path.iterdir()] == ["train.arrow"]
