"""A tiny random encoder, labelled sets and a trainer: what the tests of training, evaluation and collation share."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from datasets import Dataset
from transformers import BertConfig, BertModel, BertTokenizer, TrainerCallback

from multitask_sentence.data.rows.sets import LabelledSet
from multitask_sentence.modeling_multitask import MultiTaskModel
from multitask_sentence.training.arguments import MultiTaskTrainingArguments
from multitask_sentence.training.trainer import MultiTaskTrainer

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"word{number}" for number in range(94)]

TASKS: dict[str, dict[str, Any]] = {
    "sentiment": {
        "problem_type": "single_label_classification",
        "labels": ["negative", "neutral", "positive"],
        "head": {"hidden_dims": [11], "activation": "relu"},
        "loss_weight": 0.5,
        "metrics": ["accuracy", "macro_f1"],
    },
    "tags": {"problem_type": "multi_label_classification", "labels": ["a", "b"], "loss_weight": 2.0},
    "rating": {"problem_type": "regression", "metrics": ["pearson", "mse"]},
    "pairs": {"problem_type": "similarity", "score_range": [0, 5], "loss_weight": 0.25},
    "search": {"problem_type": "contrastive", "metrics": ["mrr", "accuracy_at_1"]},
}
MEAN_LOSS_TASKS = ("sentiment", "tags", "rating")  # their loss does not depend on how a step is cut


def make_backbone(folder: Path, dropout: float = 0.0) -> Path:
    """A random BERT and its tokenizer, saved; the sizes are all different."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=37,
        max_position_embeddings=40,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate([*SPECIAL_TOKENS, *WORDS])}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    return folder


def make_model(backbone: Path, tasks: tuple[str, ...] = tuple(TASKS), **kwargs: Any) -> MultiTaskModel:
    """The same model each time, with the named tasks of `TASKS`."""
    torch.manual_seed(1)
    return MultiTaskModel.from_backbone(str(backbone), tasks={task: TASKS[task] for task in tasks}, **kwargs)


def make_sentences(count: int, seed: int) -> list[str]:
    """Distinct sentences of 2 to 9 words."""
    generator = np.random.default_rng(seed)
    sentences: dict[str, None] = {}
    while len(sentences) < count:
        sentences[" ".join(generator.choice(WORDS, generator.integers(2, 10)))] = None
    return list(sentences)


def make_rows(tasks: list[str], count: int, seed: int, shares: dict[str, float] | None = None) -> Dataset:
    """Rows of single sentences, of pairs (`pairs`) or of anchor, positive and negative (`search`), some unlabelled.

    The labels can be learnt: they follow from the first word. The first row is labelled for every task.
    """
    width = {"pairs": 2, "search": 3}.get(tasks[0], 1)
    sentences = np.array(make_sentences(width * count, seed)).reshape(count, width).tolist()
    generator = np.random.default_rng(seed + 1)
    first = [int(row[0].split()[0].removeprefix("word")) for row in sentences]
    labels = {
        "sentiment": [number % 3 for number in first],
        "tags": [[float(number % 2), float(number > 40)] for number in first],
        "rating": [number / 47 - 1 for number in first],
        "pairs": [float(number % 6) for number in first],
        "search": [1.0] * count,
    }
    columns: dict[str, list[Any]] = {"sentences": sentences}
    for task in tasks:
        is_labelled = generator.random(count) < (shares or {}).get(task, 1.0)
        columns[f"label_{task}"] = [
            label if row == 0 or is_labelled[row] else None for row, label in enumerate(labels[task])
        ]
    return Dataset.from_dict(columns)


def make_set(tasks: list[str], shares: dict[str, float] | None = None, seed: int = 0, **counts: int) -> LabelledSet:
    """A set with so many rows in each split."""
    splits = {
        split: make_rows(tasks, count, seed + 10 * number, shares)
        for number, (split, count) in enumerate(counts.items())
    }
    return LabelledSet(tasks, splits)


def make_arguments(folder: Path, **kwargs: Any) -> MultiTaskTrainingArguments:
    """Arguments for a short run on the CPU that keeps nothing, unless something else is said."""
    quiet = {
        "output_dir": str(folder),
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return MultiTaskTrainingArguments(**{**quiet, **kwargs})


def make_trainer(
    model: MultiTaskModel, sets: list[LabelledSet], folder: Path, trainer_options: dict | None = None, **kwargs: Any
) -> MultiTaskTrainer:
    """A trainer that prints nothing."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return MultiTaskTrainer(model, make_arguments(folder, **kwargs), sets, **(trainer_options or {}))


@contextmanager
def blank_start() -> Iterator[None]:
    """
    Trainings begin with zeros for all trainable weights.

    A resumed run has the model, rows and seed of the whole one: it equals that also where the checkpoint is ignored.
    From a blank start, the checkpoint alone can bring the weights.
    """
    train = MultiTaskTrainer.train

    def train_blank(self: MultiTaskTrainer, *args: Any, **kwargs: Any) -> Any:
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data.zero_()
        return train(self, *args, **kwargs)

    with mock.patch.object(MultiTaskTrainer, "train", train_blank):
        yield


def train_from(checkpoint: Path | str | None, trainer: MultiTaskTrainer) -> None:
    """Train, or go on from a checkpoint after a blank start."""
    if checkpoint is None:
        trainer.train()
    else:
        with blank_start():
            trainer.train(resume_from_checkpoint=str(checkpoint))


class GradientRecorder(TrainerCallback):
    """Keeps a copy of every parameter's gradient as the optimizer is about to see it, step by step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor | None]] = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        parameters = getattr(model, "module", model).named_parameters()
        self.steps.append(
            {name: None if parameter.grad is None else parameter.grad.clone() for name, parameter in parameters}
        )


def train_gradients(
    model: MultiTaskModel, sets: list[LabelledSet], folder: Path, **kwargs: Any
) -> list[dict[str, torch.Tensor | None]]:
    """Gradients of every optimizer step of one epoch."""
    recorder = GradientRecorder()
    make_trainer(model, sets, folder, {"callbacks": [recorder]}, **kwargs).train()
    return recorder.steps


def without_learning() -> dict[str, Any]:
    """Arguments under which the weights stay as they are, so that every step's gradients are those of the start."""
    return {"learning_rate": 0.0, "optim": "sgd"}
