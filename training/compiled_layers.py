"""`torch_compile: true`: the layers of the backbone as one graph, for whatever lengths a batch has.

    compile_layers   gives a context in which they run compiled

Trainers compile a whole model. Of this one that would be a graph for every mix of tasks in a batch: PyTorch makes
another one where a task has no row, one, or several. Heads and losses cost next to nothing, so they stay as they are,
and so do evaluations, which run without padding where they can. All layers share one graph, which takes as long to
compile as one layer; a batch without padding, whose layers get no mask, has another.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from accelerate import Accelerator
from accelerate.utils import DynamoBackend, TorchDynamoPlugin
from transformers import TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer  # what every layer of an encoder is
from transformers.utils import logging

from ..modeling_multitask import MultiTaskModel

logger = logging.get_logger(__name__)


def compile_layers(
    model: MultiTaskModel, accelerator: Accelerator, args: TrainingArguments
) -> Callable[[], AbstractContextManager[None]]:
    """
    Prepare the layers of a model's backbone for `torch.compile`, and keep accelerate from compiling all of it.

    A backbone without layers that transformers knows is compiled as a whole.

    Returns:
        What opens a context in which the layers run compiled, and with padding: a pass without depends on the lengths
        in a batch. Where nothing is to be compiled, a context that changes nothing.
    """
    accelerator.state.dynamo_plugin.backend = DynamoBackend.NO  # also that of the next trainer with these arguments
    plugin = TorchDynamoPlugin(args.torch_compile_backend, args.torch_compile_mode)
    if plugin.backend == DynamoBackend.NO:
        return nullcontext
    if accelerator.device.type == "cpu":
        logger.warning(
            "torch_compile: on a CPU, compiled steps were slower than those without padding, and the first one takes "
            "a minute (docs/training.md). Leave torch_compile out."
        )
    options = {**plugin.to_kwargs(), "dynamic": True}
    layers = [module for module in model.backbone.modules() if isinstance(module, GradientCheckpointingLayer)]
    calls = {}
    for layer in layers or [model.backbone]:
        layer.compile(**options)
        calls[layer], layer._compiled_call_impl = layer._compiled_call_impl, None

    @contextmanager
    def compiled() -> Iterator[None]:
        padding_free, model._padding_free = model._padding_free, False
        for layer, call in calls.items():
            layer._compiled_call_impl = call
        try:
            yield
        finally:
            model._padding_free = padding_free  # what was asked for, which the model may not be able to do now
            for layer in calls:
                layer._compiled_call_impl = None

    return compiled


__all__ = ["compile_layers"]
