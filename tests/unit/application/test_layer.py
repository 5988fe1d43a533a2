"""What the functions import is there on Lambda: in their layer, or in the runtime.

The local engine runs them in the environment of whoever develops, which has everything.
"""

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LAYER = ROOT / "layers" / "gradshard"
FUNCTIONS = sorted(path.parent.name for path in ROOT.glob("functions/*/app.py"))

IN_LAYER = set(re.findall(r"^([\w-]+)==", (LAYER / "requirements.txt").read_text(), re.MULTILINE))


def is_for_others(node: ast.AST) -> bool:
    """Whether it is for mypy, or for who asks the package itself for what it exports."""
    if isinstance(node, ast.FunctionDef):
        return node.name == "__getattr__"
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules that are imported, within functions too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module
            assert node.level == 0
            yield node.module
            # It may be modules that are imported from a package.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not is_for_others(node):
            yield from imports(node)


def source(module: str) -> Path | None:
    """The file of a module of ours."""
    path = LAYER.joinpath(*module.split("."))
    found = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
    return found[0] if found else None


def reached(function: str) -> set[str]:
    """Every module that a function imports, itself or through others of ours."""
    found: set[str] = set()
    files = [ROOT / "functions" / function / "app.py"]
    while files:
        for module in imports(ast.parse(files.pop().read_text())):
            parts = module.split(".")
            for name in {".".join(parts[: n + 1]) for n in range(len(parts))} - found:
                file = source(name)
                if file is not None or name == parts[0]:
                    found.add(name)
                if file is not None:
                    files.append(file)
    return found


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_import_of_a_function_is_there_on_lambda(function: str) -> None:
    modules = reached(function)
    of_trainings = function.endswith("_training") or function == "write_notices"
    folder = "trainings" if of_trainings else "rounds"
    assert f"gradshard_core.{folder}.{function}" in modules
    distributions = packages_distributions()
    others = {name.partition(".")[0] for name in modules} - {
        "gradshard_core",
        *sys.stdlib_module_names,
    }
    missing = {
        name
        for name in others
        if not IN_LAYER & {found.replace("_", "-") for found in distributions.get(name, [])}
    }
    assert missing == set()


def test_the_layer_holds_nothing_that_no_function_imports() -> None:
    package = LAYER / "gradshard_core"
    held = {
        ".".join(("gradshard_core", *path.relative_to(package).with_suffix("").parts))
        for path in package.rglob("*.py")
        if path.name != "__init__.py"
    }
    unused = held - set().union(*map(reached, FUNCTIONS))
    assert not unused, f"{unused} belongs to src/gradshard"
