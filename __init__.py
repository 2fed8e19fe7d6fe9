"""Multi-task sentence model: one encoder, one sentence embedding, any number of task heads."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_multitask import MultiTaskConfig, ProjectionConfig
    from .estimators import SentenceEmbedder, TaskClassifier
    from .modeling_multitask import MultiTaskModel, MultiTaskOutput
    from .records_multitask import HeadConfig
    from .runtime import MultiTaskRuntime
    from .tasks_multitask import TaskConfig
    from .training.arguments import MultiTaskTrainingArguments
    from .training.trainer import MultiTaskTrainer

__version__ = "0.1.0"

# Imported when they are asked for: an exported model is opened without torch, and only whoever trains needs datasets.
_PLACES = {
    "HeadConfig": ".records_multitask",
    "MultiTaskConfig": ".configuration_multitask",
    "MultiTaskModel": ".modeling_multitask",
    "MultiTaskOutput": ".modeling_multitask",
    "MultiTaskRuntime": ".runtime",
    "MultiTaskTrainer": ".training.trainer",
    "MultiTaskTrainingArguments": ".training.arguments",
    "ProjectionConfig": ".configuration_multitask",
    "SentenceEmbedder": ".estimators",
    "TaskClassifier": ".estimators",
    "TaskConfig": ".tasks_multitask",
}


# `train` is the module train.py, which can be called.
def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "HeadConfig",
    "MultiTaskConfig",
    "MultiTaskModel",
    "MultiTaskOutput",
    "MultiTaskRuntime",
    "MultiTaskTrainer",
    "MultiTaskTrainingArguments",
    "ProjectionConfig",
    "SentenceEmbedder",
    "TaskClassifier",
    "TaskConfig",
]
