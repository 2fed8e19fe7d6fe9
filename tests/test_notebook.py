"""The example notebook runs, cell by cell."""

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "example.ipynb"


def test_notebook_is_stored_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.pretrained
@pytest.mark.slow
def test_notebook_trains_a_model_that_answers_and_opens_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
    assert names["scores"]["eval_mood_accuracy"] == 1.0
    assert names["embeddings"].shape == names["answers"]["embedding"].shape == (2, 384)
    assert names["answers"]["mood"]["labels"] == ["good", "bad"]
    opened, model = names["opened"], names["model"]
    assert (opened.encode(names["sentences"]) == model.encode(names["sentences"])).all()
