"""Every code block of the README and of docs/ runs as written: Python beside runs/quickstart, recipes, commands.

The blocks of docs/training.md are parts of recipes: each is put into a whole one, unless it has tasks, and checked.
The formats of their data sets are ones that are read.
"""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainingArguments

from multitask_sentence import MultiTaskModel
from multitask_sentence.commands import COMMANDS
from multitask_sentence.data.files.formats import FORMATS, UNREAD, check_options
from multitask_sentence.data.files.parts import SPLIT_NAMES
from multitask_sentence.export.folder import export_folder
from multitask_sentence.training.arguments import MultiTaskTrainingArguments
from multitask_sentence.training.balancing.making import make_balancer
from multitask_sentence.training.recipe.command_line import RecipeArgumentParser
from multitask_sentence.training.recipe.recipe import RECIPE_KEYS, load_recipe
from multitask_sentence.training.recipe.starting import check_start

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
TRAINING_PAGE = PAGES["training.md"]
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
    """A folder with runs/quickstart as the quickstart saves it, but untrained and with one layer: what is shown is its
    shapes and names, and a sixth of the layers is exported in a third of the time."""
    folder = tmp_path_factory.mktemp("readme")
    recipe = load_recipe(ROOT / "recipes" / "quickstart.yaml")
    model = MultiTaskModel.from_backbone(recipe.backbone, recipe.settings, max_length=recipe.max_length)
    model.backbone.encoder.layer = model.backbone.encoder.layer[:1]
    model.config.backbone_config.num_hidden_layers = 1
    model.save_pretrained(folder / "runs" / "quickstart")
    return folder


def test_readme_is_short_and_shows_each_kind_of_block() -> None:
    assert len(README.splitlines()) <= 160
    assert all(blocks(language) for language in ("python", "yaml", "bash"))


PYTHON = [
    pytest.param(block, id=f"{page}-{number}", marks=[pytest.mark.slow] if "runtime_multitask" in block else [])
    for page, text in {"README.md": README, **PAGES}.items()
    for number, block in enumerate(blocks("python", text))
]


@pytest.mark.pretrained
@pytest.mark.parametrize("block", PYTHON)
def test_python_block_runs_and_gives_the_shapes_it_shows(workplace: Path, monkeypatch, block: str) -> None:
    monkeypatch.chdir(workplace)
    if "runtime_multitask" in block:
        pytest.importorskip("onnxruntime")
        export_folder(Path("runs/quickstart"))
        monkeypatch.setattr(sys, "path", list(sys.path))
    names: dict = {}
    exec(block, names)
    for line in block.splitlines():
        shown = re.search(r"^(.+?\.shape)\s+# (?:torch\.Size\(\[)?\(?([\d, ]+?)\)?(?:,?\)|\])", line)
        if shown:
            expected = [int(size) for size in shown[2].split(",") if size.strip()]
            assert list(eval(shown[1], names)) == expected, line


def commands_of(text: str) -> list[list[str]]:
    """The words of every command line in a page's bash blocks, variables before it left out."""
    whole = [block.replace("\\\n", " ") for block in blocks("bash", text)]  # lines that go on in the next one
    lines = [line.split(" #")[0].strip() for block in whole for line in block.splitlines()]
    found = [shlex.split(line) for line in lines if line and not line.startswith("#")]
    return [[word for word in words if not re.match(r"[A-Z_]+=", word)] for words in found]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "my_recipe.yaml"
    path.write_text(blocks("yaml")[0], encoding="utf-8")
    return path


def test_recipe_block_is_a_valid_recipe(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    assert [source.name for source in loaded.sources] == ["sentiment", "similarity"]


def training_arguments(words: list[str]) -> list[str] | None:
    """What a command line gives to the command `train`, in either spelling; None for other commands."""
    if words[:2] == ["multitask-sentence", "train"]:
        return words[2:]
    return words[words.index("train.py") + 1 :] if "train.py" in words else None


TRAINING_COMMANDS = [
    pytest.param(arguments, id=" ".join(words)[:80])
    for text in (README, *PAGES.values())
    for words in commands_of(text)
    if (arguments := training_arguments(words)) is not None
]


@pytest.mark.parametrize("arguments", TRAINING_COMMANDS)
def test_training_command_is_understood(recipe: Path, monkeypatch, arguments: list[str]) -> None:
    monkeypatch.chdir(recipe.parent)
    (recipe.parent / "recipes").symlink_to(ROOT / "recipes")
    (recipe.parent / "RECIPE").symlink_to(recipe)
    _, found, _ = RecipeArgumentParser().parse(arguments)
    assert found.sources


def test_commands_that_are_shown_exist() -> None:
    for text in (README, *PAGES.values()):
        for words in commands_of(text):
            if words[0] == "multitask-sentence":
                assert words[1] in COMMANDS
            if words[0] == "python":
                assert (ROOT / words[1]).is_file(), words


@pytest.mark.pretrained
@pytest.mark.parametrize("block", [block for block in blocks("yaml", TRAINING_PAGE) if "continue_from" not in block])
def test_part_of_a_recipe_is_valid_as_it_stands(block: str, tmp_path: Path) -> None:
    (tmp_path / "whole.yaml").write_text(block if "tasks:" in block else WHOLE + block, encoding="utf-8")
    recipe = load_recipe(tmp_path / "whole.yaml")
    arguments = MultiTaskTrainingArguments(output_dir=str(tmp_path), num_train_epochs=3)
    assert check_start(recipe, arguments).plan.stages
    make_balancer(recipe.balancing, len(recipe.settings), arguments)


WHOLE_RECIPES = [
    block for text in (README, *PAGES.values()) for block in blocks("yaml", text) if "tasks" in yaml.safe_load(block)
]


@pytest.mark.parametrize("block", WHOLE_RECIPES)
def test_every_task_of_a_recipe_block_has_validation_rows(block: str) -> None:
    for name, task in yaml.safe_load(block)["tasks"].items():
        files = task["dataset"].get("data_files")
        splits = files if isinstance(files, dict) else {"train": files}
        assert "validation_split" in task or set(SPLIT_NAMES["validation"]) & set(splits), name


@pytest.mark.pretrained
@pytest.mark.parametrize("block", [block for block in WHOLE_RECIPES if "continue_from" in block])
def test_recipe_that_goes_on_fits_the_quickstart(workplace: Path, monkeypatch, tmp_path: Path, block: str) -> None:
    monkeypatch.chdir(workplace)
    (tmp_path / "whole.yaml").write_text(block, encoding="utf-8")
    arguments = MultiTaskTrainingArguments(output_dir=str(tmp_path), num_train_epochs=3)
    known = check_start(load_recipe(tmp_path / "whole.yaml"), arguments).tasks
    assert set(known) == {"sentiment", "topic", "similarity"}


def datasets_in(block: Any) -> list[dict[str, Any]]:
    """Every `dataset` of a recipe or a part of one, however deep it stands."""
    if not isinstance(block, dict):
        return []
    own = [block["dataset"]] if isinstance(block.get("dataset"), dict) else []
    return own + [dataset for value in block.values() for dataset in datasets_in(value)]


@pytest.mark.parametrize(
    "dataset",
    [
        dataset
        for text in (README, *PAGES.values())
        for block in blocks("yaml", text)
        for dataset in datasets_in(yaml.safe_load(block))
    ],
    ids=str,
)
def test_data_set_of_a_recipe_block_has_a_format_that_is_read(dataset: dict[str, Any]) -> None:
    path = dataset["path"]
    assert path in FORMATS, UNREAD.get(path, f"{path} is no format, and the blocks name no data set of the Hub")
    options = dataset.keys() - {"path", "data_files", "data_dir", "streaming", "buffer_size"}
    check_options("t", path, {key: dataset[key] for key in options})


def test_page_on_recipes_names_every_key() -> None:
    tables = set(re.findall(r"`(\w+)`", TRAINING_PAGE))
    assert set(RECIPE_KEYS) <= tables
    own = {argument.name for argument in fields(MultiTaskTrainingArguments)}
    own -= {argument.name for argument in fields(TrainingArguments)}
    assert own <= tables


def test_page_on_evaluating_names_the_formats_of_single_files() -> None:
    (item,) = re.findall(
        r"^\* \*\*Files\*\* are (.*?) by file extension", PAGES["evaluating.md"], re.DOTALL | re.MULTILINE
    )
    alone = {name for name, found in FORMATS.items() if found.source == "file"} - {"sqlite"}  # which needs a query
    assert set(re.findall(r"[a-z]+", item)) - {"or"} == alone


def test_table_of_extras_has_all_of_them_but_those_of_the_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    rows = re.findall(r"^\| (`.+?) \|", TRAINING_PAGE[TRAINING_PAGE.index("## Extras") :], flags=re.MULTILINE)
    named = re.findall(r"`(\w+)`", " ".join(rows))
    assert sorted(named) == sorted(project["optional-dependencies"].keys() - {"test", "test_without_exports"})


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [words[1] for text in (README, *PAGES.values()) for words in commands_of(text) if words[0] == "make"]
    assert {"quickstart", "test"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_make_quickstart_keeps_a_finished_run_and_opens_it(tmp_path: Path) -> None:
    run, python = tmp_path / "runs" / "quickstart", tmp_path / ".venv" / "bin" / "python"
    for folder in (run, python.parent):
        folder.mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python.write_text("#!/bin/sh\necho python $1\n", encoding="utf-8")  # says what would run
    python.chmod(0o755)
    (tmp_path / ".venv" / "installed").touch()

    def ran() -> list[str]:
        command = ["make", "--silent", "quickstart"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return [Path(line.split()[1]).name for line in done.stdout.splitlines() if line.startswith("python ")]

    assert ran() == ["train.py", "open_model.py"]
    (run / "results.json").touch()
    assert ran() == ["open_model.py"]


def test_files_and_pages_that_are_named_exist() -> None:
    for page, text in {
        ROOT / "README.md": README,
        **{ROOT / "docs" / name: text for name, text in PAGES.items()},
    }.items():
        for target in re.findall(r"\]\(([^)#]+)", text):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"
    layout = README[README.index("## Layout") : README.index("## Limits")]
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", layout):
        assert (ROOT / name).exists(), name


def test_page_on_models_lists_the_remote_files() -> None:
    files = {path.name for path in ROOT.glob("*_multitask.py")}
    assert set(re.findall(r"^\| `(\w+_multitask\.py)` \|", PAGES["models.md"], flags=re.MULTILINE)) == files
