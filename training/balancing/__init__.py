"""How the tasks' losses become one training step: weights from torchjd, or gradients that are combined."""
