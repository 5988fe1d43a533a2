"""Settings that commands store for their user: regions of stacks, and the guide's answers."""

import json
import os
import tempfile
from pathlib import Path
from typing import Final

from gradshard_core.errors import DeployError

_STACKS: Final = "stacks.json"
_ANSWERS: Final = "deploy.toml"
_KEEPER_ANSWERS: Final = "deploy-keeper.toml"


def folder() -> Path:
    """Return the user's folder for gradshard's settings, which may not exist yet."""
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "gradshard"


def answers(*, keeper: bool) -> Path:
    """Return the file that keeps what the guide of `gradshard deploy` was answered."""
    return folder() / (_KEEPER_ANSWERS if keeper else _ANSWERS)


def remember_region(stack: str, region: str) -> None:
    """Store the region to which a stack was deployed.

    Raises
    ------
    DeployError
        The stored file is not JSON, or cannot be replaced.
    """
    path = folder() / _STACKS
    stacks = _read(path) | {stack: {"region": region}}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=_STACKS, delete=False, encoding="utf-8"
        ) as file:
            json.dump(stacks, file, indent=2)
        Path(file.name).replace(path)
    except OSError as error:
        raise DeployError(f"{path} cannot be written: {error.strerror}") from None


def region_of(stack: str) -> str | None:
    """Return the region to which this user last deployed a stack, or None.

    Raises
    ------
    DeployError
        The stored file is not JSON.
    """
    region = _read(folder() / _STACKS).get(stack, {}).get("region")
    return region if isinstance(region, str) else None


def _read(path: Path) -> dict[str, dict[str, object]]:
    try:
        stacks = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError:
        stacks = None
    if not isinstance(stacks, dict) or not all(isinstance(s, dict) for s in stacks.values()):
        raise DeployError(f"{path} does not say which stack is in which region: remove it")
    return stacks
