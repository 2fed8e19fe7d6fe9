"""train.py in a process of torch.distributed, whose group it must have left in the end."""

import sys

import torch.distributed as dist

from multitask_sentence.train import main

if __name__ == "__main__":
    main(sys.argv[1:])
    if dist.is_initialized():
        raise RuntimeError("The process ends within its group.")
