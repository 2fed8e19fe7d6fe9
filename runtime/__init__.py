"""Exported models without torch.

    from multitask_sentence.runtime import MultiTaskRuntime

    model = MultiTaskRuntime.from_pretrained("runs/quickstart")     # a folder or a Hub id
    model.predict(["What a lovely evening!"])

Every exported folder holds all of it in one file, runtime_multitask.py, which export/bundle.py makes of these modules:
it needs numpy, tokenizers, and onnxruntime or openvino.
"""

from .model import MultiTaskRuntime

__all__ = ["MultiTaskRuntime"]
