"""A model that is pickled: for `datasets.map` with its cache and its workers, for copies and other processes."""

import copy
import json
import os
import pickle
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers import AutoModel, AutoModelForSequenceClassification, dynamic_module_utils

from helpers import warm
from multitask_sentence import MultiTaskModel

SENTENCES = ["the cat sat on the mat", "a good film", "bad news today", "dog"] * 5


@pytest.fixture
def saved(tiny_model: MultiTaskModel, tmp_path: Path) -> str:
    tiny_model.save_pretrained(tmp_path / "saved")
    return str(tmp_path / "saved")


def run_warm(script: str, folder: Path, *arguments: object) -> list[str]:
    """Lines that a script printed in another process; it stands in a folder meanwhile."""
    (folder / "script.py").write_text(script, encoding="utf-8")
    printed = folder / f"printed-{uuid.uuid4().hex}.txt"
    process = warm.start([str(folder / "script.py"), *map(str, arguments)], os.environ, printed)
    assert warm.end([process], 100) and process.exitcode == 0, printed.read_text()[-3000:]
    return [line for line in printed.read_text().splitlines() if line.startswith("> ")]


def run_fresh(script: str, *arguments: object) -> list[str]:
    """The same in a process without a history, with as many threads as there are cores."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("OMP_NUM_THREADS", None)  # as many threads as there are cores: what hung
    command = [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    return [line for line in done.stdout.splitlines() if line.startswith("> ")]


MAP = """
import sys
from datasets import load_from_disk
from transformers import AutoModel

folder, rows, processes = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
expected = model.encode(load_from_disk(rows)["text"])

def embed(batch):
    return {"embedding": model.encode(batch["text"]), "mood": model.predict(batch["text"])["mood"]["labels"]}

several = {} if processes == "1" else {"num_proc": int(processes)}
mapped = load_from_disk(rows).map(embed, batched=True, **several)
assert abs(mapped.with_format("numpy")["embedding"][:] - expected).max() < 1e-5
print(">", mapped._fingerprint)
"""


def test_remote_code_of_these_tests_and_of_their_warm_processes_goes_to_one_folder() -> None:
    assert os.environ["HF_MODULES_CACHE"] == dynamic_module_utils.HF_MODULES_CACHE, "a test file imports conftest.py"


def test_map_is_read_from_its_cache_in_another_process(saved: str, tmp_path: Path) -> None:
    Dataset.from_dict({"text": SENTENCES}).save_to_disk(tmp_path / "rows")
    first = run_warm(MAP, tmp_path, saved, tmp_path / "rows", 1)
    assert first
    files = sorted((tmp_path / "rows").glob("cache-*.arrow"))
    assert len(files) == 1
    written = files[0].stat().st_mtime_ns
    assert run_warm(MAP, tmp_path, saved, tmp_path / "rows", 1) == first
    assert sorted((tmp_path / "rows").glob("cache-*.arrow")) == files
    assert files[0].stat().st_mtime_ns == written


def test_map_in_two_processes_ends_after_a_first_encode(saved: str, tmp_path: Path) -> None:
    Dataset.from_dict({"text": SENTENCES}).save_to_disk(tmp_path / "rows")
    assert run_fresh(MAP, saved, tmp_path / "rows", 2)
    assert len(list((tmp_path / "rows").glob("cache-*.arrow"))) == 2


@pytest.mark.parametrize("door", ["package", "AutoModel", "one head"])
def test_hash_is_cheap_and_that_of_the_weights(saved: str, door: str) -> None:
    if door == "one head":
        view = AutoModelForSequenceClassification.from_pretrained(saved, task="mood", trust_remote_code=True)
        hashed, model = view, view.multitask
    elif door == "package":
        hashed = model = MultiTaskModel.from_pretrained(saved)
    else:
        hashed = model = AutoModel.from_pretrained(saved, trust_remote_code=True)
    started = time.process_time()
    before = Hasher.hash(hashed)
    assert time.process_time() - started < 5
    model.encode(SENTENCES)
    model.predict([("a cat", "a dog")])
    assert Hasher.hash(hashed) == before, "use changes nothing"
    with torch.no_grad():
        model.heads["mood"].layers[-1].bias[0] += 1
    assert Hasher.hash(hashed) != before


def test_pickled_and_copied_models_give_the_same(saved: str, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(saved, trust_remote_code=True)
    expected = model.encode(SENTENCES)
    torch.save(model, tmp_path / "model.pt")
    twins = [
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
        torch.load(tmp_path / "model.pt", weights_only=False),
    ]
    for twin in twins:
        np.testing.assert_array_equal(twin.encode(SENTENCES), expected)
        twin.config.max_length = 3
        assert np.abs(twin.encode(SENTENCES) - expected).max() > 1e-3
    np.testing.assert_array_equal(model.encode(SENTENCES), expected)


def test_model_of_the_package_can_be_sent_to_a_fresh_process(tiny_model: MultiTaskModel, tmp_path: Path) -> None:
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(tiny_model))
    script = """
import json, pickle, sys
model = pickle.load(open(sys.argv[1], "rb"))
print(">", json.dumps([model.encode("the cat sat").tolist(), model.predict("dog")["mood"]["labels"]]))
"""
    (line,) = run_fresh(script, tmp_path / "model.pickle")
    embedding, label = json.loads(line.removeprefix("> "))
    np.testing.assert_allclose(embedding, tiny_model.encode("the cat sat"), rtol=0, atol=1e-6)
    assert label == tiny_model.predict("dog")["mood"]["labels"]
