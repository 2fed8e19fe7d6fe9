"""Optimizers that average their steps, such as schedule-free ones: measured and saved is the average."""

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

from helpers import trainer as helpers


class AveragingSGD(torch.optim.SGD):
    """Steps as SGD does; outside training, the parameters are the mean over the steps."""

    is_training = True

    def _swap(self, is_training: bool) -> None:
        if is_training != self.is_training:
            for parameter, state in self.state.items():
                kept = parameter.data.clone()
                parameter.data.copy_(state["other"])
                state["other"] = kept
        self.is_training = is_training

    def train(self) -> None:
        self._swap(True)

    def eval(self) -> None:
        self._swap(False)

    def step(self, closure=None):
        assert self.is_training
        super().step(closure)
        for parameter in itertools.chain(*(group["params"] for group in self.param_groups)):
            state = self.state[parameter]
            state["steps"] = state.get("steps", 0) + 1
            mean = state.get("other", torch.zeros_like(parameter))
            state["other"] = mean + (parameter.data - mean) / state["steps"]


class Weights(TrainerCallback):
    """The weights after each step, as the optimizer trains them."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.steps.append({name: weight.clone() for name, weight in model.named_parameters()})

    def mean(self, name: str) -> torch.Tensor:
        return torch.stack([weights[name] for weights in self.steps]).mean(dim=0)


@pytest.mark.parametrize("evaluates", [True, False], ids=["evaluated", "only saved"])
def test_average_is_what_is_measured_saved_and_left(evaluates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = staticmethod(lambda args, model=None: (AveragingSGD, {"lr": args.learning_rate}))
    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", options)
    weights = Weights()
    trainer = helpers.make_trainer(
        helpers.make_model(helpers.make_backbone(tmp_path / "backbone"), ("sentiment",)),
        [helpers.make_set(["sentiment"], train=12, validation=6)],
        tmp_path / "run",
        {"callbacks": [weights]},
        per_device_train_batch_size=4,
        learning_rate=0.5,
        save_strategy="epoch",
        eval_strategy="epoch" if evaluates else "no",
        load_best_model_at_end=evaluates,
    )
    trainer.train()
    assert len(weights.steps) == 3
    saved = load_file(tmp_path / "run" / "checkpoint-3" / "model.safetensors")
    for name, weight in trainer.model.named_parameters():
        torch.testing.assert_close(saved[name], weights.mean(name))
        assert torch.equal(weight, saved[name]), name
    assert any(not torch.allclose(weights.steps[-1][name], saved[name]) for name in saved), "premise: it is no step"
    if evaluates:
        logged = next(entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(logged)
