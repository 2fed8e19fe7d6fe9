"""Multi-task sentence model: one encoder, one sentence embedding, any number of task heads."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_multitask import MultiTaskConfig
    from .modeling_multitask import MultiTaskModel, MultiTaskOutput
    from .runtime import MultiTaskRuntime
    from .training.arguments import MultiTaskTrainingArguments
    from .training.trainer import MultiTaskTrainer

__version__ = "0.1.0"

# Imported when they are asked for: an exported model is opened without torch, and only whoever trains needs datasets.
_PLACES = {
    "MultiTaskConfig": ".configuration_multitask",
    "MultiTaskModel": ".modeling_multitask",
    "MultiTaskOutput": ".modeling_multitask",
    "MultiTaskRuntime": ".runtime",
    "MultiTaskTrainer": ".training.trainer",
    "MultiTaskTrainingArguments": ".training.arguments",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "MultiTaskConfig",
    "MultiTaskModel",
    "MultiTaskOutput",
    "MultiTaskRuntime",
    "MultiTaskTrainer",
    "MultiTaskTrainingArguments",
]
