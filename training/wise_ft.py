"""WiSE-FT: the trained backbone's weights mixed with those it started from.

    check_wise_ft     what cannot be mixed
    backbone_weights  a copy of what training starts from
    mix_with_start    measures a few mixtures on validation data, and leaves the best of them in the model
    format_mixing     the measured mixtures as a table

Fine-tuning moves a sentence encoder away from what its pretraining knew, and similarity feels that first. The weights
on the line between start and end, `alpha * trained + (1 - alpha) * start`, often keep what was learnt and get some of
that back (Wortsman et al. 2022, arXiv 2109.01903, who mix all of a model; heads begin at random here, and stay as
trained). It costs an evaluation per mixture and no training.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn as nn
from tabulate import tabulate

from .evaluation import combined_score

ALPHAS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # shares of the trained weights


def check_wise_ft(trains_backbone: bool, has_adapter: bool, is_sharded: bool) -> None:
    """
    Refuse what cannot be mixed.

    Raises:
        ValueError: nothing of the backbone is trained, or only an adapter, or the weights are spread over processes.
    """
    if has_adapter:
        raise ValueError(
            "wise_ft mixes the backbone's weights, but only an adapter beside them is trained. Leave one of them out."
        )
    if not trains_backbone:
        raise ValueError("wise_ft mixes the backbone's weights, but strategy trains none of them. Leave it out.")
    if is_sharded:
        raise ValueError("wise_ft works in one process or with DDP, not with FSDP or DeepSpeed. Leave it out.")


def backbone_weights(backbone: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the weights, on the CPU."""
    return {name: weights.detach().to("cpu", copy=True) for name, weights in backbone.named_parameters()}


@torch.no_grad()
def set_mixture(backbone: nn.Module, start: Mapping, trained: Mapping, alpha: float) -> None:
    """Give the backbone `alpha * trained + (1 - alpha) * start`; for 1 the trained weights, to the last bit."""
    for name, weights in backbone.named_parameters():
        weights.copy_(torch.lerp(start[name], trained[name], alpha))


def mix_with_start(trainer: Any, start: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """
    Leave the mixture in the model whose mean of the trained tasks' primary metrics is best on validation data.

    Args:
        trainer: a `MultiTaskTrainer` whose training is over, before thresholds are chosen.
        start: the backbone's weights before training, from `backbone_weights`.

    Returns:
        `alpha`, the chosen one (of equals the largest), and `measured`: for each alpha `score`, the mean, and
        `scores`, the primary metric by task.
    """
    tasks, backbone = trainer.trained_tasks, trainer.model.backbone
    trained, measured = backbone_weights(backbone), []
    for alpha in ALPHAS:
        set_mixture(backbone, start, trained, alpha)
        found = trainer.measure("validation", tasks)
        scores = {task: found[task][tasks[task]["metrics"][0]] for task in found}
        measured.append({"alpha": alpha, "score": combined_score(tasks, found), "scores": scores})
    best = max(measured, key=lambda mixture: mixture["score"])["alpha"]
    set_mixture(backbone, start, trained, best)
    return {"alpha": best, "measured": measured}


def format_mixing(mixing: dict[str, Any]) -> str:
    """A line for each mixture; the chosen one is marked."""
    rows = [
        [mixture["alpha"], *mixture["scores"].values(), mixture["score"], "<" * (mixture["alpha"] == mixing["alpha"])]
        for mixture in mixing["measured"]
    ]
    header = ["alpha", *mixing["measured"][0]["scores"], "mean", "chosen"]
    return "Trained weights and those of the start (WiSE-FT), on validation data\n" + tabulate(
        rows, header, floatfmt=("g", *[".4f"] * (len(header) - 2), "")
    )


__all__ = ["backbone_weights", "check_wise_ft", "format_mixing", "mix_with_start"]
