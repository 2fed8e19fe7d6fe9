"""A Space: written whole, started as Spaces start it, and used in a browser where there is one."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig
from peft import __version__ as peft_version

from helpers.every_task import TASKS
from multitask_sentence import MultiTaskModel
from multitask_sentence.export.space import write_space

gradio_client = pytest.importorskip("gradio_client")  # not on the least versions
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# What a run leaves beside its model: whole models of single tasks, texts, logs that name the machine, pickles.
PRIVATE = (
    *("single/mood/model.safetensors", "best/mood/model.safetensors", "predictions/mood.parquet", "report.html"),
    *("runs/Nov26/events.out.tfevents.1.host", "optimizer.pkl", "training_args.bin", "README.generated.md", ".env"),
)
SENTENCE = "the cat sat on the mat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("space") / "my model"
    MultiTaskModel.from_backbone(tiny_backbone, tasks=TASKS).save_pretrained(folder)
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "optimizer.pt").write_bytes(b"large")
    for name in ("onnx/model.onnx", "plain/embedding/config.json", *PRIVATE):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"of the run")
    return folder


@pytest.fixture(scope="module")
def space(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    space = tmp_path_factory.mktemp("written")
    (space / ".DS_Store").write_bytes(b"of the Finder of macOS")
    write_space(folder, space, title='News "and" # more')
    return space


def test_space_has_the_header_the_requirements_and_the_model_alone(space: Path) -> None:
    assert sorted(path.name for path in space.iterdir()) == ["README.md", "app.py", "model", "requirements.txt"]
    left_out = ("checkpoint-3", "onnx", "plain", *PRIVATE)
    assert not [name for name in left_out if (space / "model" / name).exists()]
    header = yaml.safe_load((space / "README.md").read_text().split("---")[1])
    assert (header["sdk"], header["app_file"], header["title"]) == ("gradio", "app.py", 'News "and" # more')
    assert header["python_version"] == f"{sys.version_info.major}.{sys.version_info.minor}"  # as text: 3.10 is no 3.1
    for line in (space / "requirements.txt").read_text().splitlines():
        __import__(re.split("[=<>]", line)[0])


def test_what_is_there_is_not_written_over(space: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not empty\. Give a new folder for the Space"):
        write_space(folder, space)
    with pytest.raises(ValueError, match="holds no multi-task model"):
        write_space(tmp_path, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_space_of_an_adapter_names_peft_and_is_refused_on_a_folder(tiny_backbone: str, tmp_path: Path) -> None:
    model = MultiTaskModel.from_backbone(tiny_backbone, tasks=TASKS)
    model.add_adapter(LoraConfig(r=3, target_modules=["query", "value"]))
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"holds an adapter that was trained on the folder .*Push a whole model"):
        write_space(tmp_path / "saved", tmp_path / "space")
    assert not (tmp_path / "space").exists()
    config = json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))
    config["base_name_or_path"] = "user/base"
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_space(tmp_path / "saved", tmp_path / "space")
    assert f"peft=={peft_version}\n" in (tmp_path / "space" / "requirements.txt").read_text(encoding="utf-8")
    assert (tmp_path / "space/model/adapter/adapter_config.json").is_file()


@pytest.fixture(scope="module")
def url(space: Path) -> Iterator[str]:
    """The running app's address."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-u", "app.py"], cwd=space, stdout=subprocess.PIPE, env=environment, text=True
    )
    for line in process.stdout:
        if found := re.search(r"(http://[\d.:]+)", line):
            break
    yield found[1]
    process.kill()
    process.wait()


def test_app_answers_as_the_model_does(url: str, folder: Path) -> None:
    client = gradio_client.Client(url, verbose=False)
    model = MultiTaskModel.from_pretrained(folder)
    expected = model.predict(SENTENCE, as_list=True)
    mood, tags, rating = client.predict(SENTENCE, api_name="/answer")
    for found, task in ((mood, "mood"), (tags, "tags")):
        scores = {entry["label"]: entry["confidence"] for entry in found["confidences"]}
        assert scores == pytest.approx(expected[task]["scores"], abs=1e-5)
    assert rating == pytest.approx(expected["rating"]["value"], abs=1e-3)
    pair = (SENTENCE, "a dog ran")
    *_, similarity, _, cosine = client.predict(*pair, api_name="/compare")
    score = model.predict(pair, as_list=True)["similarity"]["score"]
    assert similarity == pytest.approx(score, abs=1e-3) and cosine == pytest.approx(score, abs=1e-3)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_labels_are_read_and_lines_are_found_in_a_browser(url: str, folder: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    label = MultiTaskModel.from_pretrained(folder).predict(SENTENCE, tasks="mood")["mood"]["labels"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(url)
        page.fill("#sentence textarea", SENTENCE)
        page.click("#answer")
        playwright.expect(page.get_by_test_id("label-output-value").first).to_have_text(label, timeout=60_000)
        page.get_by_role("tab", name="Search").click()
        page.fill("#lines textarea", f"a dog ran\n{SENTENCE}\nbad news")
        page.fill("#query textarea", SENTENCE)
        page.click("#search")
        rows = page.locator("table tbody tr").filter(has_text=SENTENCE)
        playwright.expect(rows.first).to_contain_text("1.000", timeout=60_000)
        browser.close()
