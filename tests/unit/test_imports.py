"""Imports point one way: the order of folders in CONTRIBUTING.md is that of the code."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import gradshard
import gradshard_core
from tests.unit.conftest import NEEDS_MASKING

PACKAGES = [Path(package.__file__ or "").parent for package in (gradshard, gradshard_core)]
ROOT = Path(__file__).parents[2]
SOURCES = {
    ".".join((package.name, *path.relative_to(package).with_suffix("").parts)): path
    for package in PACKAGES
    for path in package.rglob("*.py")
    if path.relative_to(package).parts[0] not in {"app", "__init__.py"}
}
AWS = {"boto3", "botocore", "http", "mypy_boto3_s3", "socket", "ssl", "urllib", "urllib3"}
"""Modules that speak to AWS."""

HELPERS = {"application"}
"""Folders of tests/unit that test something beside the package."""


def lines() -> list[list[str]]:
    """Read the order of folders from the top; a line may hold several."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("Imports point downwards only")[2]
    rows = text.split("```")[1].splitlines()[1:]
    return [row.partition("  ")[0].split() for row in rows]


LEVELS = {name: level for level, names in enumerate(lines()) for name in names}


@cache
def imported(path: Path) -> list[str]:
    """Name what a file imports, also inside functions."""
    return list(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "imports are absolute"
            found = [f"{node.module}.{name.name}" for name in node.names]
            yield from found if node.module in {"gradshard", "gradshard_core"} else [node.module]


def folder(module: str) -> str:
    """Return the folder, or top-level module, right below its package that a module is in."""
    return module.split(".")[1]


def test_every_folder_has_its_place() -> None:
    assert {folder(module) for module in SOURCES} == set(LEVELS)


def test_a_module_imports_from_its_own_folder_and_those_below() -> None:
    for module in sorted(SOURCES):
        level = LEVELS[folder(module)]
        for name in imported(SOURCES[module]):
            if name.startswith(("gradshard.", "gradshard_core.")):
                same = folder(name) == folder(module)
                assert same or LEVELS[folder(name)] > level, f"{module} imports {name}"
            elif level > LEVELS["s3"]:
                is_text = name == "urllib.parse"
                assert is_text or name.partition(".")[0] not in AWS, f"{module} imports {name}"


def test_the_client_library_imports_no_function() -> None:
    for module, path in SOURCES.items():
        if folder(module) in {"client", "torch", "flower"}:
            for name in imported(path):
                assert not name.startswith("gradshard_core.rounds"), f"{module} imports {name}"


def test_the_core_imports_nothing_of_the_clients() -> None:
    for module, path in SOURCES.items():
        if module.startswith("gradshard_core."):
            for name in imported(path):
                assert not name.startswith("gradshard."), f"{module} imports {name}"


def test_functions_import_no_client() -> None:
    for path in (ROOT / "functions").rglob("*.py"):
        for name in imported(path):
            assert not name.startswith("gradshard."), f"{path} imports {name}"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        (
            "gradshard_core.rounds.aggregate_shard",
            ["gradshard_core.planning.shard_count", "xml.etree.ElementTree"],
        ),
        (
            "gradshard_core.rounds.aggregate_shard",
            ["gradshard_core.costs.round_cost"],
        ),
        (
            "gradshard.updates.uploads",
            ["gradshard_core.costs.round_cost", "gradshard_core.planning.shard_count"],
        ),
    ],
)
def test_a_module_loads_no_module_that_it_does_not_need(module: str, unwanted: list[str]) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not set(unwanted) & set(loaded)


def test_folders_of_tests_are_those_of_the_package() -> None:
    for path in (ROOT / "tests" / "unit").iterdir():
        if path.is_dir() and path.name not in {"__pycache__", *HELPERS}:
            assert any((package / path.name).is_dir() for package in PACKAGES), path


def test_helpers_that_need_the_packages_of_masked_rounds_are_known() -> None:
    """`make test-client` does not have these packages, and leaves out tests with such a helper."""
    tests = ROOT / "tests"
    packages = re.compile(r"^from (cryptography|pyhpke)\b", re.MULTILINE)
    for path in [*tests.glob("*.py"), *(tests / "unit").glob("*.py")]:
        text = path.read_text()
        if packages.search(text) or NEEDS_MASKING.search(text):
            package = ".".join(path.parent.relative_to(ROOT).parts)
            imports = f"from {package}.{path.stem} import X", f"from {package} import {path.stem}"
            assert any(map(NEEDS_MASKING.search, imports)), path


def test_public_names_are_listed_before_they_are_loaded() -> None:
    """So a terminal completes them."""
    listed = "import gradshard; print(set(gradshard.__all__) - set(dir(gradshard)))"
    ran = subprocess.run([sys.executable, "-c", listed], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "set()"
    for name in gradshard.__all__:
        assert getattr(gradshard, name).__name__ == name
