"""Freezing, gradual unfreezing and learning rates by part, as a recipe's `strategy` block asks for them."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from matplotlib.axes import Axes
from safetensors.torch import load_file
from transformers import TrainerCallback, set_seed

from helpers import trainer as helpers
from multitask_sentence.modeling_multitask import MultiTaskModel
from multitask_sentence.tasks_multitask import TaskConfig
from multitask_sentence.train import run
from multitask_sentence.training.report.plots import draw_training
from multitask_sentence.training.strategy.plan import format_plan, make_plan, planned_parts
from multitask_sentence.training.strategy.stages import parameter_groups, stage_starts
from multitask_sentence.training.trainer import MultiTaskTrainer

TASKS = ("sentiment", "rating", "pairs")
PARTS = ["embeddings", "layers.0", "layers.1", "projection", "heads.sentiment", "heads.rating"]
STAGES = [
    {"epochs": 0.75, "train": ["heads", "projection"], "learning_rates": {"heads": 5e-3}},
    {"epochs": 1, "train": {"top_layers": 1}},
    {"train": "all", "learning_rates": {"backbone": 2e-4}},
]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return helpers.make_backbone(tmp_path_factory.mktemp("backbone"), dropout=0.3)


def make_model(backbone: Path, tasks: tuple[str, ...] = TASKS) -> MultiTaskModel:
    return helpers.make_model(backbone, tasks, projection={"out_features": 24})


def make_sets(**counts: int) -> list:
    return [helpers.make_set(["sentiment", "rating"], **counts), helpers.make_set(["pairs"], seed=100, **counts)]


def make_trainer(backbone: Path, folder: Path, strategy: dict[str, Any] | None, **kwargs: Any):
    options = {"strategy": strategy, **kwargs.pop("trainer_options", {})}
    kwargs = {"per_device_train_batch_size": 8, "weight_decay": 0.1, **kwargs}
    return helpers.make_trainer(make_model(backbone), make_sets(train=16, validation=6), folder, options, **kwargs)


def copy_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def arguments(**kwargs: Any) -> SimpleNamespace:
    """What `make_plan` reads of the training arguments."""
    return SimpleNamespace(
        **{"learning_rate": 1e-4, "head_learning_rate": None, "num_train_epochs": 3, "max_steps": -1, **kwargs}
    )


def some_parts(names: list[str] = PARTS) -> dict[str, dict[str, torch.nn.Parameter]]:
    """One weight and one bias for every part."""
    return {
        name: {f"{name}.{kind}": torch.nn.Parameter(torch.zeros(3)) for kind in ("weight", "bias")} for name in names
    }


def plan_of(strategy: dict[str, Any] | None, names: list[str] = PARTS, **kwargs: Any):
    return make_plan(strategy, some_parts(names), arguments(**kwargs))


def changed_parts(model: MultiTaskModel, before: dict[str, torch.Tensor]) -> list[str]:
    """Parts of which any parameter differs from before."""
    return [
        name
        for name, parameters in model.parts().items()
        if any(not torch.equal(parameter, before[key]) for key, parameter in parameters.items())
    ]


# Freezing


@pytest.mark.parametrize(
    ("freeze", "trained"),
    [
        ("backbone", PARTS[3:]),
        (["embeddings", {"layers": 1}], PARTS[2:]),
        (["embeddings", {"layers": 1}, {"heads": ["rating"]}], ["layers.1", "projection", "heads.sentiment"]),
        (["backbone", "projection"], PARTS[4:]),
        ("none", PARTS),
        ([], PARTS),
    ],
)
def test_frozen_parts_stay_bit_identical_the_others_change_and_only_they_take_optimizer_memory(
    freeze, trained, backbone, tmp_path
):
    trainer = make_trainer(backbone, tmp_path, {"freeze": freeze})
    before = copy_of(trainer.model)
    trainer.train()
    parts = trainer.model.parts()
    assert changed_parts(trainer.model, before) == trained
    in_trained = {parameter for name in trained for parameter in parts[name].values()}
    assert set(trainer.optimizer.state) == in_trained
    assert {p for group in trainer.optimizer.param_groups for p in group["params"]} == in_trained


def test_model_frozen_in_python_and_in_the_strategy_adds_up(backbone, tmp_path):
    model = make_model(backbone)
    model.freeze("embeddings")
    trainer = helpers.make_trainer(model, make_sets(train=8), tmp_path, {"strategy": {"freeze": "projection"}})
    assert trainer.plan.frozen == ["embeddings", "projection"]


def test_everything_frozen_is_evaluated_but_not_trained(backbone, tmp_path):
    trainer = make_trainer(backbone, tmp_path, {"freeze": "all"})
    before = copy_of(trainer.model)
    with pytest.raises(ValueError, match=r"Nothing is trainable: every parameter .* or only call evaluate"):
        trainer.train()
    assert "eval_sentiment_accuracy" in trainer.evaluate()
    assert changed_parts(trainer.model, before) == []
    assert (trainer.trained_tasks, len(trainer.sampler)) == ({}, 0)


# Tasks that are only evaluated


def test_task_with_nothing_to_train_leaves_the_mixture_and_the_loss(backbone, tmp_path):
    model = make_model(backbone)
    shares = {"sentiment": 0.5, "rating": 0.5}
    sets = [helpers.make_set(["sentiment", "rating"], shares, train=20, validation=6), *make_sets(train=5)[1:]]
    trainer = helpers.make_trainer(
        model, sets, tmp_path, {"strategy": {"freeze": ["backbone", "projection", {"heads": ["rating"]}]}}
    )
    rows = sets[0].splits["train"]
    expected = [row["sentences"] for row in rows if row["label_sentiment"] is not None]
    assert len(expected) < len(rows), "premise: rows that are labelled for rating only, or not at all"
    assert [row["sentences"] for row in trainer.train_dataset] == expected
    assert list(trainer.data_collator.tasks) == ["sentiment"]
    trainer.train()
    entry = trainer.state.log_history[0]
    assert {key for key in entry if key.startswith("loss_")} == {"loss_sentiment"}
    assert entry["loss"] == pytest.approx(0.5 * entry["loss_sentiment"])
    assert {"eval_sentiment_loss", "eval_rating_loss"} <= set(trainer.evaluate())


def test_frozen_head_still_trains_what_is_below_it(backbone, tmp_path):
    trainer = make_trainer(backbone, tmp_path, {"freeze": {"heads": "rating"}})
    assert list(trainer.trained_tasks) == list(TASKS)
    assert trainer.sampler.sizes == [16, 16]


def test_thresholds_of_a_task_that_is_only_evaluated_stay(backbone, tmp_path):
    model = make_model(backbone, ("sentiment", "tags"))
    sets = [helpers.make_set(["sentiment", "tags"], train=8, validation=8)]
    strategy = {"freeze": ["backbone", "projection", {"heads": "tags"}]}
    trainer = helpers.make_trainer(model, sets, tmp_path, {"strategy": strategy})
    assert trainer.choose_thresholds() == {}
    assert model.config.tasks["tags"].thresholds == [0.5, 0.5]


# Learning rates by part


def rates_of(plan, stage: int = -1) -> list[float]:
    return list(plan.stages[stage].learning_rates.values())


def test_learning_rates_fall_back_from_task_to_heads_to_training_arguments():
    assert rates_of(plan_of({})) == [1e-4] * 6
    assert rates_of(plan_of(None, head_learning_rate=1e-3)) == [1e-4] * 3 + [1e-3] * 3
    rates = {"backbone": 2e-5, "projection": 3e-5, "heads": 1e-3, "rating": 5e-4}
    assert rates_of(plan_of({"learning_rates": rates})) == [2e-5] * 3 + [3e-5, 1e-3, 5e-4]
    assert rates_of(plan_of({"learning_rates": {"rating": 5e-4}}, head_learning_rate=1e-3)) == (
        [1e-4] * 3 + [1e-3, 1e-3, 5e-4]
    )


def test_stage_has_its_own_rates_before_those_of_the_strategy_and_for_itself_only():
    stages = [
        {"epochs": 1, "train": ["heads", "projection"], "learning_rates": {"heads": 2e-3}},
        {"train": "all", "learning_rates": {"rating": 3e-3}},
    ]
    plan = plan_of({"unfreeze": stages, "learning_rates": {"rating": 5e-4, "projection": 6e-4}})
    assert rates_of(plan, 0) == [6e-4, 2e-3, 2e-3]
    assert rates_of(plan, 1) == [1e-4] * 3 + [6e-4, 1e-4, 3e-3]


def test_layer_decay_lowers_the_rate_with_every_layer_down_to_the_embeddings():
    found = rates_of(plan_of({"layer_decay": 0.5, "learning_rates": {"heads": 1e-3}}))
    assert found == [0.25 * 1e-4, 0.5 * 1e-4, 1e-4, 1e-4, 1e-3, 1e-3]


def test_parameter_groups_hold_everything_once_with_its_rate_and_decay_only_for_weights():
    plan = plan_of({"freeze": ["embeddings"], "layer_decay": 0.5, "learning_rates": {"rating": 1e-3}})
    parts = plan.parameters
    groups = parameter_groups(plan, [f"{part}.weight" for part in PARTS], weight_decay=0.1)
    found = {p: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found) == 10
    rates = {"layers.0": 0.5e-4, "layers.1": 1e-4, "projection": 1e-4, "heads.sentiment": 1e-4, "heads.rating": 1e-3}
    for part, rate in rates.items():
        assert found[parts[part][f"{part}.weight"]] == (rate, 0.1)
        assert found[parts[part][f"{part}.bias"]] == (rate, 0.0)
    assert len(groups) == 6, "parts that train alike share their groups"


def test_weights_of_norms_and_biases_do_not_decay(backbone, tmp_path):
    trainer = make_trainer(backbone, tmp_path, {"layer_decay": 0.5})
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    for group in trainer.create_optimizer().param_groups:
        for parameter in group["params"]:
            is_plain = names[parameter].endswith("bias") or "LayerNorm" in names[parameter]
            assert group["weight_decay"] == (0.0 if is_plain else 0.1), names[parameter]


class Watcher(TrainerCallback):
    """What the optimizer is about to use in every step: by part, whether it trains, and its learning rate."""

    def __init__(self) -> None:
        self.rates: list[dict[str, float]] = []
        self.trains: list[list[str]] = []

    def on_pre_optimizer_step(self, args, state, control, model, optimizer, **kwargs):
        rate_of = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
        parts = getattr(model, "module", model).parts()
        gradients = {part: [p.grad is not None for p in ps.values()] for part, ps in parts.items()}
        assert all(len(set(found)) == 1 for found in gradients.values()), "a part trains as a whole"
        self.trains.append([part for part, found in gradients.items() if all(found)])
        self.rates.append({part: rate_of.get(next(iter(ps.values()))) for part, ps in parts.items()})


SCHEDULERS = {
    "linear": {"warmup_steps": 2},
    "constant_with_warmup": {"warmup_steps": 3},
    "cosine_with_min_lr": {"lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
    "warmup_stable_decay": {"warmup_steps": 2, "lr_scheduler_kwargs": {"num_decay_steps": 3}},
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_scheduler_multiplies_the_rates_of_every_stage(scheduler, backbone, tmp_path):
    seen, plain = Watcher(), Watcher()
    options = {"num_train_epochs": 3, "lr_scheduler_type": scheduler, "logging_steps": 99, **SCHEDULERS[scheduler]}
    trainer = make_trainer(backbone, tmp_path, {"unfreeze": STAGES}, trainer_options={"callbacks": [seen]}, **options)
    trainer.train()
    make_trainer(backbone, tmp_path, None, trainer_options={"callbacks": [plain]}, **options).train()
    for step, (found, expected) in enumerate(zip(seen.rates, plain.rates, strict=True)):
        factor = expected["embeddings"] / 1e-3
        stage = trainer.plan.stages[(step >= 3) + (step >= 7)]
        for part, peak in stage.learning_rates.items():
            assert found[part] == pytest.approx(peak * factor, rel=1e-9), (step, part)
    assert len({rates["embeddings"] for rates in plain.rates}) > 1, "premise: the scheduler does something"


def test_plateau_scheduler_lowers_the_rates_of_the_stages(backbone, tmp_path):
    seen = Watcher()
    options = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch", "num_train_epochs": 4}
    options |= {"metric_for_best_model": "eval_score", "greater_is_better": False}
    options["lr_scheduler_kwargs"] = {"patience": 0, "threshold": 10.0, "threshold_mode": "abs", "factor": 0.5}
    trainer = make_trainer(backbone, tmp_path, {"unfreeze": STAGES}, trainer_options={"callbacks": [seen]}, **options)
    trainer.train()
    assert seen.rates[0]["heads.rating"] == 5e-3
    assert seen.rates[3]["heads.rating"] == pytest.approx(1e-3)  # the second stage
    assert seen.rates[8]["layers.1"] == pytest.approx(2e-4 * 0.5)  # the third stage, after one plateau
    assert seen.rates[12]["layers.1"] == pytest.approx(2e-4 * 0.25)


# Gradual unfreezing


def test_stages_begin_at_their_step_and_parts_that_wait_do_not_move(backbone, tmp_path):
    seen, snapshots = Watcher(), {}

    class Snapshot(TrainerCallback):
        def on_step_end(self, args, state, control, model, optimizer, **kwargs):
            snapshots[state.global_step] = copy_of(model), len(optimizer.state)

    trainer = make_trainer(
        backbone,
        tmp_path,
        {"unfreeze": STAGES},
        trainer_options={"callbacks": [seen, Snapshot()]},
        num_train_epochs=3,
    )
    before, parts = copy_of(trainer.model), trainer.model.parts()
    assert len(trainer.sampler) == 4, "premise: 0.75 and 1.75 epochs are 3 and 7 steps"
    trainer.train()
    stages = [PARTS[3:]] * 3 + [PARTS[2:]] * 4 + [PARTS] * 5
    assert seen.trains == stages
    for step, expected in ((3, PARTS[3:]), (7, PARTS[2:]), (12, PARTS)):
        weights, states = snapshots[step]
        trained = [name for name in PARTS if any(not torch.equal(weights[key], before[key]) for key in parts[name])]
        assert trained == expected
        assert states == sum(len(parts[name]) for name in expected), "no optimizer memory before a part joins"
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    logged = [entry["trainable_layers"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == [0] * 3 + [1] * 4 + [2] * 5
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert rates == [seen.rates[step][stage[0]] for step, stage in enumerate(stages)]


def test_what_is_frozen_stays_frozen_in_every_stage(backbone, tmp_path):
    strategy = {"freeze": ["embeddings", {"heads": ["rating"]}], "unfreeze": STAGES}
    trainer = make_trainer(backbone, tmp_path, strategy, num_train_epochs=3)
    before = copy_of(trainer.model)
    trainer.train()
    assert changed_parts(trainer.model, before) == ["layers.0", "layers.1", "projection", "heads.sentiment"]


@pytest.fixture(scope="module")
def uninterrupted(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, train_in_stages(backbone, folder)


def train_in_stages(backbone: Path, folder: Path, checkpoint: Path | None = None) -> dict[str, torch.Tensor]:
    trainer = make_trainer(
        backbone,
        folder,
        {"unfreeze": STAGES, "layer_decay": 0.5},
        num_train_epochs=3,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=20,
    )
    helpers.train_from(checkpoint, trainer)
    return copy_of(trainer.model)


@pytest.mark.parametrize("step", [3, 5, 8])
def test_resuming_in_any_stage_gives_the_weights_of_an_uninterrupted_run(step, uninterrupted, backbone, tmp_path):
    folder, expected = uninterrupted
    set_seed(987)
    found = train_in_stages(backbone, tmp_path, folder / f"checkpoint-{step}")
    for name, weights in expected.items():
        torch.testing.assert_close(found[name], weights, rtol=0, atol=0, msg=name)


def test_training_again_starts_with_the_first_stage(backbone, tmp_path):
    seen = Watcher()
    trainer = make_trainer(
        backbone,
        tmp_path,
        {"unfreeze": STAGES},
        trainer_options={"callbacks": [seen]},
        num_train_epochs=3,
        lr_scheduler_type="constant",
    )
    trainer.train()
    trainer.train()
    assert seen.trains[:12] == seen.trains[12:]
    for first, second in zip(seen.rates[:12], seen.rates[12:], strict=True):
        trains = [part for part in PARTS if part in trainer.plan.stages[0].learning_rates]
        assert [second[part] for part in trains] == pytest.approx([first[part] for part in trains])


def test_interrupted_training_leaves_nothing_frozen_that_was_only_waiting(backbone, tmp_path):
    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    strategy = {"freeze": "embeddings", "unfreeze": STAGES}
    options = {"trainer_options": {"callbacks": [Interrupt()]}, "num_train_epochs": 3}
    trainer = make_trainer(backbone, tmp_path, strategy, **options)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainable = [name for name, ps in trainer.model.parts().items() if all(p.requires_grad for p in ps.values())]
    assert trainable == PARTS[1:]


def test_stages_in_steps_are_rounded_and_never_empty():
    plan = plan_of({"unfreeze": STAGES}, max_steps=99)
    assert stage_starts(plan, steps_per_epoch=10, max_steps=30) == [0, 8, 18]
    with pytest.raises(ValueError, match=r"stage 3 has no step: an epoch is 10 optimizer steps, the training 17"):
        stage_starts(plan, steps_per_epoch=10, max_steps=17)
    plan = plan_of({"unfreeze": [{"epochs": 0.001, "train": "heads"}, {"train": "all"}]})
    with pytest.raises(ValueError, match="stage 1 has no step"):
        stage_starts(plan, steps_per_epoch=10, max_steps=30)


def test_schedule_beyond_max_steps_is_refused_before_training(backbone, tmp_path):
    with pytest.raises(ValueError, match="stage 3 has no step: an epoch is 4 optimizer steps, the training 7"):
        make_trainer(backbone, tmp_path, {"unfreeze": STAGES}, max_steps=7)


def test_optimizer_with_groups_of_its_own_is_refused(backbone, tmp_path, monkeypatch):
    trainer = make_trainer(backbone, tmp_path, {"layer_decay": 0.5})
    monkeypatch.setattr(trainer, "get_optimizer_cls_and_kwargs", lambda *_: (torch.optim.SGD, {"params": []}))
    with pytest.raises(ValueError, match=r"divides the parameters by itself.* such as adamw_torch"):
        trainer.train()


# What is refused before any data is loaded


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ({"freze": "backbone"}, r"strategy: unknown key 'freze'\. Did you mean 'freeze'\?"),
        (["freeze"], r"strategy is \['freeze'\], but should be a mapping"),
        ({"freeze": "backbon"}, r"strategy\.freeze: unknown part 'backbon'\. Did you mean 'backbone'\?"),
        ({"freeze": {"layers": 3}}, "strategy.freeze: layers is 3, but the backbone has 2 layers"),
        ({"freeze": {"heads": ["ratng"]}}, r"Did you mean 'rating'\? Tasks with a head: sentiment, rating"),
        ({"freeze": ["backbone", "projection", "heads"]}, "nothing is left to train. Freeze less, or say freeze: all"),
        ({"freeze": "all", "layer_decay": 0.5}, "strategy.freeze is all, so nothing trains. Leave layer_decay out"),
        ({"layer_decay": 0}, "layer_decay is 0, but should be a number above 0 and at most 1"),
        ({"layer_decay": 1.1}, r"layer_decay is 1\.1, but should be"),
        ({"layer_decay": "0.9"}, r"layer_decay is '0\.9', but should be a number"),
        ({"learning_rates": {"head": 1e-3}}, r"unknown key 'head'\. Did you mean 'heads'\? Known keys: backbone"),
        ({"learning_rates": {"heads": 0}}, r"learning_rates\.heads is 0, but should be a number above 0"),
        ({"learning_rates": {"heads": "fast"}}, r"learning_rates\.heads is 'fast', but should be"),
        ({"learning_rates": 1e-3}, r"strategy\.learning_rates is 0\.001, but should be a mapping"),
        (
            {"freeze": "backbone", "learning_rates": {"backbone": 1e-3}},
            r"learning_rates\.backbone is 0\.001, but it does not train there",
        ),
        ({"unfreeze": {"train": "all"}}, "strategy.unfreeze is .*, but should be a list of stages"),
        ({"unfreeze": ["heads"]}, "strategy.unfreeze, stage 1 is 'heads', but should be a mapping"),
        ({"unfreeze": [{"epoch": 1}]}, r"stage 1: unknown key 'epoch'\. Did you mean 'epochs'\?"),
        (
            {"unfreeze": [{"train": "heads"}, {"train": "all"}]},
            "stage 1: epochs is None, but should be a number above",
        ),
        ({"unfreeze": [{"epochs": 0, "train": "heads"}, {"train": "all"}]}, "stage 1: epochs is 0, but should be"),
        ({"unfreeze": [{"epochs": 1, "train": "heads"}, {"epochs": 2, "train": "all"}]}, "Leave epochs out"),
        ({"unfreeze": [{"epochs": 1}, {"train": "all"}]}, "stage 1: train is missing. Name the parts that join"),
        ({"unfreeze": [{"epochs": 1, "train": []}, {"train": "all"}]}, r"train is \[\], so nothing joins"),
        (
            {"unfreeze": [{"epochs": 1, "train": "none"}, {"train": "all"}]},
            "train is 'none', so nothing joins",
        ),
        (
            {"unfreeze": [{"epochs": 1, "train": "heads"}, {"train": ["heads", "all"]}]},
            r"stage 2\.train: 'heads' trains already\. Name only what joins in this stage",
        ),
        (
            {"unfreeze": [{"epochs": 1, "train": {"top_layers": 2}}, {"train": [{"top_layers": 1}, "all"]}]},
            "stage 2.train: {'top_layers': 1} trains already",
        ),
        ({"unfreeze": [{"epochs": 1, "train": ["all", "heads"]}, {"train": "all"}]}, "stage 1.train: 'heads' trains"),
        ({"unfreeze": [{"epochs": 1, "train": "all"}, {"train": "all"}]}, "stage 2.train: 'all' trains already"),
        (
            {"freeze": "heads", "unfreeze": [{"epochs": 1, "train": "heads"}, {"train": "all"}]},
            "stage 1.train: 'heads' is frozen for the whole training",
        ),
        (
            {"unfreeze": [{"epochs": 1, "train": "heads"}, {"train": {"top_layers": 1}}]},
            "no stage trains embeddings, layers.0, projection. Give the last stage `train: all`, or name what",
        ),
        (
            {"unfreeze": [{"epochs": 1, "train": "heads"}, {"epochs": 2, "train": "projection"}, {"train": "all"}]},
            "the stages before the last take 3 epochs, but training has 3, so the last stage never trains",
        ),
        (
            {"unfreeze": [{"epochs": 1, "train": "heads", "learning_rates": {"backbone": 1}}, {"train": "all"}]},
            r"stage 1, learning_rates\.backbone is 1, but it does not train there",
        ),
    ],
)
def test_what_does_not_fit_is_refused(strategy, message):
    with pytest.raises(ValueError, match=message):
        plan_of(strategy)


def test_two_rates_for_the_heads_are_refused():
    for key in ("heads", "projection"):
        message = rf"head_learning_rate and strategy\.learning_rates\.{key} both say how fast"
        with pytest.raises(ValueError, match=message):
            plan_of({"learning_rates": {key: 1e-3}}, head_learning_rate=1e-3)


def test_parts_that_the_model_lacks_are_refused():
    names = ["backbone", "heads.topic"]
    with pytest.raises(ValueError, match=r"learning_rates\.projection is 0\.001, but the model has none"):
        plan_of({"learning_rates": {"projection": 1e-3}}, names)
    with pytest.raises(ValueError, match="layer_decay: this backbone has no single list of its own layers"):
        plan_of({"layer_decay": 0.5}, names)


def test_last_stage_may_widen_what_trains_already():
    stages = [{"epochs": 1, "train": ["heads", "projection", {"top_layers": 1}]}, {"train": "backbone"}]
    plan = plan_of({"unfreeze": stages})
    assert [list(stage.learning_rates) for stage in plan.stages] == [PARTS[2:], PARTS]


def test_planned_parts_are_those_of_the_model_without_its_weights(backbone):
    real = make_model(backbone)
    planned = planned_parts(real.config)
    assert {part: list(ps) for part, ps in planned.items()} == {part: list(ps) for part, ps in real.parts().items()}
    assert next(iter(planned["embeddings"].values())).device.type == "meta"


# The table


def test_table_shows_parts_from_top_to_bottom_with_their_rates():
    names = ["embeddings", *(f"layers.{number}" for number in range(4)), "heads.topic"]
    stages = [{"epochs": 1, "train": "heads"}, {"epochs": 0.5, "train": {"top_layers": 1}}, {"train": "all"}]
    parts = some_parts(names)
    plan = make_plan(
        {"freeze": "embeddings", "unfreeze": stages, "learning_rates": {"heads": 1e-3}}, parts, arguments()
    )
    lines = [line.split("  ") for line in format_plan(plan, parts).splitlines()]
    lines = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert lines[1] == [
        *("part", "parameters", "trains"),
        *("rate in stage 1 (1 epoch)", "rate in stage 2 (0.5 epochs)", "rate in stage 3 (to the end)"),
    ]
    assert lines[3:] == [
        ["topic (head)", "6", "yes", "0.001", "0.001", "0.001"],
        ["layer 3", "6", "from stage 2", "-", "0.0001", "0.0001"],
        ["layers 0-2", "18", "from stage 3", "-", "-", "0.0001"],
        ["embeddings", "6", "no", "-", "-", "-"],
    ]


# The command


@pytest.fixture(scope="module", autouse=True)
def private_cache(tmp_path_factory):
    before, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, tmp_path_factory.mktemp("cache")
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture
def job(tmp_path, backbone) -> Path:
    """A recipe with three tasks over two files; the result goes to `result` beside it."""
    for split, count in (("train", 16), ("validation", 8), ("test", 8)):
        sentences = helpers.make_sentences(2 * count, seed=count)
        rows = [f"{a},{b},{n % 5},{'xy'[n % 2]}" for n, (a, b) in enumerate(zip(*[iter(sentences)] * 2, strict=True))]
        (tmp_path / f"{split}.csv").write_text("\n".join(["a,b,score,letter", *rows]) + "\n", encoding="utf-8")
    files = {split: f"{split}.csv" for split in ("train", "validation", "test")}
    dataset = {"path": "csv", "data_files": files}
    tasks = {
        "letter": {"problem_type": "single_label_classification", "columns": {"sentence": "a", "label": "letter"}},
        "letters": {"problem_type": "multi_label_classification", "columns": {"sentence": "a", "label": "letter"}},
        "pairs": {"problem_type": "similarity", "columns": {"sentence1": "a", "sentence2": "b", "label": "score"}},
    }
    training = {
        **{"output_dir": str(tmp_path / "result"), "num_train_epochs": 2, "per_device_train_batch_size": 8},
        **{"learning_rate": 1e-3, "logging_steps": 1, "disable_tqdm": True, "use_cpu": True},
    }
    recipe = {
        "backbone": str(backbone),
        "max_length": 20,
        "tasks": {name: {**task, "dataset": dataset} for name, task in tasks.items()},
        "training": training,
    }
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return path


def with_strategy(job: Path, strategy: dict[str, Any]) -> Path:
    job.write_text(json.dumps({**json.loads(job.read_text()), "strategy": strategy}), encoding="utf-8")
    return job


def run_job(job: Path, capsys: pytest.CaptureFixture) -> tuple[str, dict[str, Any], str]:
    """What was printed, results.json, and the card."""
    run([str(job)])
    folder = job.parent / "result"
    return (
        capsys.readouterr().out,
        json.loads((folder / "results.json").read_text()),
        (folder / "README.md").read_text(),
    )


def test_command_with_everything_frozen_only_evaluates_and_says_so(job, backbone, capsys, monkeypatch):
    monkeypatch.setattr(MultiTaskTrainer, "train", lambda *_, **__: pytest.fail("it trains"))
    printed, results, card = run_job(with_strategy(job, {"freeze": "all"}), capsys)
    assert "Nothing is trained, because strategy.freeze is all" in printed
    assert "Mixture: no rows are drawn" in printed
    assert "Parts, from top to bottom: nothing is trained" in printed
    for task in ("letter", "letters", "pairs"):
        assert re.search(rf"^{task} +[a-z_]+ .* only evaluated +-$", printed, re.M), "the table of settings"
        assert f"\n{task} (only evaluated) " in printed, "the table of scores"
    assert (results["steps"], results["best_step"], results["rows_per_epoch"]) == (0, None, 0)
    assert results["only_evaluated"] == ["letter", "letters", "pairs"]
    assert results["strategy"] == {"freeze": "all"}
    assert results["tasks"]["letters"]["thresholds"] == [0.5, 0.5]
    assert set(results["scores"]["test"]) == {"letter", "letters", "pairs"}
    weights, before = load_file(job.parent / "result" / "model.safetensors"), load_file(backbone / "model.safetensors")
    kept = [name for name in before if f"backbone.{name}" in weights]
    assert kept
    assert all(torch.equal(weights[f"backbone.{name}"], before[name]) for name in kept)
    assert "Nothing was trained, because every part was frozen" in card
    for untrue in ("trained on all tasks together", "mixes rows", "thresholds of multi-label tasks were chosen"):
        assert untrue not in card
    with pytest.raises(ValueError, match=r"strategy\.freeze is all, so there is no training to go on with"):
        checkpoint = job.parent / "result" / "checkpoint-1"
        checkpoint.mkdir()
        (checkpoint / "trainer_state.json").write_text("{}")
        run([str(job), "--resume_from_checkpoint"])


@pytest.mark.usefixtures("drawn_pictures")
def test_command_trains_in_stages_and_draws_them(job, capsys):
    stages = [{"epochs": 1, "train": "heads", "learning_rates": {"heads": 0.01}}, {"train": "all"}]
    printed, results, card = run_job(with_strategy(job, {"freeze": "embeddings", "unfreeze": stages}), capsys)
    assert re.search(r"^letter \(head\) +66 +yes +0\.01 +0\.001$", printed, re.M)
    assert re.search(r"^layers 0-1 +[\d,]+ +from stage 2 +- +0\.001$", printed, re.M)
    assert re.search(r"^embeddings +[\d,]+ +no +- +-$", printed, re.M)
    assert "only evaluated" not in printed
    assert results["only_evaluated"] == []
    layers = [entry["trainable_layers"] for entry in results["history"] if "loss" in entry]
    assert layers == [0] * (len(layers) // 2) + [2] * (len(layers) // 2)
    assert '"unfreeze"' in card
    assert (job.parent / "result" / "training.png").stat().st_size > 10_000


def test_command_leaves_a_task_with_nothing_to_train_out_of_the_mixture(job, capsys):
    printed, results, card = run_job(with_strategy(job, {"freeze": ["backbone", {"heads": ["letters"]}]}), capsys)
    assert "Mixture: an epoch is 16 rows in 2 mixed batches" in printed
    assert "letters (only evaluated)" in printed
    assert "pairs (only evaluated)" in printed
    assert "letter (only evaluated)" not in printed
    assert results["only_evaluated"] == ["letters", "pairs"]
    assert results["steps"] == 4
    assert "trained on `letter` with" in card
    assert "all that the answers come from was frozen: `letters` and `pairs`" in card


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ({"freze": "all"}, r"job\.yaml: strategy: unknown key 'freze'"),
        ({"freeze": {"heads": ["pairs"]}}, "job.yaml: strategy.freeze: heads: no task 'pairs' has a head"),
        ({"freeze": {"layers": 9}}, "job.yaml: strategy.freeze: layers is 9, but the backbone has 2 layers"),
        ({"freeze": "projection"}, "job.yaml: strategy.freeze: projection: the model has none"),
        ({"unfreeze": [{"epochs": 2, "train": "heads"}, {"train": "all"}]}, "take 2 epochs, but training has 2"),
    ],
)
def test_strategy_that_does_not_fit_is_refused_before_data_is_loaded(job, strategy, message):
    for path in job.parent.glob("*.csv"):
        path.unlink()  # so that looking at the data would be another error
    with pytest.raises(ValueError, match=message):
        run([str(with_strategy(job, strategy))])


# The picture


def history_of(layers: list[int]) -> list[dict[str, Any]]:
    losses = [{"step": 10 * n, "loss": 9.0 / n, "loss_topic": 9.0 / n} for n in range(1, len(layers) + 1)]
    scores = [{"step": 20 * n, "eval_score": 0.1 * n, "eval_topic_accuracy": 0.1 * n} for n in range(1, 5)]
    return [{**entry, "trainable_layers": count} for entry, count in zip(losses, layers, strict=True)] + scores


@pytest.mark.usefixtures("drawn_pictures")
def test_picture_shows_a_band_for_every_stage(tmp_path, monkeypatch):
    bands, texts = [], []
    monkeypatch.setattr(Axes, "axvspan", lambda self, left, right, **_: bands.append((left, right)))
    monkeypatch.setattr(Axes, "text", lambda self, x, y, text, **_: texts.append((x, text)))
    tasks = {"topic": TaskConfig(problem_type="single_label_classification", labels=["a", "b"])}
    assert draw_training(tmp_path / "training.png", history_of([0, 0, 1, 1, 1, 6, 6, 6]), tasks)
    assert bands == [(0, 20), (20, 50), (50, 80)] * 2
    assert texts == [(10, "0 layers"), (35, "1 layer"), (65, "6 layers")] * 2
