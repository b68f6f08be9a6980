"""The budgets and the shape of the code. Run: pytest tests/test_architecture.py"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import millstream

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "src" / "millstream").rglob("*.py"))
MOST_LINES, MOST_BODY, MOST_METHODS = 400, 50, 12
# What may exceed a budget, and why.
EXCEPTIONS: dict[str, str] = {}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    has_docstring = isinstance(function.body[0], ast.Expr) and isinstance(function.body[0].value, ast.Constant)
    first = function.body[1 if has_docstring and len(function.body) > 1 else 0]
    return (function.end_lineno or 0) - first.lineno + 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_functions_and_classes_keep_their_budgets(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    name = path.relative_to(ROOT / "src" / "millstream").as_posix()
    over = [] if text.count("\n") <= MOST_LINES else [name]
    over += [f"{name}:{f.name}" for f in functions(tree) if body_lines(f) > MOST_BODY]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            methods = [f for f in node.body if isinstance(f, ast.FunctionDef) and not f.name.startswith("_")]
            public = [f for f in methods if not f.decorator_list]  # a property is a fact, not a thing to do
            over += [f"{name}:{node.name}"] if len(public) > MOST_METHODS else []
    assert [item for item in over if item not in EXCEPTIONS] == []
    assert ast.get_docstring(tree), f"{name} does not say what it holds"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_are_not_hidden_in_functions(path: Path) -> None:
    """Optional packages, the lazy package and the commands of the command line aside."""
    optional = {"pandas", "polars", "sklearn"}
    is_lazy = path.name == "__init__.py" or path.stem.endswith("_commands")
    if is_lazy and path.parent.name in ("cli", "millstream"):
        return
    for function in functions(ast.parse(path.read_text(encoding="utf-8"))):
        for node in ast.walk(function):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {node.module or ""} if isinstance(node, ast.ImportFrom) else {a.name for a in node.names}
                assert {name.split(".")[0] for name in names} <= optional, f"{path}:{node.lineno}"


def test_the_surface_is_pinned() -> None:
    assert sorted(millstream._HOMES) == millstream.__all__
    for name in millstream.__all__:
        assert getattr(millstream, name).__name__ == name


def loaded_by(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_help_does_not_wait_for_torch() -> None:
    loaded = loaded_by("import millstream, millstream.cli")
    assert not loaded & {"torch", "numpy", "pyarrow"}


def test_everything_public_loads_no_optional_package() -> None:
    code = "import millstream\nfor name in millstream.__all__: getattr(millstream, name)"
    # numba looks for scipy by itself, and does without it.
    assert not loaded_by(code) & {"pandas", "polars", "sklearn", "optuna", "pytest", "hypothesis"}
