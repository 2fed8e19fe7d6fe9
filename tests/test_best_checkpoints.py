"""The best step of every task is tracked and its model kept; training stops early; both survive resuming."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from helpers import trainer as helpers
from multitask_sentence.tasks_multitask import TaskConfig
from multitask_sentence.training import evaluation_loop
from multitask_sentence.training.evaluation.best_checkpoints import (
    STEP_FILE,
    best_of_history,
    format_best,
    keep_models,
)
from multitask_sentence.training.evaluation.early_stopping import evaluations_without_improvement
from multitask_sentence.training.run.output_folder import check_output_dir

TASKS = ["sentiment", "rating"]
# Primary metrics at the end of each epoch: sentiment peaks first, rating last, their mean in the third.
SCORES = {"sentiment": [0.5, 0.9, 0.8, 0.2], "rating": [0.1, 0.2, 0.6, 0.7]}
LOSSES: dict[str, list[float]] = {}  # those that were measured, where a test gives no others


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return helpers.make_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def train(backbone, tmp_path, monkeypatch):
    """Trains for four epochs of two steps; what is measured at step 2n is the n-th of `SCORES`."""
    task_scores = evaluation_loop.task_scores

    def scripted(settings, answers):
        task = next(name for name, found in trainer.tasks.items() if found is settings)
        at = trainer.state.global_step // 2 - 1
        losses = {"loss": LOSSES[task][at]} if task in LOSSES else {}
        return {**task_scores(settings, answers), settings.primary_metric: SCORES[task][at], **losses}

    def run(checkpoint: Path | None = None, folder: Path = tmp_path / "run", **kwargs):
        nonlocal trainer
        arguments = {
            "per_device_train_batch_size": 4,
            "num_train_epochs": 4,
            **dict.fromkeys(("eval_strategy", "save_strategy"), "epoch"),
            "load_best_model_at_end": True,
            "save_total_limit": 8,
            **kwargs,
        }
        data = helpers.make_set(TASKS, train=8, validation=6)
        trainer = helpers.make_trainer(helpers.make_model(backbone, TASKS), [data], folder, **arguments)
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        return trainer

    trainer = None
    monkeypatch.setattr(evaluation_loop, "task_scores", scripted)
    return run


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


EXPECTED_SUMMARY = {
    "sentiment": {"metric": "accuracy", "step": 4, "score": 0.9, "chosen_score": 0.8, "folder": "best/sentiment"},
    "rating": {"metric": "pearson", "step": 8, "score": 0.7, "chosen_score": 0.6, "folder": "best/rating"},
}


# The best of every task


def test_best_model_of_every_task_is_kept_and_opens_by_itself(train, tmp_path):
    trainer = train()
    folder = tmp_path / "run"
    for task, step in (("sentiment", 4), ("rating", 8)):
        assert_same(weights_of(folder / "best" / task), weights_of(folder / f"checkpoint-{step}"))
        assert json.loads((folder / "best" / task / STEP_FILE).read_text())["step"] == step
    assert sorted(path.name for path in (folder / "best").iterdir()) == ["rating", "sentiment"]  # nothing half-written
    assert trainer.state.best_global_step == 6
    assert trainer.best_of_tasks.summary == EXPECTED_SUMMARY
    assert trainer.best_of_tasks.chosen_step == 6

    names = {path.name for path in (folder / "best" / "rating").iterdir()}
    assert not names & {"optimizer.pt", "training_args.bin", "trainer_state.json"}
    (folder / "best" / "rating").rename(tmp_path / "moved")
    model = AutoModel.from_pretrained(tmp_path / "moved", trust_remote_code=True)
    assert_same(dict(model.state_dict()), weights_of(folder / "checkpoint-8"))
    assert set(model.predict("word1 word2")) == set(TASKS)


def test_resumed_run_knows_the_best_steps_of_before(train, tmp_path):
    train()
    resumed = train(tmp_path / "run" / "checkpoint-6", num_train_epochs=4)
    assert resumed.best_of_tasks.summary == EXPECTED_SUMMARY
    elsewhere = train(tmp_path / "run" / "checkpoint-6", folder=tmp_path / "elsewhere")
    expected = {**EXPECTED_SUMMARY, "sentiment": {**EXPECTED_SUMMARY["sentiment"], "folder": None}}
    assert elsewhere.best_of_tasks.summary == expected  # step 4 was not kept in that folder


@pytest.mark.parametrize(
    "kwargs", [{"keep_best_of_tasks": False}, {"save_strategy": "no"}], ids=["switch", "no saves"]
)
def test_best_steps_are_tracked_where_models_are_not_kept(kwargs, train, tmp_path):
    trainer = train(load_best_model_at_end=False, **kwargs)
    assert not (tmp_path / "run" / "best").exists()
    found = {
        task: (best["step"], best["chosen_score"], best["folder"])
        for task, best in trainer.best_of_tasks.summary.items()
    }
    assert found == {"sentiment": (4, 0.2, None), "rating": (8, 0.7, None)}  # chosen is the last step, 8


def test_evaluation_after_training_keeps_nothing(train, tmp_path):
    trainer = train(num_train_epochs=1)
    before = (tmp_path / "run" / "best" / "rating" / STEP_FILE).stat().st_mtime_ns
    SCORES["rating"][0] += 0.1
    try:
        trainer.evaluate()
    finally:
        SCORES["rating"][0] -= 0.1
    assert (tmp_path / "run" / "best" / "rating" / STEP_FILE).stat().st_mtime_ns == before
    assert trainer.best_of_tasks.summary["rating"]["score"] == 0.1


def test_of_equal_scores_the_one_with_the_lowest_loss_is_best_also_when_resumed(train, tmp_path, monkeypatch):
    """All scores are right from the second epoch on, while the losses still fall, and rise again in the last."""
    for task, weight in (("sentiment", 1.0), ("rating", 0.5)):
        monkeypatch.setitem(SCORES, task, [0.5, 1.0, 1.0, 1.0])
        monkeypatch.setitem(LOSSES, task, [weight * loss for loss in (2.0, 1.66, 0.06, 0.07)])
    whole = train()
    assert (whole.state.best_global_step, whole.state.best_metric) == (6, 1.0)
    assert Path(whole.state.best_model_checkpoint).name == "checkpoint-6"
    assert_same(dict(whole.model.state_dict()), weights_of(tmp_path / "run" / "checkpoint-6"))
    for task in TASKS:
        assert whole.best_of_tasks.summary[task]["step"] == 6
        assert_same(weights_of(tmp_path / "run" / "best" / task), weights_of(tmp_path / "run" / "checkpoint-6"))
    resumed = train(tmp_path / "run" / "checkpoint-4", folder=tmp_path / "resumed")  # the best before it is step 4
    assert resumed.state.best_global_step == 6
    assert_same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))


def test_step_that_was_evaluated_and_not_saved_is_never_the_best_checkpoint(train, tmp_path, monkeypatch):
    for task in TASKS:
        monkeypatch.setitem(SCORES, task, [0.2, 0.3, 0.9, 0.4])
    trainer = train(**dict.fromkeys(("eval_strategy", "save_strategy"), "steps"), eval_steps=2, save_steps=4)
    assert (trainer.state.best_global_step, trainer.state.best_metric) == (8, 0.4)
    assert trainer.best_of_tasks.chosen_step == 8
    assert_same(dict(trainer.model.state_dict()), weights_of(tmp_path / "run" / "checkpoint-8"))
    for task in TASKS:  # whose best model is kept by itself
        assert (trainer.best_of_tasks.summary[task]["step"], trainer.best_of_tasks.summary[task]["score"]) == (6, 0.9)


def test_best_of_history_takes_the_lowest_loss_of_equals():
    task = TaskConfig(problem_type="single_label_classification", labels=["x", "y"])
    tasks = {"a": task, "b": task}
    losses = [(1, 0.9, 1.66), (2, 1.0, math.nan), (3, 1.0, 0.3), (4, 1.0, 0.06), (5, 1.0, 0.06), (6, 0.9, 0.01)]
    history = [{"step": step, "eval_a_accuracy": score, "eval_a_loss": loss} for step, score, loss in losses]
    assert best_of_history(history, tasks) == {"a": {"metric": "accuracy", "step": 4, "score": 1.0}}


def test_best_of_history_takes_the_first_of_equals_and_never_nan():
    tasks = {
        "a": TaskConfig(problem_type="single_label_classification", labels=["x", "y"]),
        "b": TaskConfig(problem_type="regression"),
        "c": TaskConfig(problem_type="contrastive"),
    }
    history = [
        {"step": 1, "loss": 0.5},
        {"step": 2, "eval_a_accuracy": 0.5, "eval_b_spearman": math.nan},
        {"step": 4, "eval_a_accuracy": 0.7, "eval_b_spearman": -0.5},
        {"step": 6, "eval_a_accuracy": 0.7, "eval_b_spearman": math.nan, "eval_c_mrr": math.nan},
    ]
    assert best_of_history(history, tasks) == {
        "a": {"metric": "accuracy", "step": 4, "score": 0.7},
        "b": {"metric": "spearman", "step": 4, "score": -0.5},
    }


class HalfSaved:
    """A model that can be saved so many times; after that the disk is full."""

    def __init__(self, times: int):
        self.times = times

    def save_pretrained(self, folder: Path):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(str(self.times))
        self.times -= 1
        if self.times < 0:
            raise OSError("No space left on device")
        (folder / "model.safetensors").write_text(str(self.times))


def test_folder_of_the_best_is_the_older_one_until_the_newer_is_complete(tmp_path):
    model, folder = HalfSaved(times=2), tmp_path / "topic"
    keep_models(model, tmp_path, {"topic": {"step": 1}})
    keep_models(model, tmp_path, {"topic": {"step": 2}})
    assert (folder / "model.safetensors").read_text() == "0"
    with pytest.raises(OSError, match="No space left"):
        keep_models(model, tmp_path, {"topic": {"step": 3}})
    assert json.loads((folder / STEP_FILE).read_text()) == {"step": 2}
    assert (folder / "config.json").read_text() == "1"
    model.times = 1
    keep_models(model, tmp_path, {"topic": {"step": 4}, "tone": {"step": 4}})  # in spite of what was left half-written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tone", "topic"]
    assert {path.name for path in (tmp_path / "tone").iterdir()} == {path.name for path in folder.iterdir()}


def test_weights_of_several_tasks_stand_on_the_disk_once_until_one_is_saved_again(backbone, tmp_path):
    model = helpers.make_model(backbone, ("sentiment", "tags"))
    keep_models(model, tmp_path, {"sentiment": {"step": 1}, "tags": {"step": 1}})
    weights, other = (tmp_path / task / "model.safetensors" for task in ("sentiment", "tags"))
    assert weights.samefile(other)
    before = other.read_bytes()
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(tmp_path / "sentiment")
    assert weights.read_bytes() != before == other.read_bytes()


def test_output_folder_with_the_best_of_an_unfinished_run_may_be_replaced(tmp_path):
    keep_models(HalfSaved(times=1), tmp_path / "run" / "best", {"topic": {"step": 1}})
    with pytest.raises(ValueError, match="holds an earlier run"):
        check_output_dir(tmp_path / "run", overwrite=False)
    check_output_dir(tmp_path / "run", overwrite=True)
    (tmp_path / "mine" / "best" / "photos").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"something else than a run \(best\)"):
        check_output_dir(tmp_path / "mine", overwrite=True)


def test_table_shows_best_step_and_both_scores():
    summary = {**EXPECTED_SUMMARY, "tags": {**EXPECTED_SUMMARY["rating"], "chosen_score": None, "folder": None}}
    lines = [" ".join(line.split()) for line in format_best(summary, 6).splitlines()]
    assert lines[1] == "task best step metric score there chosen (step 6) kept in"
    assert lines[3] == "sentiment 4 accuracy 0.9000 0.8000 best/sentiment"
    assert lines[5] == "tags 8 pearson 0.7000 - -"


# Early stopping


@pytest.mark.parametrize(
    ("scores", "threshold", "greater_is_better", "expected"),
    [
        ([0.5], 0.0, True, 0),
        ([0.5, 0.5], 0.0, True, 1),
        ([0.5, 0.6, 0.55, 0.59], 0.0, True, 2),
        ([0.5, 0.4, 0.6], 0.0, True, 0),
        ([0.5, 0.55, 0.6], 0.1, True, 2),  # compared with the best so far, as transformers does
        ([0.5, 0.4, 0.45], 0.0, False, 1),
        ([math.nan, 0.1, math.nan], 0.0, True, 1),
    ],
)
def test_evaluations_without_improvement_are_counted(scores, threshold, greater_is_better, expected):
    assert evaluations_without_improvement(scores, threshold, greater_is_better) == expected


@pytest.mark.parametrize(
    ("kwargs", "steps"),
    [
        ({"early_stopping_patience": 1}, 8),  # the mean falls only in the last epoch
        ({"early_stopping_patience": 1, "early_stopping_threshold": 0.2}, 6),
        ({"early_stopping_patience": 1, "early_stopping_task": "sentiment"}, 6),
        ({"early_stopping_patience": 1, "early_stopping_task": "rating"}, 8),
        ({"early_stopping_patience": 1, "early_stopping_task": "rating", "early_stopping_threshold": 0.1}, 4),
    ],
)
def test_training_stops_early_on_the_mean_or_on_one_task(kwargs, steps, train):
    trainer = train(**kwargs)
    assert trainer.state.global_step == steps
    assert trainer.state.best_global_step == min(steps, 6)


def test_patience_goes_on_counting_when_training_is_resumed(train, tmp_path):
    options = {"early_stopping_patience": 2, "early_stopping_task": "sentiment", "num_train_epochs": 4}
    assert train(**options).state.global_step == 8, "premise: 0.8 and 0.2 after 0.9"
    SCORES["sentiment"].append(0.1)
    SCORES["rating"].append(0.8)
    try:
        options["num_train_epochs"] = 5
        assert train(folder=tmp_path / "whole", **options).state.global_step == 8
        checkpoint = tmp_path / "whole" / "checkpoint-6"
        assert train(checkpoint, folder=tmp_path / "resumed", **options).state.global_step == 8
    finally:
        SCORES["sentiment"].pop()
        SCORES["rating"].pop()


def test_evaluation_before_a_resumed_run_goes_on_uses_up_no_patience(train, tmp_path):
    options = {"early_stopping_patience": 1}
    assert train(**options).state.global_step == 8, "premise: the mean falls only in the last epoch"
    resumed = train(tmp_path / "run" / "checkpoint-4", folder=tmp_path / "resumed", eval_on_start=True, **options)
    assert resumed.state.global_step == 8


def test_resuming_a_run_that_early_stopping_has_ended_trains_no_further(train, tmp_path):
    options = {"early_stopping_patience": 1, "early_stopping_task": "sentiment"}
    stopped = train(**options)
    assert stopped.state.global_step == 6, "premise: 0.8 after 0.9"
    resumed = train(tmp_path / "run" / "checkpoint-6", **options)
    assert resumed.state.global_step == 6
    with pytest.raises(ValueError, match="No valid checkpoint found"):  # as of a Trainer, not a start anew
        helpers.make_trainer(resumed.model, resumed.sets, tmp_path / "empty").train(resume_from_checkpoint=True)
    assert resumed.best_of_tasks.summary == stopped.best_of_tasks.summary
    assert resumed.state.log_history == stopped.state.log_history[:-1]  # all but the summary of training
    assert_same(dict(resumed.model.state_dict()), weights_of(Path(resumed.state.best_model_checkpoint)))


def test_of_a_loss_the_lowest_is_the_best(train):
    assert train(metric_for_best_model="eval_rating_loss").args.greater_is_better is False
    trainer = train(metric_for_best_model="eval_loss")
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    assert trainer.state.best_global_step == min(losses, key=losses.get)
    assert max(losses, key=losses.get) != min(losses, key=losses.get), "premise"
    arguments = helpers.make_arguments(Path("unused"), metric_for_best_model="eval_rating_mse")
    assert arguments.greater_is_better is False
    assert helpers.make_arguments(Path("unused")).greater_is_better is True


def test_plateau_lowers_the_rate_where_the_score_falls_and_not_where_it_grows(train):
    options = {"lr_scheduler_type": "reduce_lr_on_plateau"}
    trainer = train(**options, lr_scheduler_kwargs={"patience": 0, "factor": 0.5})  # the mean falls once
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {1e-3 * 0.5}


@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
def test_schedule_that_follows_the_metric_knows_which_way_is_better(schedule):
    def mode(**options):
        options = {"lr_scheduler_type": schedule, "eval_strategy": "epoch", **options}
        return helpers.make_arguments(Path("unused"), **options).lr_scheduler_kwargs

    assert mode() == {"mode": "max"}
    assert mode(metric_for_best_model="eval_loss", lr_scheduler_kwargs={"factor": 0.5}) == {
        "mode": "min", "factor": 0.5
    }  # fmt: skip
    assert mode(lr_scheduler_kwargs='{"mode": "min"}') == {"mode": "min"}, "what is said stands"


def test_metric_that_no_evaluation_gives_is_refused(backbone, tmp_path):
    message = (
        "metric_for_best_model: evaluations give no 'eval_acuracy'.*Known: eval_score, eval_loss, eval_sentiment_"
    )
    data = [helpers.make_set(TASKS, train=4, validation=4)]
    with pytest.raises(ValueError, match=message):
        helpers.make_trainer(helpers.make_model(backbone, TASKS), data, tmp_path, metric_for_best_model="eval_acuracy")


@pytest.mark.parametrize(
    ("kwargs", "instead"),
    [
        ({"label_smoothing_factor": 0.1}, "loss_options: {label_smoothing: 0.1}"),
        ({"train_sampling_strategy": "group_by_length"}, "mixture"),
        ({"dataloader_drop_last": True}, "epoch_rows"),
        ({"auto_find_batch_size": True}, "per_device_train_batch_size"),
    ],
)
def test_arguments_without_effect_are_refused(kwargs, instead, tmp_path):
    with pytest.raises(ValueError, match=f"training.{next(iter(kwargs))} is .*, but has no effect here.*{instead}"):
        helpers.make_arguments(tmp_path, **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"early_stopping_patience": 0}, "early_stopping_patience is 0, but should be a whole number of at least 1"),
        (
            {"early_stopping_patience": 2, "early_stopping_task": "sentimnt", "eval_strategy": "epoch"},
            r"no task 'sentimnt'\. Did you mean 'sentiment'\? Known tasks: sentiment, rating",
        ),
        ({"early_stopping_patience": 2, "early_stopping_threshold": -1.0}, "threshold is -1.0, but should be a numb"),
        ({"early_stopping_patience": 2, "eval_strategy": "no"}, "needs evaluations, but eval_strategy is no"),
        ({"early_stopping_task": "sentiment"}, "early_stopping_task is given without early_stopping_patience"),
        ({"early_stopping_threshold": 0.1}, "early_stopping_threshold is given without early_stopping_patience"),
    ],
)
def test_wrong_early_stopping_is_refused(kwargs, message, backbone, tmp_path):
    with pytest.raises(ValueError, match=message):
        helpers.make_trainer(
            helpers.make_model(backbone, TASKS), [helpers.make_set(TASKS, train=4, validation=4)], tmp_path, **kwargs
        )
