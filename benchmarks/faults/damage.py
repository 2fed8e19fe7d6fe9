"""Every file of what a run leaves, damaged: each is named in an error, or the answers are the same to the last bit.

A file is cut, has a bit flipped, changes places with the same file of another model, or is gone. Folders: a finished
run, a checkpoint, an adapter, exports, and the caches of pooled vectors, teachers' answers and rows, whose damaged
files are made again.
"""

import contextlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from jobs import make_job, train
from outcomes import Case
from transformers.utils import logging

from multitask_sentence import MultiTaskModel
from multitask_sentence.data.cache.shards import file_hash
from multitask_sentence.data.loading.tasks import TaskSource, load_tasks
from multitask_sentence.data.text.sameness import row_hashes
from multitask_sentence.manifest_multitask import MAY_CHANGE, find_changes
from multitask_sentence.training.distillation.answers import answer_folder, ask
from multitask_sentence.training.distillation.settings import TeacherName
from multitask_sentence.training.distillation.teachers import Teacher, open_teacher
from multitask_sentence.training.features.cache import FeatureCache, cache_sentences, embed_cached, open_features
from multitask_sentence.training.resuming.files import check_files

DAMAGES = ("cut", "bit flipped", "of another model", "gone")
DAMAGES_OF_CODE = ("cut", "bit flipped", "gone")  # another model has the same
NOTICED = (OSError, ValueError, StrictDataclassError)
SENTENCES = ["the cat sat", "good film in the park", ""]
TASKS = {"mood": {"problem_type": "single_label_classification", "labels": ["negative", "positive"]}}


def damage(path: Path, how: str, other: Path, chance: random.Random) -> bool:
    """Damage a file; whether it now holds something else."""
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
        return True
    if how == "of another model":
        changed = other.read_bytes() if other.is_file() else content
    elif how == "cut":
        changed = content[: chance.randrange(len(content))] if content else content
    else:
        bits = bytearray(content)
        if bits:
            bits[chance.randrange(len(bits))] ^= 1 << chance.randrange(8)
        changed = bytes(bits)
    path.write_bytes(changed)
    return changed != content


def answers(folder: Path) -> np.ndarray:
    """What a model answers; opened without a look at every file it may answer anything, or say why not."""
    with contextlib.suppress(*NOTICED):
        MultiTaskModel.from_pretrained(folder).encode(SENTENCES)
    return MultiTaskModel.from_pretrained(folder, verify=True).encode(SENTENCES)


def resumes(checkpoint: Path) -> np.ndarray:
    """What a run goes on from: every file of it."""
    check_files(checkpoint, num_processes=1)
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    return np.array([f"{path.relative_to(checkpoint)} {file_hash(path)}" for path in files])


def exported_answers(folder: Path, engine: str) -> np.ndarray:
    """The same of an export."""
    from multitask_sentence import MultiTaskRuntime

    with contextlib.suppress(*NOTICED):
        MultiTaskRuntime.from_pretrained(folder, engine=engine).encode(SENTENCES)
    if changes := find_changes(folder):  # as `doctor --verify` does
        raise ValueError(str(changes))
    return MultiTaskRuntime.from_pretrained(folder, engine=engine, verify=True).encode(SENTENCES)


def plain_answers(folder: Path) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    if changes := find_changes(folder):
        raise ValueError(str(changes))
    return SentenceTransformer(str(folder), device="cpu").encode(SENTENCES)


def damage_folder(
    kind: str, folder: Path, other: Path, ask: Callable[[Path], np.ndarray], chance: random.Random, rounds: int
) -> Iterator[Case]:
    """
    Every file of a folder damaged in every way, so many times each.

    Code is compared with the manifest and not run by who asks here, so that one file of it is like another: each is
    damaged in one way, all ways by turns, so many times.
    """
    expected, copy = ask(folder), Path(shutil.copytree(folder, folder.with_name("damaged")))
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for place, name in enumerate(names):
        by_turns = tuple(DAMAGES_OF_CODE[(place + turn) % len(DAMAGES_OF_CODE)] for turn in range(rounds))
        for how in by_turns if name.endswith(".py") else DAMAGES * rounds:
            try:
                if not damage(copy / name, how, other / name, chance):
                    continue
                found = ask(copy)
                is_right = np.array_equal(found, expected) and (name in MAY_CHANGE or how == "gone" or "." not in name)
                outcome = "right" if is_right else "failure"
                detail = "noticed by nobody"
            except NOTICED as error:
                outcome, detail = "clear error", str(error)
            except Exception as error:
                outcome, detail = "failure", f"{type(error).__name__}: {error}"
            finally:
                shutil.copy2(folder / name, copy / name)
            yield Case("damage", kind, f"{name} {how}", outcome, detail)
    shutil.rmtree(copy)


def vectors_of(model: MultiTaskModel) -> np.ndarray:
    """Pooled vectors from their cache."""
    cache = open_features(model)
    places = cache_sentences(cache, model, lambda: [SENTENCES], show_progress=False)
    return embed_cached(model, cache, places).numpy()


def teachers_answers(teacher: Teacher) -> np.ndarray:
    """A teacher's answers from their cache."""
    cache = FeatureCache(answer_folder(teacher, "float32"), teacher.size)
    rows = [[sentence] for sentence in SENTENCES]
    return cache.gather(ask(teacher, cache, lambda: iter([rows]), 1, show_progress=False).ravel()).numpy()


def rows_of(job: Path) -> np.ndarray:
    """Rows of a recipe's data from their cache, with hashes of them."""
    content = yaml.safe_load(job.read_text(encoding="utf-8"))
    sources = [TaskSource(name, **settings) for name, settings in content["tasks"].items()]
    found: list[Any] = []
    for entry in load_tasks(sources, job.parent, seed=1).sets:
        for split, rows in entry.splits.items():
            found += [split, rows[:], row_hashes(rows).tolist()]
    return np.array(json.dumps(found, default=str))


def damage_cache(
    kind: str, folder: Path, ask: Callable[[], np.ndarray], chance: random.Random, rounds: int
) -> Iterator[Case]:
    """Every file of a cache damaged: what it held is computed again, to the last bit."""
    datasets.config.HF_DATASETS_CACHE = folder
    expected = ask()
    for name in sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()):
        for how in ("cut", "bit flipped", "gone") * rounds:
            if not (folder / name).is_file() or not damage(folder / name, how, folder, chance):
                continue
            try:
                outcome, detail = ("right" if np.array_equal(ask(), expected) else "failure"), "other content"
            except Exception as error:
                outcome, detail = "failure", f"{type(error).__name__}: {error}"
            yield Case("damage", kind, f"{Path(name).suffix} {how}", outcome, detail)


def damage_all(
    folder: Path, backbone: Path, chance: random.Random, rounds: int = 1, exports: bool = True
) -> Iterator[Case]:
    """All folders, every file so many times; a case for each file and damage."""
    if not rounds:
        return
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    runs = []
    for name, rate in (("one", "1e-3"), ("other", "2e-3")):
        job = make_job(folder / name / "job", backbone, "plain")
        ended = train(job, "--learning_rate", rate)
        if ended.status:
            raise RuntimeError(f"A run fails without any damage:\n{ended.said[-3000:]}")
        runs.append(job.parent / "result")
    checkpoints = [max(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])) for run in runs]
    moved = [Path(shutil.move(path, folder / f"checkpoint-{place}")) for place, path in enumerate(checkpoints)]
    for run in runs:
        for left in (*run.glob("checkpoint-*"), run / "best", run / "predictions"):
            shutil.rmtree(left)
    yield from damage_folder("finished run", *runs, answers, chance, rounds)
    yield from damage_folder("checkpoint", *moved, resumes, chance, rounds)

    adapters = []
    for seed in (1, 2):
        from peft import LoraConfig

        torch.manual_seed(seed)
        model = MultiTaskModel.from_backbone(str(backbone), tasks=TASKS)
        model.add_adapter(LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
        model.save_pretrained(folder / f"adapter_{seed}")
        adapters.append(folder / f"adapter_{seed}")
    yield from damage_folder("adapter", *adapters, answers, chance, rounds)

    model = MultiTaskModel.from_pretrained(runs[0])
    mood = model.config.tasks["mood"]
    teacher = open_teacher("mood", TeacherName(str(runs[0])), mood)
    for kind, ask_again in (
        ("cache of vectors", partial(vectors_of, model)),
        ("cache of teachers' answers", partial(teachers_answers, teacher)),
        ("cache of rows", partial(rows_of, folder / "one" / "job" / "job.yaml")),
    ):
        yield from damage_cache(kind, folder / kind, ask_again, chance, rounds)

    if exports:
        from multitask_sentence.export.folder import export_folder
        from multitask_sentence.export.plain import export_plain

        plain = [folder / f"plain_{place}" for place in range(len(runs))]
        for run, place in zip(runs, plain, strict=True):
            export_plain(export_folder(run, ("onnx", "openvino")), place)
        for engine in ("onnx", "openvino"):
            ask = partial(exported_answers, engine=engine)
            yield from damage_folder(f"export, {engine}", *runs, ask, chance, rounds)
        yield from damage_folder(
            "plain export", *(place / "embedding" for place in plain), plain_answers, chance, rounds
        )
