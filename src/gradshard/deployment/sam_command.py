"""The `sam` command, and where it and Python are looked for."""

import os
import shutil
import sys
from pathlib import Path

from gradshard_core.errors import DeployError


def search_path() -> str:
    """Return where to look for `sam` and python3.13: beside this interpreter, then on the path."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def find_sam() -> str:
    """Return the path of the `sam` command.

    Raises
    ------
    DeployError
        `sam` is not installed.
    """
    sam = shutil.which("sam", path=search_path())
    if sam is None:
        raise DeployError(
            "`sam` is not installed: `pip install 'gradshard[deploy]'` or `pip install "
            "aws-sam-cli` installs it"
        )
    return sam
