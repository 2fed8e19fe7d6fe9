"""The models in best/ are finished ones: thresholds, temperatures and scopes are chosen for them as for the result."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from helpers.small_job import change, make_recipe, write_rows
from multitask_sentence import MultiTaskModel
from multitask_sentence.train import run
from multitask_sentence.training.evaluation.scores import choose_thresholds


def test_models_of_the_best_steps_are_settled_as_the_finished_one(tmp_path: Path, tiny_backbone: str) -> None:
    write_rows(tmp_path)
    known = pd.read_csv(tmp_path / "texts_train.csv")
    for split in ("validation", "test"):  # rows in scope, and rows of other words
        rows = pd.concat([pd.read_csv(tmp_path / f"texts_{split}.csv"), known])
        rows.to_csv(tmp_path / f"texts_{split}.csv", index=False)
    job = make_recipe(tmp_path, tiny_backbone, ("mood", "tags"))
    content = yaml.safe_load(job.read_text(encoding="utf-8"))
    content["tasks"]["mood"]["abstain"] = {"risk": 0.95, "out_of_scope": 90}
    run([str(change(job, tasks=content["tasks"], training={**content["training"], "num_train_epochs": 2}))])
    result = tmp_path / "result"
    results = json.loads((result / "results.json").read_text(encoding="utf-8"))
    best = results["best_of_tasks"]
    finished = MultiTaskModel.from_pretrained(result)
    for split, found in results["abstention"]["mood"]["splits"].items():
        texts = pd.read_csv(tmp_path / f"texts_{split}.csv").dropna(subset=["mood"])
        given = finished.predict(list(texts["text"]), head="mood")["mood"]["labels"]
        pairs = [pair for pair in zip(given, texts["mood"], strict=True) if pair[0] is not None]
        assert (found["answered"], found["wrong"]) == (len(pairs), sum(one != other for one, other in pairs)), split
        assert found["rows"] == len(texts) > found["answered"] > 0, "premise: some are out of scope"
    assert max(results["abstention"]["mood"]["curve"]["coverage"]) < 1
    rows = pd.read_csv(tmp_path / "texts_validation.csv").dropna(subset=["tags"])
    for task in ("mood", "tags"):
        model = MultiTaskModel.from_pretrained(result / "best" / task)
        assert model.config.tasks["mood"].abstain.confidence is not None
        assert model.predict(["the cat ran"])["mood"]["out_of_scope"].shape == (1,)
        probabilities = model.predict(list(rows["text"]), head="tags")["tags"]["probabilities"]
        found = np.array([[label == own for own in model.config.tasks["tags"].labels] for label in rows["tags"]])
        assert model.config.tasks["tags"].thresholds == pytest.approx(
            choose_thresholds(probabilities, found), abs=1e-4
        )
        assert json.loads((result / "best" / task / "best.json").read_text())["step"] == best[task]["step"]
        assert (result / "best" / task / "row_hashes.parquet").is_file()
    assert sorted(path.name for path in (result / "best").iterdir()) == ["mood", "tags"]
