"""What the functions import is there on Lambda: in their layer, or in the runtime.

The local engine runs them in the environment of whoever develops, which has everything.
"""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LAYER = ROOT / "layers" / "gradshard"
FUNCTIONS = sorted([*ROOT.glob("functions/*"), *ROOT.glob("keeper/functions/*")])

installed = cache(packages_distributions)


def packages_for(function: Path) -> set[str]:
    """The packages in the layers of a function: the keeper's has one more layer."""
    layers = ["gradshard", "keeper"] if "keeper" in function.parts else ["gradshard"]
    texts = [(ROOT / "layers" / layer / "requirements.txt").read_text() for layer in layers]
    return set(re.findall(r"^([\w-]+)==", "".join(texts), re.MULTILINE))


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


@cache
def imports_of(file: Path) -> list[str]:
    """The modules that a file imports."""
    return list(imports(ast.parse(file.read_text())))


@cache
def reached(function: Path) -> set[str]:
    """Every module that a function imports, itself or through others of ours."""
    found: set[str] = set()
    files = [function / "app.py"]
    while files:
        for module in imports_of(files.pop()):
            parts = module.split(".")
            for name in {".".join(parts[: n + 1]) for n in range(len(parts))} - found:
                file = source(name)
                if file is not None or name == parts[0]:
                    found.add(name)
                if file is not None:
                    files.append(file)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda path: path.name)
def test_every_import_of_a_function_is_there_on_lambda(function: Path) -> None:
    modules = reached(function)
    of_trainings = function.name.endswith("_training") or function.name == "write_notices"
    folder = "trainings" if of_trainings else "rounds"
    if "keeper" in function.relative_to(ROOT).parts:
        folder = "mask_keeper"
        pytest.importorskip("pyhpke", reason="the packages of masked rounds are not installed")
    assert f"gradshard_core.{folder}.{function.name}" in modules
    distributions = installed()
    others = {name.partition(".")[0] for name in modules} - {
        "gradshard_core",
        *sys.stdlib_module_names,
    }
    packages = packages_for(function.relative_to(ROOT))
    missing = {
        name
        for name in others
        if not packages & {found.replace("_", "-") for found in distributions.get(name, [])}
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
