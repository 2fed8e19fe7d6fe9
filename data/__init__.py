"""Datasets in, batches and metrics out: loading and checking, the mixture, collation, metrics."""
