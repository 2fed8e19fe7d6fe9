"""The YAML of a recipe: one reader for whoever reads one, be it to train or to write the card.

`read_yaml` gives plain mappings, lists, texts, numbers, booleans and nulls, as a tree without cycles. It differs from
PyYAML's `safe_load` where version 1.1 of YAML surprises: `no` and `on` are words, `1e-4` is a number, a date, a time
and `007` are text. A key stands once, and no other tags are known.
"""

import re
from pathlib import Path
from typing import Any

import yaml

DEEPEST = 50  # levels; a recipe has six
LARGEST_NUMBER = 2**63
MOST_VALUES = 1_000_000  # after aliases are written out

_TAG = "tag:yaml.org,2002:"
_KINDS = {"null": "null", "bool": "true or false", "int": "whole number", "float": "number"}
_TAGS = tuple(_TAG + name for name in (*_KINDS, "str", "seq", "map"))


class _RecipeLoader(yaml.SafeLoader):
    """YAML of few tags, with the booleans and floats of version 1.2, in which a key stands once."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (LookupError, ValueError, OverflowError):  # such as of `!!bool maybe`
            if not isinstance(node, yaml.ScalarNode):
                raise
            kind = _KINDS.get(node.tag.removeprefix(_TAG), node.tag)
            problem = f"{_shortened(node.value)} cannot be read as {kind}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        for place, key in enumerate(keys):
            if key in keys[:place]:
                mark = node.value[place][0].start_mark
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} stands twice", problem_mark=mark)
        return super().construct_mapping(node, deep)


_RecipeLoader.yaml_constructors = {
    tag: constructor for tag, constructor in yaml.SafeLoader.yaml_constructors.items() if tag is None or tag in _TAGS
}
_RecipeLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _TAGS or tag.endswith(":merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for resolvers in _RecipeLoader.yaml_implicit_resolvers.values():
    resolvers[:] = [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":bool")]
for tag, pattern, first in (
    (f"{_TAG}bool", r"^(true|True|TRUE|false|False|FALSE)$", "tTfF"),
    (f"{_TAG}float", r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$", "-+0123456789"),
):
    _RecipeLoader.add_implicit_resolver(tag, re.compile(pattern), list(first))
# Label codes and times, which version 1.1 reads as octal and sexagesimal numbers: 00501 is not 321, nor is 12:30 750.
for first in "-+0123456789":
    resolvers = _RecipeLoader.yaml_implicit_resolvers[first]
    resolvers.insert(0, (f"{_TAG}str", re.compile(r"^[-+]?(0\d+|\d+(:\d+)+(\.\d*)?)$")))


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}...{text[-1]}"


def _in_one_line(error: yaml.YAMLError) -> str:
    """What PyYAML says over several lines, without its drawing of the place."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    said = ": ".join(part for part in (error.context, error.problem) if part)
    return f"{said} (line {mark.line + 1}, column {mark.column + 1})"


def _check_tree(where: str, value: Any, above: tuple[int, ...] = (), sizes: dict[int, int] | None = None) -> int:
    """Refuse what no setting can be: returns how many values there are, each alias written out."""
    sizes = {} if sizes is None else sizes
    where = where or "recipe"
    if isinstance(value, int) and abs(value) >= LARGEST_NUMBER:
        raise ValueError(
            f"{where} is a whole number beyond 2 to the power of 63, which no setting takes. Put it into quotes if it "
            "is a name."
        )
    if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
        raise ValueError(f"{where} is {_shortened(value)}, which holds half a character (a lone surrogate).")
    if not isinstance(value, dict | list):
        return 1
    if id(value) in above:
        raise ValueError(f"{where} holds itself: an alias (*name) stands within what its anchor (&name) marks.")
    if len(above) >= DEEPEST:
        raise ValueError(f"{where[:200]} is nested more than {DEEPEST} levels deep, which no setting is.")
    if id(value) not in sizes:
        prefix = "" if where == "recipe" else f"{where}."
        entries = value.items() if isinstance(value, dict) else enumerate(value, 1)
        above = (*above, id(value))
        sizes[id(value)] = 1 + sum(
            _check_tree(f"{where}, a key", key, above, sizes) + _check_tree(f"{prefix}{key}", entry, above, sizes)
            for key, entry in entries
        )
    if sizes[id(value)] > MOST_VALUES:
        raise ValueError(f"{where} holds more than {MOST_VALUES:,} values with its aliases written out.")
    return sizes[id(value)]


def read_yaml(path: str | Path) -> tuple[str, Any]:
    """
    A recipe's text, and what it says.

    Raises:
        ValueError: the file is no UTF-8 text, no YAML, or holds what no setting can be; in one line, with the place.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = yaml.load(text, _RecipeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {_in_one_line(error)}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not YAML: it should be UTF-8 text, but {error}. Save it as UTF-8.") from error
    except RecursionError:
        raise ValueError(f"{path} is not YAML that can be read: it is nested too deeply.") from None
    try:
        _check_tree("", content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return text, content
