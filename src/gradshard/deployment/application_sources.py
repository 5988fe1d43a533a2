"""The application's sources, in a checkout or an installed package, and the tools to deploy them.

In a checkout they are the checkout's own. An installed package carries them in its folder `app`,
all but the code of the layer, which is the package `gradshard_core` beside it; they are put
together where `sam` is to build them.
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import gradshard_core
from gradshard_core.errors import DeployError

LAYER: Final = "GradshardLayer"
"""The layer's name in the templates, and of its folder in a build."""

KEEPER: Final = Path("keeper", "template.yaml")
"""The template of the mask keeper's stack; that of the aggregator is beside the folder."""

_PACKAGE: Final = Path(__file__).resolve().parents[1]
_CARRIED: Final = _PACKAGE / "app"
_CORE: Final = Path(gradshard_core.__file__).resolve().parent
_LAYER: Final = Path("layers", "gradshard")
_SOURCES: Final = (
    *("template.yaml", "samconfig.toml", "LICENSE", "README.md"),
    *("statemachine", "functions", "layers", "keeper"),
)


def checkout() -> Path | None:
    """Return the checkout that this package is imported from; None when it is installed."""
    root = _PACKAGE.parents[1]
    inside = root / _LAYER / _CORE.name == _CORE
    return root if inside and (root / "template.yaml").is_file() else None


def files() -> dict[Path, Path]:
    """Return every file of the application, by its path in the application's folder.

    Raises
    ------
    DeployError
        The package is neither in a checkout nor installed from a wheel.
    """
    root = checkout()
    if root is not None:
        return dict(_files_of(root, _SOURCES))
    if not (_CARRIED / "template.yaml").is_file():
        raise DeployError(
            f"there is no application beside the package in {_PACKAGE}: install gradshard from a "
            "wheel (`pip install .`), or use it in a checkout (`make setup`)"
        )
    found = dict(_files_of(_CARRIED, _SOURCES))
    found |= {_LAYER / _CORE.name / path: file for path, file in _files_of(_CORE, ["."])}
    return found


def _files_of(root: Path, names: Sequence[str]) -> Iterator[tuple[Path, Path]]:
    for name in names:
        top = root / name
        for path in [top] if top.is_file() else top.rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                yield path.relative_to(root), path


def fingerprint() -> str:
    """Return a digest of all files that are deployed."""
    digest = hashlib.sha256()
    for path, source in sorted(files().items()):
        digest.update(json.dumps([path.as_posix(), source.stat().st_size]).encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Yield a folder with the whole application, for `sam` to build.

    It is the checkout, or one put together from the installed package, which goes when it is left.
    """
    root = checkout()
    if root is not None:
        yield root
        return
    with tempfile.TemporaryDirectory(prefix="gradshard-") as temporary:
        copy_to(Path(temporary))
        yield Path(temporary)


def copy_to(folder: Path) -> None:
    """Copy the whole application to a folder, which is made."""
    for path, source in files().items():
        copy = folder / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
