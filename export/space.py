"""A folder as a Hugging Face Space: a Gradio app with the model beside it."""

import importlib.metadata
import json
import re
import shutil
import sys
from pathlib import Path

import torch
import transformers
import yaml

from ..manifest_multitask import MANIFEST_FILE, update_manifest
from ..staging_multitask import SHOWN, entries_of, files_of
from ..training.report.publish import check_base, stays_behind

APP = Path(__file__).with_name("space_app.py")
SDK_VERSION = "6.31.0"  # the one that the app is tested with
EXPORTS = ("onnx/", "openvino/", "plain/")  # which the app does not open


def _copy_model(folder: Path, model: Path) -> None:
    """What a push takes, without exports."""
    for name in files_of(folder):
        if not stays_behind(name) and not name.startswith(EXPORTS):
            (model / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, model / name)
    if (model / MANIFEST_FILE).is_file():
        update_manifest(model, names=())  # without what was left out


def write_space(folder: Path, space: Path, title: str | None = None) -> None:
    """
    Write app.py, requirements.txt, README.md with the Space's header, and the model into a new folder.

    Args:
        folder: a trained model.
        space: what is pushed as a Space; must not exist, or be empty.
        title: of the Space; the folder's name where nothing is said.

    Raises:
        ValueError: `folder` holds no model of ours, or an adapter on a folder, which nobody else has, or `space` holds
            something.
    """
    config = folder / "config.json"
    if not config.is_file() or '"model_type": "multitask"' not in config.read_text(encoding="utf-8"):
        raise ValueError(f"{folder} holds no multi-task model. Give the folder of a finished run.")
    if space.exists() and entries_of(space):
        raise ValueError(f"{space} is not empty. Give a new folder for the Space.")
    check_base(folder)
    title = title or folder.resolve().name
    unfinished = space.with_name(f".{space.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    _copy_model(folder, unfinished / "model")
    app = APP.read_text(encoding="utf-8")
    app = re.sub(r"^TITLE = .*$", lambda found: f"TITLE = {title!r}", app, flags=re.MULTILINE)
    (unfinished / "app.py").write_text(app, encoding="utf-8")
    torch_version = torch.__version__.split("+")[0]
    requirements = [f"torch=={torch_version}", f"transformers=={transformers.__version__}", "safetensors", "numpy"]
    if json.loads(config.read_text(encoding="utf-8")).get("base_name_or_path"):
        requirements.append(f"peft=={importlib.metadata.version('peft')}")
    (unfinished / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")
    header = {
        "title": title,
        "emoji": "\N{LEFT-POINTING MAGNIFYING GLASS}",
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": "gradio",
        "sdk_version": SDK_VERSION,
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",  # which has all that is required
        "app_file": "app.py",
    }
    text = (
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n\nA demo of the model in `model/`.\n"
    )
    (unfinished / "README.md").write_text(text, encoding="utf-8")
    if space.exists():
        (space / SHOWN).unlink(missing_ok=True)
        space.rmdir()
    unfinished.rename(space)


__all__ = ["write_space"]
