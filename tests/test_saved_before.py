"""A model that was saved in November 2026 opens as it did then.

`fixtures/saved_2026_11` was written by that code: a random BERT (hidden 12, layers 2, vocabulary 40), a projection to
10, and every problem type. Its regression tasks have no target scale, because that came later. `expected.json` holds
what the code gave then. The folder is never written anew: a change that breaks it breaks every model in use.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from multitask_sentence import MultiTaskModel

FOLDER = Path(__file__).with_name("fixtures") / "saved_2026_11"
TOLERANCE = 1e-6  # of numbers around 1: the same weights, read and multiplied in the same way


@pytest.fixture(scope="module")
def model() -> MultiTaskModel:
    return MultiTaskModel.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads((FOLDER / "expected.json").read_text())


def assert_same_answers(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for task, answer in expected.items():
        assert found[task].keys() == answer.keys()
        for key, values in answer.items():
            if key == "labels":
                assert list(found[task][key]) == values
            else:
                np.testing.assert_allclose(found[task][key], values, rtol=0, atol=TOLERANCE)


def test_saved_model_gives_the_embeddings_of_then(model: MultiTaskModel, expected: dict[str, Any]) -> None:
    found = model.encode(expected["sentences"])
    np.testing.assert_allclose(found, expected["embeddings"], rtol=0, atol=TOLERANCE)


def test_saved_model_gives_the_logits_of_then(model: MultiTaskModel, expected: dict[str, Any]) -> None:
    inputs = model.tokenizer(expected["sentences"], padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        found = model(**inputs).logits
    assert found.keys() == expected["logits"].keys()
    for task, logits in expected["logits"].items():
        torch.testing.assert_close(found[task], torch.tensor(logits), rtol=0, atol=TOLERANCE)


def test_saved_model_gives_the_answers_of_then(model: MultiTaskModel, expected: dict[str, Any]) -> None:
    assert_same_answers(model.predict(expected["sentences"]), expected["answers"])
    assert_same_answers(model.predict([tuple(pair) for pair in expected["pairs"]]), expected["pair_answers"])


def test_saved_settings_keep_their_values(model: MultiTaskModel) -> None:
    saved = json.loads((FOLDER / "config.json").read_text())
    assert {task: settings["problem_type"] for task, settings in saved["tasks"].items()} == {
        "alike": "similarity",
        "alike_too": "similarity",
        "animals": "multi_label_classification",
        "answers": "contrastive",
        "distance": "regression",
        "entails": "single_label_classification",
        "length": "regression",
        "rating": "regression",
        "topic": "single_label_classification",
    }
    for task, settings in saved["tasks"].items():
        scale = {"target_mean": 0.0, "target_deviation": 1.0} if settings["problem_type"] == "regression" else {}
        assert model.config.tasks[task].to_dict() == {**settings, **scale}
    for key in ("projection", "pooling", "normalize", "max_length"):
        assert model.config.to_dict()[key] == saved[key]


def test_saved_again_the_model_is_the_same(model: MultiTaskModel, expected: dict[str, Any], tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = MultiTaskModel.from_pretrained(tmp_path)
    assert again.config.tasks == model.config.tasks
    np.testing.assert_array_equal(again.encode(expected["sentences"]), model.encode(expected["sentences"]))
