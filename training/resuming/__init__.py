"""Going on with a run from a checkpoint: exactly, or not at all."""
