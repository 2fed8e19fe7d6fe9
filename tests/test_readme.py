"""Every code block of the README runs as written: Python in a folder that holds runs/quickstart, recipes, commands.

The blocks of docs/training.md are parts of recipes: each is put into a whole one, unless it has tasks, and checked.
"""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from transformers import TrainingArguments

from multitask_sentence import MultiTaskModel
from multitask_sentence.training.arguments import MultiTaskTrainingArguments
from multitask_sentence.training.balancing.making import make_balancer
from multitask_sentence.training.recipe.command_line import RecipeArgumentParser
from multitask_sentence.training.recipe.recipe import RECIPE_KEYS, load_recipe
from multitask_sentence.training.recipe.starting import check_start, plan_before_data

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAINING_PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
# What the parts of docs/training.md are put into.
WHOLE = """
tasks:
  sentiment:
    problem_type: single_label_classification
    dataset: &rows {path: csv, data_files: rows.csv}
    columns: {sentence: a, label: b}
  topic: {problem_type: single_label_classification, dataset: *rows, columns: {sentence: a, label: c}}
  similarity:
    problem_type: similarity
    dataset: {path: csv, data_files: pairs.csv}
    columns: {sentence1: a, sentence2: b, label: c}
training: {num_train_epochs: 3}
"""


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/quickstart as the quickstart saves it, untrained."""
    folder = tmp_path_factory.mktemp("readme")
    recipe = load_recipe(ROOT / "recipes" / "quickstart.yaml")
    MultiTaskModel.from_backbone(recipe.backbone, recipe.settings, max_length=recipe.max_length).save_pretrained(
        folder / "runs" / "quickstart"
    )
    return folder


def test_readme_has_the_blocks_that_are_tested_here() -> None:
    assert len(blocks("python")) >= 4
    assert len(blocks("yaml")) == 1
    assert len(blocks("bash")) == 6


@pytest.mark.pretrained
@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_block_runs_and_gives_the_shapes_it_shows(workplace: Path, monkeypatch, number: int) -> None:
    monkeypatch.chdir(workplace)
    names: dict = {}
    exec(blocks("python")[number], names)
    for line in blocks("python")[number].splitlines():
        shown = re.search(r"^(.+?\.shape)\s+# (?:torch\.Size\(\[)?\(?([\d, ]+?)\)?(?:,?\)|\])", line)
        if shown:
            expected = [int(size) for size in shown[2].split(",") if size.strip()]
            assert list(eval(shown[1], names)) == expected, line


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "my_recipe.yaml"
    path.write_text(blocks("yaml")[0], encoding="utf-8")
    return path


def test_recipe_block_is_a_valid_recipe(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    assert [source.name for source in loaded.sources] == ["sentiment", "similarity"]


def test_training_commands_are_understood(recipe: Path, monkeypatch) -> None:
    monkeypatch.chdir(recipe.parent)
    commands = [line.split("#")[0] for line in blocks("bash")[1].splitlines()]
    assert len(commands) >= 5
    for command in commands:
        words = shlex.split(command)
        _, found, _ = RecipeArgumentParser().parse(words[words.index("train.py") + 1 :])
        assert found.path.name == "my_recipe.yaml"


def test_command_of_the_real_run_is_understood(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    (command,) = (line.split("#")[0] for line in blocks("bash")[2].splitlines())
    words = shlex.split(command)
    _, found, arguments = RecipeArgumentParser().parse(words[words.index("train.py") + 1 :])
    assert [source.name for source in found.sources] == ["sentiment", "topic", "similarity"]
    assert arguments.bf16 and arguments.use_cpu


@pytest.mark.pretrained
@pytest.mark.parametrize("block", [block for block in blocks("yaml", TRAINING_PAGE) if "continue_from" not in block])
def test_part_of_a_recipe_is_valid_as_it_stands(block: str, tmp_path: Path) -> None:
    (tmp_path / "whole.yaml").write_text(block if "tasks:" in block else WHOLE + block, encoding="utf-8")
    recipe = load_recipe(tmp_path / "whole.yaml")
    arguments = MultiTaskTrainingArguments(output_dir=str(tmp_path), num_train_epochs=3)
    start = check_start(recipe, tmp_path / "result")
    assert plan_before_data(start, recipe, arguments).stages
    make_balancer(recipe.balancing, len(recipe.settings), arguments)


def test_page_on_recipes_names_every_key() -> None:
    tables = set(re.findall(r"`(\w+)`", TRAINING_PAGE))
    assert set(RECIPE_KEYS) <= tables
    own = {argument.name for argument in fields(MultiTaskTrainingArguments)}
    own -= {argument.name for argument in fields(TrainingArguments)}
    assert own <= tables


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", blocks("bash")[0], flags=re.MULTILINE)
    assert targets == ["quickstart", "test"]
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_layout_names_what_is_there() -> None:
    for name in re.findall(r"^\| `([\w/.]+)` \|", README[README.index("## Layout") :], flags=re.MULTILINE):
        assert (ROOT / name).exists(), name
