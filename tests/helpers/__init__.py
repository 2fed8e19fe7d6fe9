"""What several test files share, as `from helpers.trainer import make_model` (see `pythonpath` in pyproject.toml)."""
