"""Settings of tasks of every kind. An import of conftest.py would run it once more, with other folders for caches."""

from typing import Any

# One task of every problem type, single and pair, linear and MLP.
TASKS: dict[str, dict[str, Any]] = {
    "mood": {"problem_type": "single_label_classification", "labels": ["negative", "neutral", "positive"]},
    "tags": {
        "problem_type": "multi_label_classification",
        "labels": ["animal", "place", "money", "time"],
        "head": {"hidden_dims": [11], "activation": "gelu", "dropout": 0.1},
    },
    "rating": {"problem_type": "regression", "head": {"hidden_dims": [7, 5]}},
    "entails": {"problem_type": "single_label_classification", "labels": ["no", "yes"], "pair": True},
    "distance": {"problem_type": "regression", "pair": True},
    "similarity": {"problem_type": "similarity"},
    "search": {"problem_type": "contrastive"},
}
