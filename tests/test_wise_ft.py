"""WiSE-FT: what is mixed and what is not, which mixture is kept, and where there is nothing to mix."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from multitask_sentence.train import run
from multitask_sentence.training import wise_ft
from multitask_sentence.training.trainer import MultiTaskTrainer
from multitask_sentence.training.wise_ft import backbone_weights, format_mixing, mix_with_start

_spec = importlib.util.spec_from_file_location("trainer_helpers", Path(__file__).with_name("trainer_helpers.py"))
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)

TASKS = ("sentiment", "rating", "pairs")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return helpers.make_backbone(tmp_path_factory.mktemp("backbone"))


def make_trainer(backbone: Path, folder: Path, **kwargs: Any) -> MultiTaskTrainer:
    model = helpers.make_model(backbone, TASKS, projection={"out_features": 24})
    counts = {"train": 24, "validation": 30}
    sets = [helpers.make_set(["sentiment", "rating"], **counts), helpers.make_set(["pairs"], seed=100, **counts)]
    return helpers.make_trainer(model, sets, folder, **kwargs)


def test_backbone_alone_is_mixed_with_what_it_started_from(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(wise_ft, "ALPHAS", (0.75,))
    start = backbone_weights(make_trainer(backbone, tmp_path).model.backbone)
    plain, mixed = (make_trainer(backbone, tmp_path, wise_ft=wanted) for wanted in (False, True))
    for trainer in (plain, mixed):
        trainer.train()
    assert plain.mixing is None
    trained = dict(plain.model.named_parameters())
    for name, weights in mixed.model.named_parameters():
        if name.startswith("backbone."):
            before = start[name.removeprefix("backbone.")]
            torch.testing.assert_close(weights, 0.75 * trained[name] + 0.25 * before, rtol=0, atol=1e-7)
            assert "pooler" in name or not torch.equal(weights, trained[name])
        else:
            assert torch.equal(weights, trained[name])


def test_best_mixture_on_validation_data_stays_in_the_model(backbone: Path, tmp_path: Path):
    trainer = make_trainer(backbone, tmp_path, learning_rate=3e-2)  # so large that going back must help
    start = backbone_weights(trainer.model.backbone)
    trainer.train()
    of_trained = trainer.evaluate()["eval_score"]
    mixing = mix_with_start(trainer, start)
    by_alpha = {mixture["alpha"]: mixture["score"] for mixture in mixing["measured"]}
    assert list(by_alpha) == list(wise_ft.ALPHAS)
    assert by_alpha[1.0] == pytest.approx(of_trained, abs=1e-6)
    assert mixing["alpha"] != 1.0
    assert by_alpha[mixing["alpha"]] == max(by_alpha.values())
    assert trainer.evaluate()["eval_score"] == pytest.approx(max(by_alpha.values()), abs=1e-6)
    assert set(mixing["measured"][0]["scores"]) == set(TASKS)


def test_trained_weights_stay_to_the_last_bit_where_no_mixture_is_better(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trainer = make_trainer(backbone, tmp_path)
    start = backbone_weights(trainer.model.backbone)
    trainer.train()
    trained = backbone_weights(trainer.model.backbone)
    same = trainer.measure("validation", TASKS)
    monkeypatch.setattr(trainer, "measure", lambda split, tasks: same)  # of equals, the trained weights
    assert mix_with_start(trainer, start)["alpha"] == 1.0
    for name, weights in trainer.model.backbone.named_parameters():
        assert torch.equal(weights, trained[name])


def test_resumed_run_is_mixed_with_the_same_start(backbone: Path, tmp_path: Path):
    whole = make_trainer(backbone, tmp_path, wise_ft=True, save_strategy="steps", save_steps=2)
    whole.train()
    resumed = make_trainer(backbone, tmp_path, wise_ft=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.mixing == whole.mixing
    for name, weights in resumed.model.named_parameters():
        assert torch.equal(weights, whole.model.get_parameter(name)), name


def test_table_marks_the_chosen_mixture():
    measured = [{"alpha": alpha, "score": 0.5, "scores": {"mood": 0.25, "pairs": 0.75}} for alpha in (1.0, 0.9)]
    lines = format_mixing({"alpha": 0.9, "measured": measured}).splitlines()
    assert lines[1].split() == ["alpha", "mood", "pairs", "mean", "chosen"]
    assert lines[3].split() == ["1", "0.2500", "0.7500", "0.5000"]
    assert lines[4].split() == ["0.9", "0.2500", "0.7500", "0.5000", "<"]


# ---- in a recipe ----

RECIPE = {
    "tasks": {
        "stars": {
            "problem_type": "regression",
            "dataset": {"path": "csv", "data_files": {"train": "train.csv", "validation": "train.csv"}},
            "columns": {"sentence": "text", "label": "stars"},
        }
    },
    "training": {"wise_ft": True, "use_cpu": True, "disable_tqdm": True, "max_steps": 2, "save_strategy": "no"},
}


def write_recipe(folder: Path, backbone: Path, **changes: Any) -> Path:
    path = folder / "recipe.yaml"
    training = {**RECIPE["training"], "output_dir": str(folder / "result"), "load_best_model_at_end": False}
    content = {"backbone": str(backbone), **RECIPE, "training": training, **changes}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": {"freeze": "backbone"}}, "strategy trains none of them"),
        ({"peft": {"target_modules": ["query"]}}, "only an adapter beside them is trained"),
    ],
)
def test_nothing_to_mix_is_refused_before_data_is_loaded(
    tmp_path: Path, backbone: Path, changes: dict[str, Any], message: str
):
    recipe = write_recipe(tmp_path, backbone, **changes)  # there is no train.csv
    with pytest.raises(ValueError, match=f"recipe.yaml: wise_ft mixes the backbone's weights, but {message}"):
        run([str(recipe)])


def test_run_shows_and_stores_what_was_mixed(tmp_path: Path, backbone: Path, capsys: pytest.CaptureFixture):
    rows = [f"{sentence},{place}" for place, sentence in enumerate(helpers.make_sentences(12, seed=3))]
    (tmp_path / "train.csv").write_text("\n".join(["text,stars", *rows]) + "\n", encoding="utf-8")
    run([str(write_recipe(tmp_path, backbone))])
    assert "Trained weights and those of the start (WiSE-FT), on validation data" in capsys.readouterr().out
    mixing = yaml.safe_load((tmp_path / "result" / "results.json").read_text(encoding="utf-8"))["wise_ft"]
    card = (tmp_path / "result" / "README.md").read_text(encoding="utf-8")
    assert f"The backbone's weights are {mixing['alpha']:g} times the trained ones" in card
    saved = load_file(tmp_path / "result" / "model.safetensors")
    assert len(mixing["measured"]) == len(wise_ft.ALPHAS)
    assert any(name.startswith("backbone.") for name in saved)
