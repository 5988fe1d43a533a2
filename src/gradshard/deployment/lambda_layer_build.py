"""The build of the functions' layers, with the Python that functions run under."""

import shutil
import subprocess
from pathlib import Path
from typing import Final

from gradshard.deployment.sam_command import search_path
from gradshard_core.errors import DeployError

RUNTIME: Final = "3.13"
"""The Python that the functions run under, and with which `sam` builds their layer."""


def check_builder() -> None:
    """Check that there is the Python with which `sam build` fetches the layer's packages.

    Raises
    ------
    DeployError
        Python is missing, or has no pip.
    """
    name = f"python{RUNTIME}"
    python = shutil.which(name, path=search_path())
    if python is None:
        raise DeployError(
            f"{name} is not on the path, and `sam` builds the functions' layer with it: install "
            "it (python.org, pyenv, uv, or your system)"
        )
    asked = subprocess.run(  # noqa: S603 - an interpreter found by its name, our own arguments
        [python, "-m", "pip", "--version"], capture_output=True, check=False
    )
    if asked.returncode != 0:
        raise DeployError(
            f"{python} cannot run pip, with which `sam` builds the functions' layer: "
            f"`{python} -m ensurepip` installs it"
        )


def compile_layers(build: Path) -> None:
    """Compile the layers that `sam build` made in a folder.

    Lambda cannot write beside a layer's modules, and `sam` leaves bytecode out: every cold start
    would compile the package and numpy anew, which takes longer than all the rest of it. The
    bytecode is not compared with the sources' times (``unchecked-hash``), which change on the way.

    Raises
    ------
    DeployError
        A module cannot be compiled.
    """
    python = shutil.which(f"python{RUNTIME}", path=search_path()) or f"python{RUNTIME}"
    mode = ["--invalidation-mode", "unchecked-hash"]
    for layer in sorted(build.glob("*Layer")):
        done = subprocess.run(  # noqa: S603 - an interpreter found by its name, our own arguments
            [python, "-m", "compileall", "-q", *mode, str(layer / "python")],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise DeployError(f"{layer} cannot be compiled: {done.stdout.strip()[-500:]}")
