"""docs/api.md names what the package has, all of it and nothing else."""

import inspect
import re
from pathlib import Path

import pytest
from transformers import PreTrainedConfig, PreTrainedModel, Trainer

import multitask_sentence
from multitask_sentence import MultiTaskConfig, MultiTaskModel, MultiTaskTrainer

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
BASES = {MultiTaskModel: PreTrainedModel, MultiTaskTrainer: Trainer, MultiTaskConfig: PreTrainedConfig}


def named_members(owner: type) -> set[str]:
    """Names in the first cells of the tables whose first header names this class."""
    tables = re.findall(rf"^\| [^|\n]*`{owner.__name__}` \|.*\n((?:\|.*\n)+)", PAGE, flags=re.MULTILINE)
    cells = [line.split("|")[1] for table in tables for line in table.splitlines()[1:]]
    return {name for cell in cells for name in re.findall(r"`([a-z_]+)[`(]", cell)}


def own_members(owner: type) -> set[str]:
    """Public names that this package adds to those of transformers."""
    ours = [base for base in owner.__mro__ if base.__module__.startswith("multitask_sentence")]
    names = {name for base in ours for name in [*vars(base), *inspect.get_annotations(base)]}
    names = {name for name in names if not name.startswith(("_", "validate_"))}
    return {name for name in names if not hasattr(BASES[owner], name)}


def test_page_on_the_api_names_every_export_with_a_docstring() -> None:
    for name in multitask_sentence.__all__:
        assert f"`{name}`" in PAGE, name
        assert len(inspect.getdoc(getattr(multitask_sentence, name))) > 40, name


@pytest.mark.parametrize("owner", BASES)
def test_page_on_the_api_names_every_public_member(owner: type) -> None:
    assert own_members(owner) - named_members(owner) == set()


@pytest.mark.parametrize("owner", [MultiTaskModel, MultiTaskTrainer])
def test_members_of_the_page_on_the_api_exist_and_have_docstrings(owner: type) -> None:
    assert named_members(owner), "premise: the page has tables of this class"
    for name in named_members(owner):
        assert inspect.getdoc(inspect.getattr_static(owner, name)), name


def test_settings_of_the_page_on_the_api_exist() -> None:
    config = MultiTaskConfig()
    assert all(hasattr(config, name) for name in named_members(MultiTaskConfig))


def test_signatures_of_the_page_on_the_api_are_those_of_the_code() -> None:
    for name, arguments in re.findall(r"^\| `(\w+)\(([^`]*)\)`", PAGE, flags=re.MULTILINE):
        owner = next(owner for owner in BASES if hasattr(owner, name) and name in named_members(owner))
        parameters = inspect.signature(getattr(owner, name)).parameters
        for argument in re.findall(r"(\w+)=", arguments):
            assert argument in parameters, f"{name}: {argument}"
