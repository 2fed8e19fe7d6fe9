"""Answering requests over HTTP: the limits, the batches, the model, and the routes, a file each."""
