"""What is written in several places about the package agrees: its version, its parts and the versions it needs."""

import importlib.metadata
import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import multitask_sentence

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PYPROJECT["project"]["optional-dependencies"].values()
REQUIREMENTS = [Requirement(line) for line in [*PYPROJECT["project"]["dependencies"], *chain(*EXTRAS)]]
BOUNDED = [requirement for requirement in REQUIREMENTS if requirement.name != PYPROJECT["project"]["name"]]
TOOLS = (
    "gradio",
    "playwright",
    "pytest",
    "pytest-xdist",
    "ruff",
    "ty",
)  # what looks at the package: the newest will do
EXPORTS = {
    *PYPROJECT["project"]["optional-dependencies"]["onnx"],
    *PYPROJECT["project"]["optional-dependencies"]["openvino"],
}
LOWERED = [
    entry
    for entry in BOUNDED
    if entry.name not in TOOLS and str(entry) not in {str(Requirement(line)) for line in EXPORTS}
]


def read_pins(name: str) -> dict[str, Version]:
    """The versions of a constraints file by package, in lower case and with dashes."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pins = [line.partition("#")[0].strip().split("==") for line in lines if not line.startswith("#")]
    return {canonical(package): Version(version) for package, version in pins}


def canonical(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def test_citation_and_installed_package_give_the_version_of_the_code():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == multitask_sentence.__version__
    assert importlib.metadata.version("multitask-sentence") == multitask_sentence.__version__


def test_every_folder_of_modules_is_packed():
    files = [path.parent.relative_to(ROOT) for path in ROOT.glob("[!.]*/**/__init__.py")]
    folders = {".".join(("multitask_sentence", *folder.parts)) for folder in files if folder.parts[0] != "tests"}
    assert {"multitask_sentence", *folders} == set(PYPROJECT["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize("requirement", LOWERED, ids=str)
def test_lowest_constraints_hold_the_least_version_of_every_package(requirement: Requirement):
    least = [Version(bound.version) for bound in requirement.specifier if bound.operator in (">=", "==")]
    assert least, f"{requirement.name} has no least version"
    assert read_pins("constraints-lowest.txt")[canonical(requirement.name)] == least[0]


@pytest.mark.parametrize("requirement", BOUNDED, ids=str)
def test_constraints_pin_every_package_within_its_bounds(requirement: Requirement):
    assert requirement.specifier.contains(read_pins("constraints.txt")[canonical(requirement.name)])
