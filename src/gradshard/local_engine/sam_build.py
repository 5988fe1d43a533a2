"""The application as `sam` built it, kept in the user's cache for every local engine.

A build takes longer than all else that `gradshard local up` does, and depends on the application's
files and this machine's processor alone. So it is made once for them, whichever engine asks.
"""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gradshard.deployment import application_sources, lambda_layer_build
from gradshard.local_engine.running_engines import cache_folder

BuildCommand = Callable[[Path, list[str]], None]
"""Runs `sam build` in a folder with some arguments."""

_KEPT_BUILDS: Final = 4
_DEPLOYED: Final = "deployed.yaml"

_FILES: Final = "files.json"
"""The sizes of a build's files: it is as old as the sources, and some systems clean caches up."""


@dataclass(frozen=True)
class Build:
    """A build of the aggregator's or of the mask keeper's stack.

    Attributes
    ----------
    sources
        A copy of the application's files, with `samconfig.toml`.
    folder
        What `sam build` made of them: a folder for each function and layer, which
        `sam local invoke` reads, and a template that names them.
    """

    sources: Path
    folder: Path

    @property
    def template(self) -> Path:
        """The template that names the folders."""
        return self.folder / "template.yaml"

    @property
    def deployed_template(self) -> Path:
        """The template that names the layers' ZIP files, so that `sam deploy` makes none."""
        return self.folder / _DEPLOYED


def find_or_make_build(template: Path, build: BuildCommand) -> Build:
    """Return the build of a template, made with `sam` if there is none yet, or it has lost files.

    Parameters
    ----------
    template
        The template's path in the application's folder.
    build
        Runs `sam build`; called only if there is no whole build.

    Returns
    -------
    Build
        The build. It stays until builds of other sources were made or used after it.

    Raises
    ------
    EngineError
        `sam` failed.
    DeployError
        A layer cannot be compiled.
    """
    builds = cache_folder() / "builds"
    builds.mkdir(parents=True, exist_ok=True)
    builds.chmod(0o700)  # nobody else may add one: engines run what is in it
    key = f"{application_sources.fingerprint()} {platform.machine()} {template}"
    top = builds / hashlib.sha256(key.encode()).hexdigest()[:32]
    with _exclusive(builds):
        if not _is_whole(top):
            shutil.rmtree(top, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=builds, prefix="new-") as temporary:
                new = Path(temporary, "build")
                _make(_in_folder(new), template, build)
                (new / _FILES).write_text(json.dumps(_sizes(new)))
                new.rename(top)
        os.utime(top)
        _remove_old_builds(builds)
    return _in_folder(top)


def _is_whole(top: Path) -> bool:
    """Return whether a build has all the files with which it was made."""
    try:
        made: dict[str, int] = json.loads((top / _FILES).read_text())
    except (OSError, ValueError):
        return False
    # Functions may have added bytecode.
    return made.items() <= _sizes(top).items()


def _sizes(top: Path) -> dict[str, int]:
    """Return the size of each file in a folder, by its path there."""
    return {
        str(file.relative_to(top)): file.stat().st_size for file in top.rglob("*") if file.is_file()
    }


def _in_folder(top: Path) -> Build:
    return Build(top / "sources", top / "built")


def _make(new: Build, template: Path, build: BuildCommand) -> None:
    application_sources.copy_to(new.sources)
    source = new.sources / template
    arguments = ["--template-file", str(source), "--base-dir", str(source.parent)]
    build(new.sources, [*arguments, "--build-dir", str(new.folder)])
    lambda_layer_build.compile_layers(new.folder)
    text = new.template.read_text()
    for layer in new.folder.glob("*Layer"):
        _zip(layer)
        text = text.replace(f"ContentUri: {layer.name}\n", f"ContentUri: {layer.name}.zip\n")
    new.deployed_template.write_text(text)


def _zip(layer: Path) -> None:
    """Write a layer's ZIP file beside its folder."""
    # The engine unpacks it at once: more than the least compression would take time for nothing.
    with zipfile.ZipFile(
        layer.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED, compresslevel=1
    ) as archive:
        for file in sorted(layer.rglob("*")):
            archive.write(file, file.relative_to(layer))


@contextlib.contextmanager
def _exclusive(builds: Path) -> Iterator[None]:
    """Wait until no other process makes a build."""
    import fcntl  # which Windows has not, where this module is for clients

    with (builds / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_old_builds(builds: Path) -> None:
    """Remove all builds but those used last, and what a killed process left."""
    tops = sorted((top for top in builds.iterdir() if top.is_dir()), key=_used_at, reverse=True)
    left = [top for top in tops if top.name.startswith("new-")]
    finished = [top for top in tops if top not in left]
    for top in [*left, *finished[_KEPT_BUILDS:]]:
        shutil.rmtree(top, ignore_errors=True)


def _used_at(top: Path) -> float:
    return top.stat().st_mtime
