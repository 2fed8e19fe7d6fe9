"""Pushing to and loading from a Hub: one process pushes, another that has only the endpoint loads by id.

The Hub is `helpers/hub_server.py`.
"""

import hashlib
import json
import os
import shlex
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

from helpers import hub_server
from multitask_sentence import MultiTaskModel
from multitask_sentence.__main__ import main
from multitask_sentence.commands import compare, push
from multitask_sentence.train import run
from multitask_sentence.training.recipe.before_data import check_hub_names
from multitask_sentence.training.recipe.recipe import load_recipe
from multitask_sentence.training.report.publish import MARK, check_can_push, push_folder
from multitask_sentence.training.run.pinned import check_pinned, pinned_folder

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
    "encoding_multitask.py",
}
BELONGS_TO_A_RUN = {"README.md", "results.json", "recipe.yaml", "scores.png"}
STAYS_BEHIND = {
    "checkpoint-5/model.safetensors",
    "checkpoint-5/optimizer.pt",
    "best/model.safetensors",
    "single/mood/predictions.safetensors",
    "predictions/mood.parquet",  # holds the texts of the data
    "runs/events.out.tfevents.1",
    "training_args.bin",
    "optimizer.pt",
    "results.json.part",
    ".env",
}

# The publisher imports no transformers, so a process that only pushes starts at once.
PUSH = """
import json, sys
from multitask_sentence.training.report.publish import push_folder

print(json.dumps([push_folder(**push) for push in json.loads(sys.argv[1])]))
"""

LOAD = """
import json, sys
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, AutoTokenizer, pipeline

job = json.loads(sys.argv[1])
expected, report = load_file(job["expected"]), {}
rows = {"mood": torch.arange(4), "rating": torch.arange(4), "entails": torch.tensor([[0, 1], [2, 3]])}

def open_model(repo_id, **where):
    return AutoModel.from_pretrained(repo_id, trust_remote_code=True, **where)

def compare_forward(door, model, tokenizer):
    with torch.no_grad():
        output = model(**tokenizer(job["sentences"], padding=True, return_tensors="pt"), task_rows=rows)
    found = {"last_hidden_state": output.last_hidden_state, "sentence_embedding": output.sentence_embedding}
    for name, value in (found | output.logits).items():
        report[f"{door} {name}"] = bool(torch.equal(value, expected[name]))

def encode(door, model):
    try:
        found = model.encode(job["sentences"], convert_to="tensor")
        report[f"{door} encode"] = bool(torch.equal(found, expected["encode"]))
    except (OSError, ValueError) as error:
        report[f"{door} encode"] = str(error)

def failure(name, repo_id, **where):
    try:
        open_model(repo_id, **where)
    except OSError as error:
        report[name] = str(error)

repo_id = "team/model"
report["tasks"] = list(AutoConfig.from_pretrained(repo_id, trust_remote_code=True).tasks)
tokenizer = AutoTokenizer.from_pretrained(repo_id, trust_remote_code=True)
model = open_model(repo_id)
report["code"] = type(model).__module__
report["our package"] = "multitask_sentence" in sys.modules
compare_forward("id:", model, tokenizer)
encode("id:", model)

sentence_transformer = SentenceTransformer(repo_id, trust_remote_code=True)
features = sentence_transformer.preprocess(job["sentences"])
with torch.no_grad():
    embedding = sentence_transformer(features)["sentence_embedding"]
report["SentenceTransformer: sentence_embedding"] = bool(torch.equal(embedding, expected["sentence_embedding"]))

answers = pipeline("multitask", model=repo_id, trust_remote_code=True)(job["sentences"])
embeddings = torch.stack([torch.as_tensor(answer["embedding"]) for answer in answers])
report["pipeline: embedding"] = bool(torch.equal(embeddings, expected["encode"]))
classify = pipeline("text-classification", model=repo_id, trust_remote_code=True, model_kwargs={"head": "mood"})
best = expected["mood"].softmax(dim=-1).amax(dim=-1)
scores = torch.tensor([answer["score"] for answer in classify(job["sentences"])])
report["pipeline: largest difference"] = (scores - best).abs().max().item()

pinned = {"revision": job["first"], "trust_remote_code": True}
model_at_first = AutoModel.from_pretrained("team/moved", **pinned)
compare_forward("pinned:", model_at_first, AutoTokenizer.from_pretrained("team/moved", **pinned))
encode("pinned:", model_at_first)
encode("latest:", open_model("team/moved"))
encode("branch:", open_model("team/branches", revision="trial/1"))
failure("no such repository", "team/nothing")
failure("no such revision", "team/moved", revision="0" * 40)
failure("private without a token", "team/private")  # before anything of it is in the cache
encode("private:", open_model("team/private", token=job["token"]))

model.save_pretrained(job["again"])
model.save_pretrained(job["saved"], push_to_hub=True, repo_id="team/saved", token=job["token"])
model.push_to_hub("team/mixin", token=job["token"])
mixin = open_model("team/mixin")
compare_forward("mixin:", mixin, model.tokenizer)
changed = {"path_or_fileobj": job["changed tokenizer"], "path_in_repo": "tokenizer.json"}
HfApi().upload_file(repo_id="team/mixin", token=job["token"], **changed)
encode("moved on after loading:", mixin)
print(json.dumps(report))
"""

# Follows the lines that hide every package which inference can do without.
OPEN_WITH_LITTLE = """
import json
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoTokenizer

job = json.loads(sys.argv[1])
expected = load_file(job["expected"])
tasks = list(AutoConfig.from_pretrained("team/model", trust_remote_code=True).tasks)
tokenizer = AutoTokenizer.from_pretrained("team/model", trust_remote_code=True)
model = AutoModel.from_pretrained("team/model", trust_remote_code=True)
with torch.no_grad():
    output = model(**tokenizer(job["sentences"], padding=True, return_tensors="pt"))
same = {task: torch.equal(logits, expected[task]) for task, logits in output.logits.items()}
same["sentence_embedding"] = torch.equal(output.sentence_embedding, expected["sentence_embedding"])
same["encode"] = torch.equal(model.encode(job["sentences"], convert_to="tensor"), expected["encode"])
imported = sorted(BLOCKED & {name.partition(".")[0] for name in sys.modules})
print(json.dumps({"tasks": tasks, "same": same, "imported": imported}))
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
    (folder / "README.md").write_text(
        "---\nlicense: apache-2.0\n---\n\nThe card of the run. ![Scores](scores.png)\n", encoding="utf-8"
    )
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
def changed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with another tokenizer: two words have changed places. Read only."""
    changed = shutil.copytree(folder, tmp_path_factory.mktemp("run") / "changed")
    tokenizer = json.loads((changed / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["cat"], vocabulary["news"] = vocabulary["news"], vocabulary["cat"]
    (changed / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return changed


@pytest.fixture(scope="module")
def pushed(hub: Any, folder: Path, changed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """URL of the commit, by a name for each push that the first process made."""
    root = tmp_path_factory.mktemp("pushing")
    pushes = {
        "model": {"folder": str(folder), "repo_id": "team/model"},
        "first": {"folder": str(folder), "repo_id": "team/moved"},
        "second": {"folder": str(changed), "repo_id": "team/moved", "commit_message": "Swap two words"},
        "private": {"folder": str(folder), "repo_id": "team/private", "private": True},
        "branch": {"folder": str(folder), "repo_id": "team/branches", "revision": "trial/1"},
    }
    environment = hub.environment(root / "home")
    urls = run_python(PUSH, list(pushes.values()), environment, root)
    return dict(zip(pushes, urls, strict=True))


@pytest.fixture(scope="module")
def loaded(
    hub: Any,
    model: MultiTaskModel,
    pushed: dict[str, str],
    changed: Path,
    block_packages: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What two more processes found, each with an empty cache, no token, and only the endpoint."""
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
        "saved": str(root / "saved"),
        "changed tokenizer": str(changed / "tokenizer.json"),
    }
    (root / "elsewhere").mkdir()
    report = run_python(LOAD, job, hub.environment(root / "home", token=None), root / "elsewhere")
    script = block_packages + OPEN_WITH_LITTLE
    little = run_python(script, job, hub.environment(root / "another home", token=None), root / "elsewhere")
    return {**report, "again folder": root / "again", "with little": little}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pushed_files(server: Any, repo_id: str, branch: str = "main") -> dict[str, bytes]:
    """What a branch holds beyond the Hub's own .gitattributes."""
    files = server.repositories[repo_id].branches[branch][-1].files
    return {path: file.content for path, file in files.items() if path != ".gitattributes"}


def titles(server: Any, repo_id: str, branch: str = "main") -> list[str]:
    """Titles of the commits after the one that the Hub makes."""
    return [commit.message for commit in server.repositories[repo_id].branches[branch][1:]]


# ---- one process pushes ----


def test_push_is_one_commit_of_everything_that_makes_up_the_finished_folder(
    hub: Any, folder: Path, pushed: dict[str, str]
) -> None:
    found = pushed_files(hub, "team/model")
    assert set(found) >= OPENS_A_MODEL | BELONGS_TO_A_RUN
    listed = json.loads(found.pop("manifest.json"))["files"]
    assert {path: entry["sha256"] for path, entry in listed.items()} == {
        path: hashlib.sha256(content).hexdigest() for path, content in found.items()
    }
    stay_behind = STAYS_BEHIND | {"manifest.json"}  # the folder's own does not list what was added since
    assert found == {path: content for path, content in contents(folder).items() if path not in stay_behind}
    assert titles(hub, "team/model") == ["Upload multi-task sentence model"]
    assert hub.count("POST", "/api/models/team/model/commit/") == 1
    commit = hub.repositories["team/model"].branches["main"][-1]
    assert pushed["model"] == f"{hub.url}/team/model/commit/{commit.oid}"


def test_private_push_makes_a_private_repository_and_others_are_public(hub: Any, pushed: dict[str, str]) -> None:
    assert hub.repositories["team/private"].private
    assert not hub.repositories["team/model"].private


def test_push_to_a_revision_makes_the_branch_and_leaves_main_alone(
    hub: Any, folder: Path, pushed: dict[str, str]
) -> None:
    assert pushed_files(hub, "team/branches") == {}
    assert pushed_files(hub, "team/branches", "trial/1") == pushed_files(hub, "team/model")


# ---- another process loads by id ----


@pytest.mark.parametrize("door", ["id", "pinned", "mixin"])
@pytest.mark.parametrize("name", ["last_hidden_state", "sentence_embedding", *TASKS])
@pytest.mark.slow
def test_forward_by_id_gives_the_same_bits_in_a_clean_process(loaded: dict[str, Any], door: str, name: str) -> None:
    assert loaded[f"{door}: {name}"] is True


@pytest.mark.slow
def test_clean_process_runs_the_code_of_the_repository(hub: Any, loaded: dict[str, Any]) -> None:
    commit = hub.repositories["team/model"].branches["main"][-1]
    assert loaded["code"] == f"transformers_modules.team.model.{commit.oid}.modeling_multitask"
    assert not loaded["our package"]
    assert set(loaded["tasks"]) == set(TASKS)


@pytest.mark.slow
def test_id_opens_with_the_same_bits_where_only_torch_transformers_and_numpy_are_installed(
    loaded: dict[str, Any],
) -> None:
    found = loaded["with little"]
    assert found["imported"] == []
    assert set(found["tasks"]) == set(TASKS)
    assert found["same"] == {"mood": True, "rating": True, "sentence_embedding": True, "encode": True}


@pytest.mark.slow
def test_sentence_transformers_opens_the_id_with_the_same_bits(loaded: dict[str, Any]) -> None:
    assert loaded["SentenceTransformer: sentence_embedding"] is True


@pytest.mark.slow
def test_pipelines_open_the_id_with_the_same_answers(loaded: dict[str, Any]) -> None:
    assert loaded["pipeline: embedding"] is True
    assert loaded["pipeline: largest difference"] <= 1e-6


@pytest.mark.parametrize("door", ["id", "pinned", "branch"])
@pytest.mark.slow
def test_encode_fetches_the_tokenizer_of_its_own_revision(loaded: dict[str, Any], door: str) -> None:
    assert loaded["latest: encode"] is False, "premise: the last commit's tokenizer gives other embeddings"
    assert loaded[f"{door}: encode"] is True


@pytest.mark.slow
def test_encode_fetches_the_tokenizer_that_came_with_the_weights_when_the_branch_has_moved_on(
    loaded: dict[str, Any],
) -> None:
    assert loaded["moved on after loading: encode"] is True


@pytest.mark.slow
def test_encode_fetches_the_tokenizer_of_a_private_repository_with_the_given_token(loaded: dict[str, Any]) -> None:
    assert loaded["private: encode"] is True


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no such repository", "team/nothing is not a local folder and is not a valid model identifier"),
        ("no such revision", f"{'0' * 40} is not a valid git identifier"),
        ("private without a token", "If this is a private repository, make sure to pass a token"),
    ],
)
@pytest.mark.slow
def test_loading_what_is_not_there_says_so(loaded: dict[str, Any], name: str, says: str) -> None:
    assert says in loaded[name]


# ---- the doors of transformers to push through ----


@pytest.mark.slow
def test_saving_a_model_from_the_hub_again_keeps_its_code_and_auto_map(loaded: dict[str, Any], folder: Path) -> None:
    again, original = contents(loaded["again folder"]), contents(folder)
    assert set(again) >= OPENS_A_MODEL
    code = {path for path in original if path.endswith(".py")}
    assert {path: again[path] for path in code} == {path: original[path] for path in code}
    assert json.loads(again["config.json"])["auto_map"] == json.loads(original["config.json"])["auto_map"]
    assert again["model.safetensors"] == original["model.safetensors"]


@pytest.mark.parametrize("repo_id", ["team/mixin", "team/saved"])
@pytest.mark.slow
def test_push_from_the_model_is_one_commit_of_a_whole_repository(
    hub: Any, loaded: dict[str, Any], repo_id: str
) -> None:
    assert titles(hub, repo_id)[:1] == ["Upload model"]
    first = hub.repositories[repo_id].branches["main"][1].files
    assert set(first) >= OPENS_A_MODEL
    assert b"The card of the run." in first["README.md"].content
    assert {"results.json", "recipe.yaml", "scores.png"} <= set(first)


# ---- a card that somebody has written on the Hub ----


def generated(text: str) -> str:
    """A card as `write_model_card` writes it."""
    return text + MARK.format(hashlib.sha256(text.encode()).hexdigest())


def edit_on_the_hub(server: Any, repo_id: str, text: str, branch: str = "main") -> None:
    """What a person does in the editor of the website."""
    commit = server.repositories[repo_id].branches[branch][-1]
    card = hub_server.File(text.encode("utf-8"), is_large=False)
    server.repositories[repo_id].add(branch, "Update README.md", {**commit.files, "README.md": card})


@pytest.fixture
def own(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished folder of this test's own with a generated card, and no cache from elsewhere."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    copied = shutil.copytree(folder, tmp_path / "own")
    (copied / "README.md").write_text(generated("The first card.\n"), encoding="utf-8")
    return copied


EDITS = {
    "edited": generated("The first card.\n").replace("first", "corrected"),
    "extended": generated("The first card.\n") + "Written to by hand.\n",
    "somebody else's": "---\nlicense: mit\n---\n# Mine\n",
    "no UTF-8": "caf\u00e9",
    "empty": "",
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("branch", ["main", "trial"])
def test_card_that_was_edited_on_the_hub_is_kept_and_ours_goes_beside_it(
    nearby: Any, own: Path, edit: str, branch: str, caplog: pytest.LogCaptureFixture
) -> None:
    revision = None if branch == "main" else branch
    push_folder(own, "team/mine", revision=revision)
    assert pushed_files(nearby, "team/mine", branch)["README.md"] == (own / "README.md").read_bytes()
    edit_on_the_hub(nearby, "team/mine", EDITS[edit], branch)
    for text in ("The second card.\n", "The third card.\n"):
        (own / "README.md").write_text(generated(text), encoding="utf-8")
        caplog.clear()
        push_folder(own, "team/mine", revision=revision)
        files = pushed_files(nearby, "team/mine", branch)
        assert files["README.md"].decode("utf-8") == EDITS[edit]
        assert files["README.generated.md"].decode("utf-8") == generated(text)
        assert "The card of team/mine was written or edited on the Hub, so it stays as it is." in caplog.text
        ending = " --revision trial" if revision else ""
        assert f"hf upload team/mine {own / 'README.md'} README.md{ending}\n" in caplog.text + "\n"


def test_card_that_is_as_it_was_written_is_replaced_without_a_word(
    nearby: Any, own: Path, caplog: pytest.LogCaptureFixture
) -> None:
    push_folder(own, "team/mine")
    for text in (generated("The second card.\n"), "Edited in the folder.\n", "Edited in the folder.\n"):
        (own / "README.md").write_text(text, encoding="utf-8")
        push_folder(own, "team/mine")
        files = pushed_files(nearby, "team/mine")
        assert files["README.md"].decode("utf-8") == text
        assert "README.generated.md" not in files
    assert "stays as it is" not in caplog.text


def test_models_that_were_saved_in_the_folder_stay_behind(nearby: Any, own: Path) -> None:
    shutil.copytree(own, own.parent / "other")
    shutil.move(own.parent / "other", own / "final")
    (own / "plain" / "mood").mkdir(parents=True)
    (own / "plain" / "mood" / "config.json").write_text("{}", encoding="utf-8")
    push_folder(own, "team/mine")
    files = pushed_files(nearby, "team/mine")
    assert "plain/mood/config.json" in files and not [path for path in files if path.startswith("final/")]


# ---- pushes that fail ----


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        ("no token", r"There is no token to push to team/mine with\. Log in with `hf auth login`"),
        ("wrong token", "The Hub does not accept the token"),
        ("token that reads", "The token of team may only read"),
        ("token of another user", r"The token of other may not push to team/mine\. .* under: other, other-lab\."),
        ("no creating", r"may not write to team/mine \(You don't have the rights to create a model"),
        ("no committing", r"may not write to team/mine \(You don't have write access"),
        ("connection lost", "Server disconnected"),
    ],
)
def test_failed_push_keeps_the_folder_commits_nothing_and_says_how_to_repeat(
    nearby: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, trouble: str, says: str
) -> None:
    tokens = {
        "wrong token": "hf_wrong",
        "token that reads": hub_server.READ_TOKEN,
        "token of another user": hub_server.OTHER_TOKEN,
    }
    if trouble == "no token":
        monkeypatch.delenv("HF_TOKEN")
    nearby.forbidden = {"no creating": {"create"}, "no committing": {"commit"}}.get(trouble, set())
    nearby.drops_uploads = trouble == "connection lost"
    before = contents(folder)
    with pytest.raises(OSError, match=says) as caught:
        push_folder(folder, "team/mine", token=tokens.get(trouble))
    assert f"The folder {folder} is complete and unchanged." in str(caught.value)
    assert str(caught.value).endswith(f"\n    multitask-sentence push {folder} team/mine")
    assert contents(folder) == before
    assert all(len(repository.branches["main"]) == 1 for repository in nearby.repositories.values())


def test_command_of_a_failed_push_repeats_it(nearby: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nearby.drops_uploads = True
    with pytest.raises(SystemExit, match="was not pushed to team/mine") as caught:
        push.main([str(folder), "team/mine", "--private", "--revision", "trial"])
    assert nearby.count("PUT", "/lfs/") > 1, "premise: the upload began, and was tried again"
    nearby.drops_uploads = False
    command, *arguments = shlex.split(str(caught.value).splitlines()[-1])
    assert command == "multitask-sentence"
    capsys.readouterr()
    main(arguments)
    expected = {path: content for path, content in contents(folder).items() if path not in STAYS_BEHIND}
    assert {**pushed_files(nearby, "team/mine", "trial"), "manifest.json": expected["manifest.json"]} == expected
    assert nearby.repositories["team/mine"].private
    assert titles(nearby, "team/mine") == []
    commit = nearby.repositories["team/mine"].branches["trial"][-1].oid
    assert f"AutoModel.from_pretrained('team/mine', revision='{commit}'" in capsys.readouterr().out


def test_weights_of_openvino_are_pushed_and_pickles_are_not(nearby: Any, own: Path) -> None:
    names = {"training_args.bin", "openvino/openvino_model.bin", "runs/a.csv"}
    for name in names:
        (own / name).parent.mkdir(exist_ok=True)
        (own / name).write_bytes(b"numbers")
    push_folder(own, "team/mine")
    files = set(pushed_files(nearby, "team/mine"))
    assert files & {"training_args.bin", "openvino/openvino_model.bin", "runs/a.csv"} == {
        "openvino/openvino_model.bin"
    }


def test_push_again_after_the_connection_was_lost_succeeds(nearby: Any, folder: Path) -> None:
    nearby.drops_uploads = True
    with pytest.raises(OSError, match="was not pushed"):
        push_folder(folder, "team/mine")
    nearby.drops_uploads = False
    push_folder(folder, "team/mine", commit_message="Second attempt")
    assert titles(nearby, "team/mine") == ["Second attempt"]


def test_given_token_goes_before_the_stored_one(nearby: Any, folder: Path) -> None:
    push_folder(folder, "other/mine", token=hub_server.OTHER_TOKEN)
    assert titles(nearby, "other/mine") == ["Upload multi-task sentence model"]


def test_private_push_to_a_public_repository_is_refused(nearby: Any, folder: Path) -> None:
    push_folder(folder, "team/mine")
    with pytest.raises(OSError, match="team/mine exists already and is public"):
        push_folder(folder, "team/mine", private=True, commit_message="A secret")
    assert "A secret" not in titles(nearby, "team/mine")


def test_card_that_the_hub_does_not_take_is_refused_before_anything_is_uploaded(
    nearby: Any, folder: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "README.md").write_text("---\nlicense: apache-2.0\n", encoding="utf-8")
    with pytest.raises(OSError, match=r"Invalid metadata in README\.md"):
        push_folder(broken, "team/mine")
    assert nearby.count("PUT", "/lfs/") == 0


def test_push_of_a_folder_without_a_model_is_refused_before_the_hub_is_asked(nearby: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no finished model to push: there is no config\.json"):
        push_folder(tmp_path, "team/mine")
    assert nearby.requests == []


@pytest.mark.parametrize("repo_id", ["team/a b", "a/b/c", "team/-x", "", "team/x.git"])
def test_id_that_can_be_none_is_refused_before_the_hub_is_asked(nearby: Any, folder: Path, repo_id: str) -> None:
    with pytest.raises(ValueError, match="but should be like user/name"):
        check_can_push(repo_id)
    with pytest.raises(OSError, match=r"multitask-sentence push .* user/name$"):
        push_folder(folder, repo_id)
    assert nearby.requests == []


def test_check_passes_who_may_push_and_creates_nothing(nearby: Any) -> None:
    for repo_id in ("team/mine", "team-lab/mine", "mine"):
        check_can_push(repo_id)
    check_can_push("other/mine", token=hub_server.OTHER_TOKEN)
    assert nearby.repositories == {}
    assert set(nearby.requests) == {("GET", "/api/whoami-v2")}


def test_check_says_what_is_missing(nearby: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="The token of team may only read"):
        check_can_push("team/mine", hub_server.READ_TOKEN)
    with pytest.raises(ValueError, match="The Hub does not accept the token"):
        check_can_push("team/mine", "hf_wrong")
    with pytest.raises(ValueError, match=r"may not push to else/mine\. It may push under: team, team-lab\."):
        check_can_push("else/mine")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="There is no token"):
        check_can_push("team/mine")


def test_check_without_a_hub_to_reach_is_an_error_of_the_system(nearby: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="The Hub cannot be asked whether the token may push"):
        check_can_push("team/mine")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="offline mode"):
        check_can_push("team/mine")


# ---- the command pushes what it has trained ----


def test_command_pushes_the_finished_folder_in_one_commit(
    nearby: Any, tiny_backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["text,mood"] + [f"the {thing} was {word},{word}" for thing in ("cat", "film") for word in ("good", "bad")]
    (tmp_path / "texts.csv").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(
        f"""
backbone: {tiny_backbone}
tasks:
  mood:
    problem_type: single_label_classification
    dataset: {{path: csv, data_files: {{train: texts.csv, validation: texts.csv, test: texts.csv}}}}
    columns: {{sentence: text, label: mood}}
card: {{language: en, license: mit}}
training: {{num_train_epochs: 1, use_cpu: true, disable_tqdm: true, output_dir: {tmp_path / "mine"}}}
""",
        encoding="utf-8",
    )
    run(
        [
            str(tmp_path / "recipe.yaml"),
            "--push_to_hub",
            "--hub_model_id",
            "team/trained",
            "--hub_private_repo",
            "true",
        ]
    )
    assert titles(nearby, "team/trained") == ["Upload multi-task sentence model"]
    assert nearby.repositories["team/trained"].private
    files = pushed_files(nearby, "team/trained")
    assert {"model.safetensors", "tokenizer.json", "README.md", "results.json", "modules.json"} <= set(files)
    assert not [path for path in files if path.startswith("checkpoint-")]
    assert b"team/trained" in files["README.md"]
    assert b"language: en\n" in files["README.md"]
    assert b"license: mit\n" in files["README.md"]
    commit = nearby.repositories["team/trained"].branches["main"][-1]
    assert f"revision='{commit.oid}'" in capsys.readouterr().out


def test_command_without_a_token_stops_before_it_trains(
    nearby: Any, tmp_path: Path, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "recipe.yaml").write_text(
        f"""
backbone: {tiny_backbone}
tasks:
  mood:
    problem_type: single_label_classification
    dataset: {{path: csv, data_files: {{train: there_is_no_such_file.csv}}}}
    columns: {{sentence: text, label: mood}}
""",
        encoding="utf-8",
    )
    arguments = ["--push_to_hub", "--hub_model_id", "team/trained", "--output_dir", str(tmp_path / "mine")]
    with pytest.raises(ValueError, match="token"):
        run([str(tmp_path / "recipe.yaml"), *arguments])
    assert not (tmp_path / "mine").exists()


def test_command_refuses_a_repository_that_is_not_pinned_and_names_its_commit(
    nearby: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = push_folder(folder, "team/pinned")
    commit = url.rsplit("/", 1)[1]
    with caplog.at_level("WARNING"):
        check_pinned("team/pinned", None, require_pinned=False)
    assert f"team/pinned is opened at main, which stands at {commit} now. Who may write there" in caplog.text
    message = (
        f"team/pinned: --require_pinned asks for a commit, not main, which stands at {commit} now. Give --revision"
    )
    with pytest.raises(ValueError, match=message):
        check_pinned("team/pinned", None, require_pinned=True)
    caplog.clear()
    check_pinned("team/pinned", commit, require_pinned=True)
    check_pinned(str(folder), None, require_pinned=True)
    assert caplog.text == ""


def test_models_to_compare_are_pinned_by_a_commit_after_an_at(
    nearby: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = push_folder(folder, "team/compared").rsplit("/", 1)[1]
    found = Path(pinned_folder(f"team/compared@{commit}", require_pinned=True))
    assert found.name == commit and (found / "model.safetensors").is_file()
    assert pinned_folder(str(folder), require_pinned=True) == str(folder)
    with pytest.raises(ValueError, match=f"main, which stands at {commit} now. Give team/compared@{commit}"):
        pinned_folder("team/compared", require_pinned=True)
    with pytest.raises(ValueError, match=r"after the @ should be the 40 digits of a commit\. Found 'main'"):
        pinned_folder("team/compared@main", require_pinned=False)
    with pytest.raises(SystemExit, match="error: team/compared: --require_pinned asks for a commit"):
        compare.main(["team/compared", str(folder), "--require_pinned"])


def test_run_that_goes_on_from_the_hub_says_so_or_refuses(
    nearby: Any, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    commit = push_folder(folder, "team/started").rsplit("/", 1)[1]
    (tmp_path / "recipe.yaml").write_text(
        f"""
continue_from: team/started
tasks:
  mood:
    problem_type: single_label_classification
    dataset: {{path: csv, data_files: {{train: texts.csv}}}}
    columns: {{sentence: text, label: mood}}
distillation: {{teachers: {{mood: [{folder}, {{model: team/teacher}}]}}}}
""",
        encoding="utf-8",
    )
    with caplog.at_level("WARNING"):
        check_hub_names(load_recipe(tmp_path / "recipe.yaml"), require_pinned=False)
    assert f"team/started is opened at main, which stands at {commit} now." in caplog.text
    assert f"hf download team/started --revision {commit} --local-dir FOLDER" in caplog.text
    assert "team/teacher is opened at main. Who may write" in caplog.text and str(folder) not in caplog.text
    with pytest.raises(ValueError, match="team/started: --require_pinned asks for a commit"):
        run([str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "mine"), "--require_pinned"])
