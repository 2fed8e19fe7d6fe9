"""Do the tasks pull what they share the same way? Cosines between the tasks' gradients, while they train together.

    GradientCosines     measures them before the first step and after each tenth of the steps
    cosines_of_history  what was measured, from the log history
    mean_cosines        the mean over time

They come from a probe of each task: rows that are drawn once from its training rows, read without dropout. Training
itself is left as it is, to the last bit: no random number is drawn, and no `.grad` is touched. What was measured
stands in the log history, and so is in every checkpoint.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from transformers import Trainer, TrainerCallback

from ...data.collation import MultiTaskCollator
from ...data.rows.streamed import StreamedRows
from ...data.sampling.sampler import rows_labelled_for
from ...turns_multitask import evaluating
from ..losses.losses import task_loss

PROBE_ROWS = 64
MEASUREMENTS = 10  # spread evenly over the steps; one more stands before them
KEY = "gradient_cosines"  # in the log history


def cosine_matrix(gradients: Sequence[torch.Tensor]) -> list[list[float | None]]:
    """
    Cosines between gradients `(parameters,)` on the CPU; `None` where one of the two is zero.

    >>> cosine_matrix([torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])])[0][1]
    0.7071067811865475
    """
    products = np.zeros((len(gradients), len(gradients)))
    for row, first in enumerate(gradients):
        for column, second in enumerate(gradients[: row + 1]):
            product = torch.sum(first * second, dtype=torch.float64)  # which Apple's GPUs cannot
            products[row, column] = products[column, row] = product.item()
    lengths = np.sqrt(products.diagonal())
    scale = np.outer(lengths, lengths)
    return [
        [float(product / length) if length > 0 else None for product, length in zip(*rows, strict=True)]
        for rows in zip(products, scale, strict=True)
    ]


class GradientCosines(TrainerCallback):
    """
    Measures the cosines between the gradients of a trainer's tasks on the parameters that they share and that train
    at that moment: backbone and projection. Where there are none, nothing is measured.

    Each process computes the same on the model itself, without asking the others, so that none waits for another.

    Args:
        trainer: a `MultiTaskTrainer` that is about to train.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.probes = {}
        for which, drawn in enumerate(trainer.drawn):
            for task in drawn.tasks:
                labelled = rows_labelled_for(drawn.rows, [task])
                # The last number keeps these rows apart from those that the mixture draws.
                order = np.random.default_rng([trainer.args.seed, which, 0, 2]).permutation(len(labelled))[:PROBE_ROWS]
                probes = labelled.select(np.sort(order))  # in the order in which a stream gives them
                probes = probes if drawn.texts is None else StreamedRows(probes, drawn.texts).read_all()
                settings = {task: trainer.trained_tasks[task]}
                collate = MultiTaskCollator(trainer.model.tokenizer, settings, trainer.model.config.max_length)
                self.probes[task] = collate([probes[int(place)] for place in np.argsort(np.argsort(order))])

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self._measure(state)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in {round(state.max_steps * part / MEASUREMENTS) for part in range(1, MEASUREMENTS + 1)}:
            self._measure(state)

    def _measure(self, state: Any) -> None:
        own = set(self.trainer.model.heads.parameters())
        shared = [p for p in self.trainer.model.parameters() if p.requires_grad and p not in own]
        if shared:
            gradients = [self._gradient(task, shared) for task in self.trainer.trained_tasks]
            state.log_history.append({KEY: cosine_matrix(gradients), "epoch": state.epoch, "step": state.global_step})

    def _gradient(self, task: str, shared: list[torch.nn.Parameter]) -> torch.Tensor:
        """`(parameters,)` on the CPU, so that a GPU holds the gradient of one task at a time."""
        trainer = self.trainer
        batch = send_to_device(self.probes[task], trainer.args.device)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with evaluating(trainer.model), trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
            outputs = trainer.model(**inputs)
        loss = task_loss(  # in the model's own precision, as in training
            trainer.trained_tasks[task],
            outputs.logits[task],
            batch["labels"][task],
            outputs.sentence_embedding,
            batch["task_rows"][task],
        )
        gradients = torch.autograd.grad(loss, shared, materialize_grads=True)
        return torch.cat([gradient.flatten().cpu() for gradient in gradients])


def cosines_of_history(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """`{"step", "cosines"}` of every measurement, `cosines` a row and a column for each task."""
    return [{"step": entry["step"], "cosines": entry[KEY]} for entry in history if KEY in entry]


def mean_cosines(measured: Sequence[dict[str, Any]]) -> list[list[float | None]]:
    """The mean of each cosine over all measurements in which it is defined; `None` where it never is."""
    cosines = np.array([entry["cosines"] for entry in measured], dtype=float)  # (measurements, tasks, tasks)
    known = np.isfinite(cosines)
    counts = known.sum(axis=0)
    means = np.where(known, cosines, 0).sum(axis=0) / np.maximum(counts, 1)
    return [
        [float(mean) if count else None for mean, count in zip(*rows, strict=True)]
        for rows in zip(means, counts, strict=True)
    ]
