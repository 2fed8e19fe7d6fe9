"""Multi-task sentence model: one encoder, one sentence embedding, any number of task heads."""

import importlib
from typing import Any

from .configuration_multitask import MultiTaskConfig
from .modeling_multitask import MultiTaskModel, MultiTaskOutput

__version__ = "0.1.0"

# Only whoever trains needs what these import, such as datasets.
_TRAINING = {
    "MultiTaskTrainer": ".training.trainer",
    "MultiTaskTrainingArguments": ".training.arguments",
}


def __getattr__(name: str) -> Any:
    if name in _TRAINING:
        return getattr(importlib.import_module(_TRAINING[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["MultiTaskConfig", "MultiTaskModel", "MultiTaskOutput", *_TRAINING]
