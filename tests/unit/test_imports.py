"""Imports point one way: the order of modules in CONTRIBUTING.md is that of the code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import gradshard

PACKAGE = Path(gradshard.__file__).parent
ROOT = Path(__file__).parents[2]
SOURCES = {
    ".".join(("gradshard", *path.relative_to(PACKAGE).with_suffix("").parts)): path
    for path in PACKAGE.rglob("*.py")
    if path.relative_to(PACKAGE).parts[0] not in {"app", "__init__.py"}
}
AWS = {"boto3", "botocore", "http", "mypy_boto3_s3", "socket", "ssl", "urllib", "urllib3"}
"""By which AWS is spoken to."""


def lines() -> list[list[str]]:
    """Read the order, from the top: modules and packages of a line may import each other."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("imports point one way")[2]
    return [line.split() for line in text.split("```")[1].splitlines()[1:]]


LEVELS = {name: level for level, names in enumerate(lines()) for name in names}
S3 = LEVELS["store"]


def imported(path: Path) -> Iterator[str]:
    """Name what a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "imports are absolute"
            found = [f"{node.module}.{name.name}" for name in node.names]
            yield from found if node.module == "gradshard" else [node.module]


def part(module: str) -> str:
    """Return the module or package right below gradshard that a module is in."""
    return module.split(".")[1]


def test_every_module_has_its_place() -> None:
    assert {part(module) for module in SOURCES} == set(LEVELS)


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_a_module_imports_from_its_line_and_those_below(module: str) -> None:
    level = LEVELS[part(module)]
    for name in imported(SOURCES[module]):
        if name.startswith("gradshard."):
            assert LEVELS[part(name)] >= level, f"{module} imports {name}, which stands above it"
        elif level > S3:
            assert name.partition(".")[0] not in AWS, f"{module} imports {name}"


def test_functions_import_no_client() -> None:
    for path in (ROOT / "functions").rglob("*.py"):
        for name in imported(path):
            if name.startswith("gradshard."):
                assert LEVELS[part(name)] >= LEVELS["rounds"], f"{path} imports {name}"
