"""The builds that the user's cache keeps, with a `sam build` that copies what it is given."""

import os
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradshard.deployment import application_sources
from gradshard.local_engine.sam_build import Build, find_or_make_build
from gradshard_core.errors import EngineError

TEMPLATE = Path("template.yaml")


class Sam:
    """Stands in for `sam build`, and counts."""

    def __init__(self) -> None:
        self.builds = 0

    def __call__(self, sources: Path, arguments: list[str]) -> None:
        self.builds += 1
        given = dict(zip(arguments[::2], arguments[1::2], strict=True))
        folder = Path(given["--build-dir"])
        module = folder / "GradshardLayer" / "python" / "module.py"
        module.parent.mkdir(parents=True)
        module.write_text("VALUE = 1\n")
        text = Path(given["--template-file"]).read_text()
        (folder / "template.yaml").write_text(f"{text}ContentUri: GradshardLayer\n")


class Files:
    """An application's files, which a test changes."""

    def __init__(self, top: Path) -> None:
        self._top = top

    def write(self, text: str) -> None:
        (self._top / "template.yaml").write_text(text)

    def __call__(self) -> dict[Path, Path]:
        return {TEMPLATE: self._top / "template.yaml"}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = Files(tmp_path)
    files.write("first: 1\n")
    monkeypatch.setattr(application_sources, "files", files)
    return files


@pytest.fixture
def builds(files: Files, tmp_path: Path) -> Path:
    return tmp_path / "cache" / "gradshard" / "builds"


def folders(builds: Path) -> Iterator[Path]:
    return (path for path in builds.iterdir() if path.is_dir())


def test_an_application_that_has_not_changed_is_built_once(files: Files) -> None:
    sam = Sam()
    first = find_or_make_build(TEMPLATE, sam)
    assert find_or_make_build(TEMPLATE, sam) == first
    assert sam.builds == 1
    files.write("second: 2\n")
    second = find_or_make_build(TEMPLATE, sam)
    assert (sam.builds, second.template.read_text()[:6]) == (2, "second")
    assert first.template.read_text().startswith("first")


def test_a_layer_is_compiled_and_deployed_from_its_archive(files: Files) -> None:
    build = find_or_make_build(TEMPLATE, Sam())
    assert build.template.read_text() == "first: 1\nContentUri: GradshardLayer\n"
    assert build.deployed_template.read_text() == "first: 1\nContentUri: GradshardLayer.zip\n"
    with zipfile.ZipFile(build.folder / "GradshardLayer.zip") as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        assert archive.read("python/module.py") == b"VALUE = 1\n"
    compiled = next(name for name in names if name.endswith(".pyc"))
    assert names == {"python/module.py", compiled}


@pytest.mark.parametrize("exists", [False, True])
def test_nobody_else_can_put_a_build_where_engines_look(
    files: Files, builds: Path, exists: bool
) -> None:
    before = os.umask(0)
    try:
        if exists:
            builds.mkdir(parents=True)
        find_or_make_build(TEMPLATE, Sam())
    finally:
        os.umask(before)
    assert builds.stat().st_mode & 0o777 == 0o700


def test_a_build_that_fails_leaves_nothing(files: Files, builds: Path) -> None:
    def fail(sources: Path, arguments: list[str]) -> None:
        Sam()(sources, arguments)
        raise EngineError("`sam build` failed")

    with pytest.raises(EngineError):
        find_or_make_build(TEMPLATE, fail)
    assert not list(folders(builds))
    sam = Sam()
    find_or_make_build(TEMPLATE, sam)
    assert sam.builds == 1


LOST = ["GradshardLayer/python/module.py", "GradshardLayer.zip", "template.yaml", "deployed.yaml"]


@pytest.mark.parametrize("is_cut", [False, True])
@pytest.mark.parametrize("name", [*LOST, "../sources/template.yaml", "../files.json"])
def test_a_build_that_has_lost_something_is_made_again(
    files: Files, builds: Path, name: str, *, is_cut: bool
) -> None:
    """As a program that removes old files from caches does, or a disk that was full."""
    sam = Sam()
    build = find_or_make_build(TEMPLATE, sam)
    lost = build.folder / name
    before = lost.read_bytes()
    if is_cut:
        os.truncate(lost, len(before) - 1)
    else:
        lost.unlink()
    assert find_or_make_build(TEMPLATE, sam) == build
    assert sam.builds == 2
    if lost.suffix == ".zip":  # which has the times of its members
        assert zipfile.ZipFile(lost).testzip() is None
    elif lost.name != "files.json":
        assert lost.read_bytes() == before
    assert find_or_make_build(TEMPLATE, sam) == build
    assert sam.builds == 2
    assert len(list(folders(builds))) == 1


def test_what_a_killed_process_left_is_removed(files: Files, builds: Path) -> None:
    (builds / "new-killed" / "build").mkdir(parents=True)
    build = find_or_make_build(TEMPLATE, Sam())
    assert list(folders(builds)) == [build.folder.parent]


def test_only_the_builds_used_last_are_kept(files: Files, builds: Path) -> None:
    sam = Sam()
    first = find_or_make_build(TEMPLATE, sam)
    for number in range(5):
        files.write(f"other: {number}\n")
        find_or_make_build(TEMPLATE, sam)
        files.write("first: 1\n")
        assert find_or_make_build(TEMPLATE, sam) == first
    assert sam.builds == 6
    assert len(list(folders(builds))) == 4


def test_processes_that_ask_at_once_share_one_build(files: Files) -> None:
    sam, made = Sam(), list[Build]()
    threads = [
        threading.Thread(target=lambda: made.append(find_or_make_build(TEMPLATE, sam)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(made) == 3
    assert sam.builds == len(set(made)) == 1
