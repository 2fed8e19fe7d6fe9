"""Joint training against each task trained alone: the single runs, the report, the cosines of the gradients."""
