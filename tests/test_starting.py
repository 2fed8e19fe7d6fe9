"""What a run starts from is looked up and checked once, and handed on."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from helpers.small_job import make_recipe, write_rows
from multitask_sentence import modeling_multitask
from multitask_sentence.train import run
from multitask_sentence.training import trainer
from multitask_sentence.training.arguments import MultiTaskTrainingArguments
from multitask_sentence.training.recipe import before_data, starting
from multitask_sentence.training.recipe.recipe import load_recipe
from multitask_sentence.training.recipe.starting import check_start, start_model
from multitask_sentence.training.strategy.plan import make_plan

STRATEGY = {"freeze": "embeddings", "unfreeze": [{"epochs": 0.5, "train": "heads"}, {"train": "backbone"}]}
LABELS = {"mood": ["negative", "positive"], "tags": ["animal", "money"]}


@pytest.fixture
def job(tmp_path: Path, tiny_backbone: str):
    """Writes the small job with changes to its recipe, and gives the recipe's path."""

    def write(**changes: Any) -> Path:
        write_rows(tmp_path)
        path = make_recipe(tmp_path, tiny_backbone, ("mood", "tags"))
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))
        return path

    return write


def test_each_check_and_look_up_of_a_run_is_made_once(job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    def counted(name: str, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return real(*args, **kwargs)

        return call

    for module in (starting, before_data, trainer, modeling_multitask):
        for name in ("make_plan", "make_balancer", "check_best_metric", "read_sentence_transformers"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    run([str(job(strategy=STRATEGY)), "--output_dir", str(tmp_path / "result"), "--check"])
    assert calls == dict.fromkeys(("make_plan", "make_balancer", "check_best_metric", "read_sentence_transformers"), 1)


@pytest.mark.parametrize(
    "peft", [None, {"target_modules": ["query"], "r": 2}, {"peft_type": "LN_TUNING", "target_modules": ["LayerNorm"]}]
)
def test_plan_before_data_is_that_of_the_model(job, tmp_path: Path, peft: dict[str, Any] | None) -> None:
    settings = {} if peft is None else {"peft": peft}
    recipe = load_recipe(job(strategy={"learning_rates": {"mood": 1e-3}}, projection={"out_features": 8}, **settings))
    arguments = MultiTaskTrainingArguments(output_dir=str(tmp_path / "result"))
    start = check_start(recipe, arguments)
    parts = start_model(start, recipe, SimpleNamespace(labels=LABELS, score_ranges={})).parts()
    found, expected = start.plan.of_model(parts), make_plan(recipe.strategy, parts, arguments)
    assert (found.frozen, found.stages) == (expected.frozen, expected.stages)
    names = {part: {name: id(p) for name, p in parameters.items()} for part, parameters in expected.parameters.items()}
    own = {part: {name: id(p) for name, p in parameters.items()} for part, parameters in found.parameters.items()}
    assert own == names, "the model's own parameters, not those it was planned with"
