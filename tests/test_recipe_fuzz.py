"""Some hundred mutated recipes: each passes what is checked before data is loaded, or is refused in one line."""

from collections import Counter
from pathlib import Path

import pytest
from huggingface_hub import constants

from helpers import recipe_fuzz as fuzz

MUTATIONS = 200


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "mutated.yaml"


def test_recipes_that_mutations_start_from_pass(recipe: Path, tiny_backbone: str):
    fuzzer = fuzz.Fuzzer(tiny_backbone, 0)
    for base in fuzzer.bases:
        recipe.write_text(fuzzer._dumped(base), encoding="utf-8")
        assert fuzz.outcome_of(recipe) == ("passed", "")


@pytest.mark.parametrize("seed", [11, 12])
def test_mutated_recipe_passes_or_is_refused_in_one_line(seed: int, recipe: Path, tiny_backbone: str):
    fuzzer, counts = fuzz.Fuzzer(tiny_backbone, seed), Counter()
    for _ in range(MUTATIONS):
        what, data = fuzzer.mutation()
        recipe.write_bytes(data)
        outcome, message = fuzz.outcome_of(recipe)
        assert outcome in ("passed", "refused"), f"{what}: {outcome}\n{message}"
        counts[outcome] += 1
    assert counts["passed"] > 0 < counts["refused"]  # else it tries nothing


def test_mutations_of_a_seed_are_the_same(tiny_backbone: str):
    first, second = (fuzz.Fuzzer(tiny_backbone, 5) for _ in range(2))
    assert [first.mutation() for _ in range(50)] == [second.mutation() for _ in range(50)]


def test_outcome_tells_a_crash_from_a_refusal(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    for error, outcome in (
        (ValueError("no"), "refused"),
        (ValueError(""), "ValueError without a word"),
        (ValueError("a\nline"), "refused in several lines"),
        (ValueError("x" * 20_000), "refused at too great length"),
        (KeyError("bool"), "crashed: KeyError"),
        (RecursionError(), "crashed: RecursionError"),
    ):
        monkeypatch.setattr(fuzz, "check", lambda recipe, error=error: (_ for _ in ()).throw(error))
        assert fuzz.outcome_of(recipe)[0] == outcome
