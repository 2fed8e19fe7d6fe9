"""Training rows that are read onward against rows that are mapped: time to the first step, memory, disk, and rate.

    python benchmarks/streaming.py                                      # csv files of 1,000,000 rows
    python benchmarks/streaming.py --kinds parquet --rows 1000000 10000000 --json docs/data/streaming.json

Each file has four lines: both ways, a first run of a recipe of two tasks and a second one. Seconds and memory are of a
training process up to its first step, as in scale.py. `MiB on the disk` is what its cache holds afterwards. The last
two columns are of one pass through all rows in training's order, in batches of 32 and without a model.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import measuring
import scale
import yaml

from multitask_sentence.data.loading.tasks import load_tasks
from multitask_sentence.data.sampling.sampler import MixtureDataset
from multitask_sentence.training.mixture.drawing import draw_sets, make_sampler
from multitask_sentence.training.mixture.settings import MixtureConfig
from multitask_sentence.training.recipe.recipe import load_recipe

WAYS = ("mapped", "streamed")


def write_recipe(folder: Path, backbone: str, kind: str, files: tuple[Path, Path], way: str) -> Path:
    """scale.py's recipe, with streamed rows where that is the way."""
    recipe = scale.write_recipe(folder, backbone, kind, *files)
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    for task in content["tasks"].values():
        task["dataset"]["streaming"] = way == "streamed"
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    return recipe


def read_pass(recipe: Path, cache: Path) -> tuple[float, int]:
    """Rows a second of a pass in training's order, and how many MiB this process holds more meanwhile."""
    datasets.config.HF_DATASETS_CACHE = cache
    read = load_recipe(recipe)
    loaded = load_tasks(read.sources, recipe.parent, 42)
    mixture = MixtureConfig().for_sets([entry.tasks for entry in loaded.sets])
    drawn = draw_sets(mixture, loaded.sets, read.tasks, scale.BATCH_SIZE, 42)
    rows = MixtureDataset([entry.whole_rows for entry in drawn])
    before, peak = scale.status(os.getpid(), "RssAnon"), scale.start_watch(os.getpid())
    started = time.perf_counter()
    for batch in make_sampler(mixture, drawn, scale.BATCH_SIZE, 1, 42):
        rows.__getitems__(batch)
    return len(rows) / (time.perf_counter() - started), peak[0] - before


def size_of(folder: Path) -> int:
    """MiB of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) // 2**20


def measure(
    folder: Path, backbone: str, kind: str, count: int, ways: Sequence[str], threads: int
) -> list[Sequence[Any]]:
    """Two lines for each way to read a file of so many rows."""
    table: list[Sequence[Any]] = []
    own = folder / f"{kind}-{count}"
    own.mkdir()
    files = scale.write_rows(own / f"train.{kind}", count), scale.write_rows(own / f"held.{kind}", min(1000, count))
    for way in ways:
        recipe, cache = write_recipe(own, backbone, kind, files, way), own / way
        for which in ("first", "second"):
            run = scale.run_to_first_step(recipe, cache, threads)
            read = [f"{found:,.0f}" for found in read_pass(recipe, cache)] if which == "second" else ["", ""]
            times = [f"{run.seconds:.1f}", f"{run.cpu_seconds:.1f}", str(run.memory), str(size_of(cache))]
            measuring.add_row(table, [f"{count:,}", kind, way, which, *times, *read])
    shutil.rmtree(own)
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = measuring.options(__doc__, ["data_root", "dtypes", "sentences", "plot", "rounds"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--kinds", nargs="+", default=["csv"], choices=["csv", "parquet"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--folder", type=Path, help="where generated files and caches go; 10,000,000 rows need 6 GB")
    options = parser.parse_args(argv)
    measuring.say(f"{measuring.machine(options.threads)}, {options.backbone}")
    header = ["rows", "file", "way", "run", "s to the first step", "s of the processor", "MiB", "MiB on the disk"]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        files = [(kind, count) for kind in options.kinds for count in options.rows]
        found = []
        for kind, count in files:
            found += measure(Path(folder), options.backbone, kind, count, options.ways, options.threads)
        measuring.report("Streamed rows", [*header, "rows/s of a pass", "MiB more"], found, options.json)


if __name__ == "__main__":
    main()
