"""The example notebook runs, cell by cell, in a fresh process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "example.ipynb"
SHOW = """
print("accuracy", scores["eval_mood_accuracy"])
print("embeddings", embeddings.shape, answers["embedding"].shape)
print("moods", answers["mood"]["labels"])
print("same", (opened.encode(sentences) == model.encode(sentences)).all())
"""


def test_notebook_is_stored_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.pretrained
def test_notebook_trains_a_model_that_answers_and_opens_again(tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    script = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    (tmp_path / "cells.py").write_text(script + SHOW, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "cells.py"], cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    shown = dict(line.split(" ", 1) for line in ran.stdout.splitlines()[-4:])
    assert float(shown["accuracy"]) == 1.0
    assert shown["embeddings"] == "(2, 384) (2, 384)"
    assert shown["moods"] == "['good', 'bad']"
    assert shown["same"] == "True"
