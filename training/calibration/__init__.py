"""Probabilities that mean what they say, and what to do where they are low: what is fitted on validation data."""
