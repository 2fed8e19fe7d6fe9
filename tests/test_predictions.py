"""What stands in predictions/<task>.parquet, by problem type and number of labels."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import trainer as helpers
from multitask_sentence.training.evaluation import scores as evaluation
from multitask_sentence.training.report.predictions import write_predictions

SINGLE = ["sentiment", "tags", "rating"]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("predictions")
    model = helpers.make_model(helpers.make_backbone(folder / "bert"))
    model.config.change_task("tags", thresholds=[0.48, 0.54])  # so that some labels are predicted, and some are not
    sets = [helpers.make_set(SINGLE, {"tags": 0.6}, train=4, validation=12, test=9)]
    sets += [helpers.make_set([task], seed=5, train=4, validation=7) for task in ("pairs", "search")]
    return helpers.make_trainer(model, sets, folder)


def read(trainer, folder: Path) -> dict[str, pd.DataFrame]:
    answers = {split: trainer.evaluate_and_answer(split)[1] for split in ("validation", "test")}
    write_predictions(folder, trainer.tasks, trainer.evaluations, answers)
    return {path.stem: pd.read_parquet(path) for path in (folder / "predictions").iterdir()}


def test_every_labelled_row_stands_there_with_its_truth(trainer, tmp_path):
    found = read(trainer, tmp_path)
    assert list(found["sentiment"]) == ["split", "text", "label", "prediction", "probabilities"]
    labels = trainer.tasks["sentiment"].labels
    rows = [
        [split, row["sentences"][0], labels[row["label_sentiment"]]]
        for split in ("validation", "test")
        for row in trainer.sets[0].splits[split]
    ]
    assert found["sentiment"][["split", "text", "label"]].to_numpy().tolist() == rows
    assert 0 < len(found["tags"]) < len(rows), "rows without a label for the task are left out"
    expected = [row["label_rating"] for split in ("validation", "test") for row in trainer.sets[0].splits[split]]
    np.testing.assert_allclose(found["rating"].label, expected, rtol=1e-6)


def test_predictions_are_those_of_predict(trainer, tmp_path):
    found = read(trainer, tmp_path)
    for task in SINGLE:
        answer = trainer.model.predict(found[task].text.tolist(), tasks=task)[task]
        if task == "rating":
            np.testing.assert_allclose(found[task].prediction, answer["values"], rtol=1e-4, atol=1e-5)
            continue
        assert [list(row) if task == "tags" else row for row in found[task].prediction] == answer["labels"]
        np.testing.assert_allclose(np.stack(found[task].probabilities), answer["probabilities"], atol=1e-5)
    pairs = found["pairs"]
    cosines = trainer.model.predict(list(zip(pairs.text1, pairs.text2, strict=True)), tasks="pairs")["pairs"]["scores"]
    np.testing.assert_allclose(pairs.prediction, cosines, atol=1e-5)
    assert list(found["search"]) == ["split", "text1", "text2", "text3", "rank"]
    reciprocal = trainer.evaluate()["eval_search_mrr"]
    assert (1 / found["search"]["rank"]).mean() == pytest.approx(reciprocal)


def test_of_many_labels_the_most_probable_stand_there(trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "ALL_PROBABILITIES", 2)
    monkeypatch.setattr(evaluation, "MOST_PROBABLE", 2)
    found = read(trainer, tmp_path)["sentiment"]
    probabilities = trainer.model.predict(found.text.tolist(), tasks="sentiment")["sentiment"]["probabilities"]
    best = torch.from_numpy(probabilities).topk(2)
    labels = np.array(trainer.tasks["sentiment"].labels)
    assert [list(row) for row in found.most_probable] == labels[best.indices.numpy()].tolist()
    np.testing.assert_allclose(np.stack(found.probabilities), best.values, atol=1e-5)
    assert [row[0] for row in found.most_probable] == found.prediction.tolist()
