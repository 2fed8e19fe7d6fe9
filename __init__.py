"""Multi-task sentence model: one encoder, one sentence embedding, any number of task heads."""

from .configuration_multitask import MultiTaskConfig
from .modeling_multitask import MultiTaskModel, MultiTaskOutput

__version__ = "0.1.0"

__all__ = ["MultiTaskConfig", "MultiTaskModel", "MultiTaskOutput"]
