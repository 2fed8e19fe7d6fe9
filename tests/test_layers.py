"""The arrows between folders: which may import which, and that no imports run in a circle."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
NO_LAYER = ("tests", "benchmarks", "recipes", "notebooks")
# What each layer may import besides itself. `remote` are the files that travel with a model.
MAY_IMPORT = {
    "remote": set(),
    "data": {"remote"},
    "training": {"remote", "data"},
    "runtime": {"remote"},
    "export": {"remote", "data", "training", "runtime"},
    "labelling": {"remote", "data"},
    "reporting": {"remote", "data", "training"},
    "serving": {"remote", "runtime"},
    "train": {"remote", "data", "training"},
    "estimators": {"remote"},
    "commands": {"remote", "data", "training", "runtime", "export", "labelling", "reporting", "serving"},
    "__main__": {"remote", "commands"},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for path in [*ROOT.glob("*.py"), *ROOT.glob("[!.]*/**/*.py")]
    if path.relative_to(ROOT).parts[0] not in NO_LAYER and "build" not in path.parts
}


def when_imported(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module that run when it is imported: those inside `try`, `if` and `with` as well."""
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try, ast.With)):
            handlers = [handler.body for handler in getattr(node, "handlers", [])]
            for inner in (node.body, *handlers, getattr(node, "orelse", []), getattr(node, "finalbody", [])):
                yield from when_imported(inner)


def imports_of(name: str) -> set[str]:
    """Modules of the package that a module imports when it is imported itself."""
    path, found = MODULES[name], set()
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    for node in when_imported(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            own = (alias.name.partition(".") for alias in node.names)
            found |= {inner for package_name, _, inner in own if package_name == "multitask_sentence"}
        if not isinstance(node, ast.ImportFrom):
            continue
        words = node.module.split(".") if node.module else []
        if node.level:
            words = package[: len(package) - (node.level - 1)] + words
        elif words[:1] == ["multitask_sentence"]:
            words = words[1:]
        else:
            continue
        target = ".".join(words)
        for alias in node.names:
            inner = f"{target}.{alias.name}".lstrip(".")
            found.add(inner if inner in MODULES else target)
    return found & MODULES.keys() - {name, ""}


def layer_of(name: str) -> str:
    return "remote" if name.endswith("_multitask") else name.split(".")[0]


def test_no_imports_run_in_a_circle() -> None:
    # `prepare` raises a CycleError that names the circle.
    TopologicalSorter({name: imports_of(name) for name in MODULES}).prepare()


def test_rooms_of_data_stand_on_each_other() -> None:
    def room_of(name: str) -> str:
        return name if MODULES[name].stem == "__init__" else name.rpartition(".")[0]

    rooms: dict[str, set[str]] = {}
    for name in MODULES:
        if name.startswith("data."):
            found = rooms.setdefault(room_of(name), set())
            found |= {room_of(other) for other in imports_of(name) if other.startswith("data.")}
    TopologicalSorter({room: others - {room} for room, others in rooms.items()}).prepare()
    assert "data.text" in rooms["data.files"]


def test_layers_import_only_those_below_them() -> None:
    wrong = [
        f"{name} imports {other}"
        for name in MODULES.keys() - {""}
        for other in imports_of(name)
        if layer_of(other) not in {layer_of(name), *MAY_IMPORT[layer_of(name)]}
    ]
    assert not wrong
    assert any(imports_of(name) for name in MODULES)
