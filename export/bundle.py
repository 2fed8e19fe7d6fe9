"""The runtime as one file: the modules that it consists of, one after another, without their imports of each other.

A folder is then opened by a file that stands in it, whatever version of the other files stands beside it.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUNTIME_FILE = "runtime_multitask.py"
# Each stands after those that it imports.
MODULES = (
    "checks_multitask.py",
    "problem_types_multitask.py",
    "records_multitask.py",
    "tasks_multitask.py",
    "rows_multitask.py",
    "answers_multitask.py",
    "runtime/record.py",
    "runtime/graphs.py",
    "runtime/hub.py",
    "runtime/logits.py",
    "runtime/scopes.py",
    "runtime/model.py",
)
DOCSTRING = '''"""An exported model without torch: `encode`, `predict` and `similarity` on ONNX Runtime or OpenVINO.

    from runtime_multitask import MultiTaskRuntime     # with this file's folder in sys.path

    model = MultiTaskRuntime.from_pretrained("runs/quickstart")      # the folder, or the id of its Hub repository
    model.encode(["What a lovely evening!"])
    model.predict(["What a lovely evening!"])

Arguments, defaults, order, errors and answers are those of the model that was exported. It needs numpy, tokenizers,
and onnxruntime or openvino. `multitask-sentence export` made this file of several, in the order below.
"""
'''


def bundle() -> str:
    """The runtime's source text."""
    imports: dict[str, None] = {}
    parts = []
    for name in MODULES:
        text = (ROOT / name).read_text(encoding="utf-8")
        tree = ast.parse(text)
        lines: list[str | None] = list(text.splitlines())
        for node in tree.body:
            is_docstring = node is tree.body[0] and isinstance(node, ast.Expr)
            is_import = isinstance(node, (ast.Import, ast.ImportFrom))
            is_export = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) in ("__all__", "logger")
            if is_import and not getattr(node, "level", 0):
                imports[ast.unparse(node)] = None
            if is_docstring or is_import or is_export:
                for line in range(node.lineno - 1, node.end_lineno or node.lineno):
                    lines[line] = None
        body = "\n".join(line for line in lines if line is not None).strip()
        parts.append(f"# ---- {name} ----\n\n{body}\n")
    logger = "logger = logging.getLogger(__name__)\n"
    return "\n".join([DOCSTRING, "\n".join(sorted(imports)), "", logger, *parts, '\n__all__ = ["MultiTaskRuntime"]\n'])
