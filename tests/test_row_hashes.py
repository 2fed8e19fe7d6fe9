"""Which rows a model has seen: kept beside it, and looked at by a run that goes on from it."""

import io
import random
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import yaml
from datasets import Dataset
from pyarrow import parquet

from multitask_sentence.data.rows.held_out import announce_trained_on
from multitask_sentence.data.rows.row_hashes import (
    ROW_HASHES_FILE,
    RowHashes,
    collect_row_hashes,
    read_row_hashes,
    write_row_hashes,
)
from multitask_sentence.data.rows.sets import LabelledSet, LoadedTasks
from multitask_sentence.data.rows.sides import SIDES, UNSETTLED, Sides
from multitask_sentence.data.text import sameness
from multitask_sentence.data.text.sameness import row_hash
from multitask_sentence.train import run


@pytest.fixture(scope="module", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("datasets-cache")
    before, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, cache
    yield cache
    datasets.config.HF_DATASETS_CACHE = before


def split(rows: list[list[str]], **labels: list[Any]) -> Dataset:
    return Dataset.from_dict({"sentences": rows, **{f"label_{task}": own for task, own in labels.items()}})


def one_set() -> LabelledSet:
    train = split([["A  dog."], ["a cat"], ["a bird"]], mood=[0, 1, None], topic=[None, 0, 1])
    return LabelledSet(["mood", "topic"], {"train": train, "test": split([["a fish"]], mood=[0], topic=[None])})


def hashes(*texts: str) -> np.ndarray:
    return np.array(sorted(row_hash([text]) for text in texts), np.int64)


def as_lists(rows: dict[tuple[str, str], np.ndarray]) -> dict[tuple[str, str], list[int]]:
    return {key: own.tolist() for key, own in rows.items()}


def as_sets(rows: dict[tuple[str, str], np.ndarray]) -> dict[tuple[str, str], set[int]]:
    return {key: set(own) for key, own in as_lists(rows).items()}


def split_of(sides: Sides, text: str) -> str | None:
    side = int(sides.find(hashes(text))[0])
    return None if side == UNSETTLED else SIDES[side]


# ---- what is kept ----


def test_hashes_are_found_among_ascending_ones_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sameness, "BATCH_ROWS", 3)
    hashes = np.array([9, -4, 5, 0, 5, 7, 8])
    for known in ([], [5], [-9, -4, 5, 9], [10]):
        assert sameness.among(hashes, np.array(known, np.int64)).tolist() == [number in known for number in hashes]
    assert sameness.distinct(np.array([1, 1, 2, 5, 5])).tolist() == [1, 2, 5]


def test_rows_are_kept_by_task_and_split_for_the_tasks_that_train() -> None:
    assert as_lists(collect_row_hashes("run", [one_set()], ["mood", "topic"]).rows) == {
        ("mood", "train"): hashes("a dog.", "a cat").tolist(),
        ("topic", "train"): hashes("a cat", "a bird").tolist(),
        ("mood", "test"): hashes("a fish").tolist(),
        ("topic", "test"): [],
    }
    assert ("topic", "train") not in collect_row_hashes("run", [one_set()], ["mood"]).rows


def test_rows_of_an_earlier_model_are_kept_too_and_what_was_trained_on_once_stays_so() -> None:
    earlier = RowHashes("before", {("old", "train"): hashes("a fish"), ("mood", "validation"): hashes("a cat", "x")})
    kept = collect_row_hashes("run", [one_set()], ["mood", "topic"], earlier)
    found, sides = as_lists(kept.rows), kept.sides()
    assert found["old", "train"] == hashes("a fish").tolist()
    assert found["mood", "test"] == [], "the earlier model was trained on it"
    assert found["mood", "validation"] == hashes("x").tolist(), "this one is trained on the cat"
    assert [split_of(sides, text) for text in ("a fish", "a dog.", "a cat", "a bird")] == ["train"] * 4
    assert [split_of(sides, text) for text in ("x", "an owl")] == ["validation", None]
    assert kept.is_complete


def test_a_pair_counts_in_either_order_and_a_contrastive_row_by_anchor_and_positive() -> None:
    assert row_hash(["A dog", "a  cat"]) == row_hash(["a cat", "a dog"]) != row_hash(["a cat", "a cow"])
    assert row_hash(["a", "b", "not c"]) == row_hash(["b", "a", "not d"])
    assert row_hash(["a b"]) != row_hash(["a", "b"])


def test_the_file_holds_eight_bytes_a_row_and_comes_back(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = {
        ("mood", "train"): np.sort([draw.randrange(-(2**63), 2**63) for _ in range(20_000)]),
        ("mood", "test"): np.array([-2, 1]),
    }
    write_row_hashes(tmp_path, RowHashes("run", rows))
    file = tmp_path / ROW_HASHES_FILE
    assert file.stat().st_size < 8 * 20_002 + 4_000
    found = read_row_hashes(str(tmp_path))
    assert (found.name, as_lists(found.rows), found.is_complete) == (str(tmp_path), as_lists(rows), True)
    assert list(pd.read_parquet(file).columns) == ["task", "split", "hash"]
    write_row_hashes(tmp_path, RowHashes("run", {}, is_complete=False))
    assert read_row_hashes(str(tmp_path)) == RowHashes(str(tmp_path), {}, is_complete=False)
    assert [path.name for path in tmp_path.iterdir()] == [ROW_HASHES_FILE]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write_row_hashes(tmp_path, RowHashes("run", {("mood", "train"): np.array([1, 2, 3])}))
    file = tmp_path / ROW_HASHES_FILE
    for content in (file.read_bytes()[:100], b"", b"PAR1" * 20):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"row_hashes.parquet is damaged .* or delete it"):
            read_row_hashes(str(tmp_path))
    pd.DataFrame({"text": ["a"]}).to_parquet(file)
    with pytest.raises(ValueError, match=r"row_hashes.parquet is damaged"):
        read_row_hashes(str(tmp_path))


def test_one_flipped_bit_among_the_hashes_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    hashes = 1234567890123456789 + np.arange(50)
    write_row_hashes(tmp_path, RowHashes("model", {("topic", "train"): hashes}))
    assert as_lists(read_row_hashes(str(tmp_path)).rows) == {("topic", "train"): hashes.tolist()}
    file = tmp_path / "row_hashes.parquet"
    column = parquet.read_metadata(file).row_group(0).column(2)
    assert column.path_in_schema == "hash"
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(file.read_bytes())
    content[start + column.total_compressed_size - 20] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"row_hashes.parquet is damaged") as caught:
        read_row_hashes(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_rows_that_the_model_was_trained_on_are_told_of_with_their_number(caplog: pytest.LogCaptureFixture) -> None:
    loaded = LoadedTasks([one_set()], earlier=RowHashes("runs/first", {("old", "train"): hashes("A FISH", "y")}))
    announce_trained_on(loaded)
    (line,) = caplog.messages
    assert line.startswith("mood, topic: 1 of 1 test rows were training rows of runs/first, whose scores there")
    caplog.clear()
    clean = LoadedTasks([one_set()], earlier=RowHashes("runs/first", {("old", "train"): hashes("a dog.")}))
    announce_trained_on(clean)
    assert caplog.messages == []


def test_a_model_without_the_file_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    loaded = LoadedTasks([one_set(), one_set()], earlier=RowHashes("runs/first", {}, is_complete=False))
    announce_trained_on(loaded)
    (line,) = caplog.messages
    assert line.startswith("runs/first does not say (all of) what it was trained on")


# ---- a run, and one that goes on from it ----


def write_rows(folder: Path, name: str, count: int) -> None:
    draw = random.Random(0)
    lines = [
        f"the {draw.choice(['cat', 'dog', 'bird'])} sat {number},{number % 2},{number % 3}" for number in range(count)
    ]
    (folder / name).write_text("text,noise,other\n" + "\n".join(lines) + "\n")


def finish(
    folder: Path, name: str, file: str, tasks: list[str], share: float = 0.2, **changes: Any
) -> SimpleNamespace:
    """Run a recipe whose tasks read one file, in this process: its folder, printed text and hashes."""
    task = {"problem_type": "single_label_classification", "dataset": {"path": "csv", "data_files": file}}
    training = {"output_dir": str(folder / name), "num_train_epochs": 1, "disable_tqdm": True, "use_cpu": True}
    recipe = {
        "tasks": {
            own: {**task, "columns": {"sentence": "text", "label": own}, "validation_split": share} for own in tasks
        },
        "training": training | changes.pop("training", {}),
        **changes,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    printed = io.StringIO()
    with redirect_stdout(printed):
        run([str(folder / f"{name}.yaml")])
    return SimpleNamespace(
        folder=folder / name, printed=printed.getvalue(), kept=as_sets(read_row_hashes(str(folder / name)).rows)
    )


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> SimpleNamespace:
    """A run with the task `noise` on 160 rows. Read only."""
    folder = tmp_path_factory.mktemp("first")
    write_rows(folder, "rows.csv", 160)
    write_rows(folder, "more.csv", 176)
    return finish(folder, "run1", "rows.csv", ["noise"], backbone=tiny_backbone, max_length=20)


def test_finished_folder_checkpoints_and_best_models_hold_the_file(first: SimpleNamespace) -> None:
    files = sorted(str(file.relative_to(first.folder)) for file in first.folder.rglob(ROW_HASHES_FILE))
    (checkpoint,) = first.folder.glob("checkpoint-*")
    best = f"best/noise/{ROW_HASHES_FILE}"
    assert files == [best, f"{checkpoint.name}/{ROW_HASHES_FILE}", ROW_HASHES_FILE]
    for file in files:
        assert as_sets(read_row_hashes(str((first.folder / file).parent)).rows) == first.kept
    assert {key: len(found) for key, found in first.kept.items()} == {
        ("noise", "train"): 128,
        ("noise", "validation"): 32,
    }


@pytest.mark.parametrize("changed", [{"training": {"seed": 7}}, {"share": 0.3}, {"strategy": {"freeze": "all"}}])
def test_a_continued_model_never_validates_on_its_training_rows(
    first: SimpleNamespace, changed: dict[str, Any]
) -> None:
    """More rows and another seed, share or task: nothing leaves its side."""
    name = f"continued with {next(iter(changed))}"
    tasks = ["noise"] if "strategy" in changed else ["other", "noise"]
    continued = finish(first.folder.parent, name, "more.csv", tasks, continue_from=str(first.folder), **changed)
    for task in tasks:
        validation = continued.kept[task, "validation"]
        assert not first.kept["noise", "train"] & validation
        assert first.kept["noise", "validation"] <= validation
        assert len(validation) > 32, "new rows are validated on as well"
        assert len(continued.kept[task, "train"]) == (128 if "strategy" in changed else 176 - len(validation))
    assert "flattering" not in continued.printed
    assert "160 of 176 rows stay on the side where the model that this run goes on from" in continued.printed


def test_given_splits_that_the_model_was_trained_on_are_told_of(first: SimpleNamespace) -> None:
    files = {"train": "more.csv", "validation": "rows.csv"}
    task = {"dataset": {"path": "csv", "data_files": files}, "columns": {"sentence": "text", "label": "noise"}}
    recipe = {
        "continue_from": str(first.folder),
        "strategy": {"freeze": "all"},
        "tasks": {"noise": {"problem_type": "single_label_classification", **task}},
        "training": {"output_dir": str(first.folder.parent / "given"), "use_cpu": True},
    }
    (first.folder.parent / "given.yaml").write_text(yaml.safe_dump(recipe))
    printed = io.StringIO()
    with redirect_stdout(printed):
        run([str(first.folder.parent / "given.yaml"), "--check"])
    assert f"noise: 128 of 160 validation rows were training rows of {first.folder}" in printed.getvalue()


def test_without_the_file_a_run_says_so_once_and_hands_it_on(first: SimpleNamespace, tmp_path: Path) -> None:
    older = tmp_path / "older"
    shutil.copytree(first.folder, older, ignore=lambda *_: [ROW_HASHES_FILE])
    write_rows(tmp_path, "rows.csv", 160)
    second = finish(tmp_path, "second", "rows.csv", ["noise"], continue_from=str(older))
    third = finish(tmp_path, "third", "rows.csv", ["noise"], continue_from=str(second.folder))
    for printed, name in ((second.printed, older), (third.printed, second.folder)):
        assert printed.count(f"{name} does not say (all of) what it was trained on") == 1
    assert second.kept == third.kept


def test_keep_row_hashes_false_keeps_none(first: SimpleNamespace) -> None:
    training = {"keep_row_hashes": False}
    plain = finish(
        first.folder.parent, "none", "rows.csv", ["noise"], continue_from=str(first.folder), training=training
    )
    assert not list(plain.folder.rglob(ROW_HASHES_FILE))


def test_nothing_left_to_validate_on_is_an_error_that_says_why(first: SimpleNamespace) -> None:
    sides = read_row_hashes(str(first.folder)).sides()
    lines = (first.folder.parent / "rows.csv").read_text().splitlines()
    trained = [line for line in lines[1:] if split_of(sides, line.split(",")[0]) == "train"]
    (first.folder.parent / "trained.csv").write_text("\n".join([lines[0], *trained]))
    message = (
        r"validation_split 0.2 of 128 rows, 128 of which are settled by a run .* leaves no labelled row for validation"
    )
    with pytest.raises(ValueError, match=message):
        finish(first.folder.parent, "nothing", "trained.csv", ["noise"], continue_from=str(first.folder))
