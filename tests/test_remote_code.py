"""What the files that travel with a model may do: their syntax trees, looked through."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(ROOT.glob("*_multitask.py"))
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "input"}
FORBIDDEN_MODULES = {
    *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "subprocess", "ctypes", "runpy"),
    *("socket", "ssl", "http", "urllib", "requests", "httpx", "aiohttp", "ftplib", "smtplib", "telnetlib", "xmlrpc"),
}
FORBIDDEN_ATTRIBUTES = {("torch", "save"), ("np", "load"), ("os", "system"), ("os", "popen")}


def misdeeds(text: str) -> list[str]:
    """What a file does and may not, with the line."""
    found, nodes = [], list(ast.walk(ast.parse(text)))
    # `torch.load` of numbers alone: it takes no pickled code.
    safe = {
        id(node.func)
        for node in nodes
        if isinstance(node, ast.Call)
        and any(word.arg == "weights_only" and getattr(word.value, "value", None) is True for word in node.keywords)
    }
    for node in nodes:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            found.append(f"line {node.lineno} calls {node.func.id}")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            is_load = (node.value.id, node.attr) == ("torch", "load") and id(node) not in safe
            if is_load or (node.value.id, node.attr) in FORBIDDEN_ATTRIBUTES:
                found.append(f"line {node.lineno} uses {node.value.id}.{node.attr}")
        found += [f"line {node.lineno} imports {name}" for name in names if name.split(".")[0] in FORBIDDEN_MODULES]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_remote_file_evaluates_unpickles_and_connects_nothing(file: Path) -> None:
    assert misdeeds(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "eval('1')",
        "def f():\n    exec('x = 1')",
        "try:\n    import pickle\nexcept ImportError: pass",
        "from urllib.request import urlopen",
        "import http.client",
        "import torch\ntorch.load('weights.bin')",
        "import torch\ntorch.load('weights.bin', weights_only=False)",
        "import os\nos.system('ls')",
    ],
)
def test_misdeeds_are_seen(text: str) -> None:
    assert len(misdeeds(text)) == 1
