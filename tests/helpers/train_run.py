"""train.py in a process of torch.distributed, whose group it must have left in the end; how many models embedded."""

import sys
from typing import Any

import torch.distributed as dist

from multitask_sentence import MultiTaskModel
from multitask_sentence.train import main

if __name__ == "__main__":
    models, encode = {}, MultiTaskModel.encode

    def note(self: MultiTaskModel, *args: Any, **kwargs: Any) -> Any:
        models[id(self)] = self
        return encode(self, *args, **kwargs)

    MultiTaskModel.encode = note
    main(sys.argv[1:])
    sys.stdout.write(f"{len(models)} models embedded\n")
    if dist.is_initialized():
        raise RuntimeError("The process ends within its group.")
