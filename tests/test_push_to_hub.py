"""Pushing to and loading from a Hub: one process pushes, another that has only the endpoint loads by id.

The Hub is `hub_server.py`, which stands beside this file.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from multitask_sentence import MultiTaskModel
from multitask_sentence.training.publish import check_can_push, push_folder

_spec = importlib.util.spec_from_file_location("hub_server", Path(__file__).with_name("hub_server.py"))
hub_server = importlib.util.module_from_spec(_spec)
sys.modules["hub_server"] = hub_server  # dataclasses look their module up there
_spec.loader.exec_module(hub_server)

HubServer = hub_server.HubServer
ROOT = Path(__file__).parents[1]
TASKS: dict[str, dict[str, Any]] = {
    "mood": {"problem_type": "single_label_classification", "labels": ["negative", "neutral", "positive"]},
    "rating": {"problem_type": "regression", "head": {"hidden_dims": [7]}},
    "entails": {"problem_type": "single_label_classification", "labels": ["no", "yes"], "pair": True},
}
SENTENCES = ["the cat sat on the mat", "a dog ran", "the film was very good !", "market news today , and bad"]

OPENS_A_MODEL = {
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "configuration_multitask.py",
    "modeling_multitask.py",
    "inference_multitask.py",
}
BELONGS_TO_A_RUN = {"README.md", "results.json", "recipe.yaml", "scores.png"}
STAYS_BEHIND = {
    "checkpoint-5/model.safetensors",
    "checkpoint-5/optimizer.pt",
    "best/model.safetensors",
    "runs/events.out.tfevents.1",
    "training_args.bin",
    "optimizer.pt",
    "results.json.part",
    ".env",
}

# The publisher imports no transformers, so a process that only pushes starts at once.
PUSH = """
import json, sys
from publish import push_folder

print(json.dumps([push_folder(**push) for push in json.loads(sys.argv[1])]))
"""

LOAD = """
import json, sys
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, AutoTokenizer, utils

job = json.loads(sys.argv[1])
expected, report = load_file(job["expected"]), {}
rows = {"mood": torch.arange(4), "rating": torch.arange(4), "entails": torch.tensor([[0, 1], [2, 3]])}

def same(name, found):
    found = torch.as_tensor(found)
    report[name] = found.shape == expected[name].shape and bool(torch.equal(found, expected[name]))

def open_model(repo_id, **where):
    return AutoModel.from_pretrained(repo_id, trust_remote_code=True, **where)

def compare_forward(door, model, tokenizer):
    with torch.no_grad():
        output = model(**tokenizer(job["sentences"], padding=True, return_tensors="pt"), task_rows=rows)
    found = {"last_hidden_state": output.last_hidden_state, "sentence_embedding": output.sentence_embedding}
    for name, value in (found | output.logits).items():
        report[f"{door} {name}"] = bool(torch.equal(value, expected[name]))

def failure(name, load):
    try:
        load()
    except Exception as error:
        report[name] = [isinstance(error, OSError), str(error)]

repo_id = "team/model"
report["tasks"] = list(AutoConfig.from_pretrained(repo_id, trust_remote_code=True).tasks)
tokenizer = AutoTokenizer.from_pretrained(repo_id, trust_remote_code=True)
model = open_model(repo_id)
report["code"] = type(model).__module__
report["our package"] = "multitask_sentence" in sys.modules
compare_forward("id:", model, tokenizer)
report["id: encode"] = bool(torch.equal(model.encode(job["sentences"], convert_to="tensor"), expected["encode"]))

sentence_transformer = SentenceTransformer(repo_id, trust_remote_code=True)
features = sentence_transformer.preprocess(job["sentences"])
with torch.no_grad():
    embedding = sentence_transformer(features)["sentence_embedding"]
report["SentenceTransformer"] = bool(torch.equal(embedding, expected["sentence_embedding"]))

pinned = open_model("team/moved", revision=job["first"])
compare_forward("pinned:", pinned, AutoTokenizer.from_pretrained("team/moved", revision=job["first"], trust_remote_code=True))
report["pinned: encode"] = bool(torch.equal(pinned.encode(job["sentences"], convert_to="tensor"), expected["encode"]))
moved = open_model("team/moved").encode(job["sentences"], convert_to="tensor")
report["moved: encode differs"] = not torch.equal(moved, expected["encode"])

branch = open_model("team/branches", revision="trial/1")
report["branch: encode"] = bool(torch.equal(branch.encode(job["sentences"], convert_to="tensor"), expected["encode"]))

failure("no such repository", lambda: open_model("team/nothing"))
failure("no such revision", lambda: open_model("team/moved", revision="0" * 40))
failure("private without a token", lambda: open_model("team/private"))
try:
    private = open_model("team/private", token=job["token"])
    report["private: encode"] = bool(torch.equal(private.encode(job["sentences"], convert_to="tensor"), expected["encode"]))
except Exception as error:
    report["private: encode"] = str(error)

model.save_pretrained(job["again"])
model.push_to_hub("team/mixin", token=job["token"])
again = open_model("team/mixin")
report["mixin: encode"] = bool(torch.equal(again.encode(job["sentences"], convert_to="tensor"), expected["encode"]))
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def model(tiny_backbone: str) -> MultiTaskModel:
    torch.manual_seed(1)
    return MultiTaskModel.from_backbone(tiny_backbone, TASKS, projection={"out_features": 24}, normalize=True)


@pytest.fixture(scope="module")
def folder(model: MultiTaskModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves: the finished model, its papers, and what must stay behind. Read only."""
    folder = tmp_path_factory.mktemp("run") / "mine"
    model.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n\nThe card of the run.\n", encoding="utf-8")
    (folder / "results.json").write_text('{"scores": {}}', encoding="utf-8")
    (folder / "recipe.yaml").write_text("tasks: {}\n", encoding="utf-8")
    (folder / "scores.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    for path in STAYS_BEHIND:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"stays behind")
    return folder


@pytest.fixture(scope="module")
def hub() -> Iterator[Any]:
    with HubServer() as server:
        yield server


def run_python(script: str, job: Any, environment: dict[str, str], elsewhere: Path, path: str = "") -> Any:
    """What a script prints last, from a process without our package and with no variables of this session's Hub."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHONPATH"))}
    finished = subprocess.run(
        [sys.executable, "-c", script, json.dumps(job)],
        cwd=elsewhere,
        env={**own, **environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def pushed(hub: Any, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """URL of the commit, by a name for each push that the first process made."""
    root = tmp_path_factory.mktemp("pushing")
    changed = shutil.copytree(folder, root / "changed")
    tokenizer = (changed / "tokenizer.json").read_text(encoding="utf-8")
    swapped = tokenizer.replace('"cat"', '"?"').replace('"mat"', '"cat"').replace('"?"', '"mat"')
    assert swapped != tokenizer
    (changed / "tokenizer.json").write_text(swapped, encoding="utf-8")
    pushes = {
        "model": {"folder": str(folder), "repo_id": "team/model"},
        "first": {"folder": str(folder), "repo_id": "team/moved"},
        "second": {"folder": str(changed), "repo_id": "team/moved", "commit_message": "Swap two words"},
        "private": {"folder": str(folder), "repo_id": "team/private", "private": True},
        "branch": {"folder": str(folder), "repo_id": "team/branches", "revision": "trial/1"},
    }
    environment = hub.environment(root / "home")
    urls = run_python(PUSH, list(pushes.values()), environment, root, path=str(ROOT / "training"))
    return dict(zip(pushes, urls, strict=True))


@pytest.fixture(scope="module")
def loaded(
    hub: Any, model: MultiTaskModel, pushed: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the second process found, which has an empty cache, no token, and only the endpoint."""
    root = tmp_path_factory.mktemp("loading")
    rows = {"mood": torch.arange(4), "rating": torch.arange(4), "entails": torch.tensor([[0, 1], [2, 3]])}
    with torch.no_grad():
        output = model(**model.tokenizer(SENTENCES, padding=True, return_tensors="pt"), task_rows=rows)
    expected = {"last_hidden_state": output.last_hidden_state, "sentence_embedding": output.sentence_embedding}
    expected |= {**output.logits, "encode": model.encode(SENTENCES, convert_to="tensor")}
    save_file({name: value.contiguous() for name, value in expected.items()}, root / "expected.safetensors")
    job = {
        "sentences": SENTENCES,
        "expected": str(root / "expected.safetensors"),
        "first": pushed["first"].rsplit("/", 1)[1],
        "token": hub_server.TOKEN,
        "again": str(root / "again"),
    }
    (root / "elsewhere").mkdir()
    report = run_python(LOAD, job, hub.environment(root / "home", token=None), root / "elsewhere")
    return {**report, "again": root / "again"}


def files_of(hub: Any, repo_id: str, branch: str = "main") -> set[str]:
    return set(hub.repositories[repo_id].branches[branch][-1].files) - {".gitattributes"}


def test_debug(loaded, hub):
    for key, value in loaded.items():
        print(key, value)
    for k in hub.repositories: print(k, [c.message for c in hub.repositories[k].branches["main"]], sorted(files_of(hub, k)))
    print(hub.repositories["team/mixin"].find("main").files["README.md"].content.decode()[:600])
    print((loaded["again"]/"config.json").read_text())
    print(sorted(p.name for p in loaded["again"].iterdir()))
    print(json.loads(hub.repositories["team/mixin"].find("main").files["config.json"].content)["auto_map"])
    for r in hub.requests: print(r)
