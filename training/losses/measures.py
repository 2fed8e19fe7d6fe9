"""What a run measures on its training rows and puts into the model: balanced weights, and scales of targets."""

from collections.abc import Mapping

from datasets import Dataset

from ...modeling_multitask import MultiTaskModel
from .class_weights import resolve_balanced
from .scale import measure_targets


def take_measures(model: MultiTaskModel, training_rows: Mapping[str, Dataset]) -> None:
    """
    Put into a model's configuration what is measured on training rows: it is part of the model that is saved.

    These are the numbers that `balanced` weights stand for, and the scale of regression targets.

    Args:
        model: the model; entries of its `config.tasks` are replaced.
        training_rows: by task, its training rows.
    """
    for measure in (resolve_balanced, measure_targets):
        for task, settings in measure(model.config.tasks, training_rows).items():
            model.config.change_task(task, **settings)


__all__ = ["take_measures"]
