"""What is done to the application between `sam build` and `sam deploy`."""

import subprocess
import sys
from pathlib import Path

import pytest

from gradshard.deployment import application_sources, lambda_layer_build, sam_command
from gradshard_core.errors import DeployError

UNCHECKED = 0b01
"""The flags of bytecode that is by its source's hash, which is not compared,
https://docs.python.org/3/reference/import.html#cached-bytecode-invalidation"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of a layer that was built, and this Python as the functions'."""
    folder = tmp_path / "tools"
    folder.mkdir()
    (folder / f"python{lambda_layer_build.RUNTIME}").symlink_to(sys.executable)
    monkeypatch.setattr(sam_command, "search_path", lambda: str(folder))
    file = tmp_path / application_sources.LAYER / "python" / "package" / "module.py"
    file.parent.mkdir(parents=True)
    file.write_text("VALUE = 1\n")
    return file


def test_a_layer_is_deployed_with_bytecode(module: Path, tmp_path: Path) -> None:
    lambda_layer_build.compile_layers(tmp_path)
    [bytecode] = module.parent.glob("__pycache__/*.pyc")
    assert int.from_bytes(bytecode.read_bytes()[4:8], "little") == UNCHECKED
    # It is what is run, whatever the times of files say.
    module.write_text("VALUE = 2\n")
    program = "import module; print(module.VALUE)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(module.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1\n"


def test_a_module_that_is_no_python_is_not_deployed(module: Path, tmp_path: Path) -> None:
    module.write_text("def\n")
    with pytest.raises(DeployError, match=r"GradshardLayer cannot be compiled: .*module\.py"):
        lambda_layer_build.compile_layers(tmp_path)
