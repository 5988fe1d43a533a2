"""What starts the local engine, where it cannot start or two start it at once."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gradshard.local_engine import lifecycle, process_control
from gradshard.utils.polling import poll
from gradshard_core.errors import EngineError

NOBODYS = "203.0.113.7"
"""An address of the block for documentation, which no machine has."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "gradshard"


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that something else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        yield port


def test_a_port_that_is_taken(taken: int) -> None:
    with pytest.raises(EngineError, match=rf"port {taken} .* choose another with --port"):
        lifecycle.up(taken)
    assert not lifecycle.status(taken).running


def test_an_address_that_is_not_this_machines() -> None:
    with pytest.raises(EngineError, match=rf"{NOBODYS} cannot .* choose another with --bind"):
        lifecycle.up(0, bind=NOBODYS)


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])  # noqa: S104
def test_every_address_at_once_is_not_meant(address: str) -> None:
    with pytest.raises(EngineError, match="every address of this machine: name the one"):
        lifecycle.up(0, bind=address)


def test_a_second_start_of_an_engine_waits_for_the_first() -> None:
    entered = threading.Event()

    def second() -> None:
        with lifecycle.exclusive(4571):
            entered.set()

    thread = threading.Thread(target=second)
    with lifecycle.exclusive(4571):
        thread.start()
        assert not entered.wait(0.3)
        with lifecycle.exclusive(4572):
            pass  # another engine's
    thread.join(10)
    assert entered.is_set()


def test_an_engine_of_another_port_that_got_a_dead_ones_id_is_not_taken_for_it(cache: Path) -> None:
    program = "import time; print(flush=True); time.sleep(60)"
    other = [sys.executable, "-c", program, "-m", "gradshard.local_engine.server"]
    other += ["--port", "4572", "--credentials", "c"]
    with subprocess.Popen(other, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the system knows its command from when it runs
        for port in (4571, 4572):
            folder = cache / f"engine-{port}"
            folder.mkdir(parents=True)
            (folder / "pid").write_text(str(process.pid))
        try:
            assert not lifecycle.status(4571).running
            assert lifecycle.status(4572).running
            assert not lifecycle.down(4571)
            assert process.poll() is None
        finally:
            process.kill()


def test_an_engine_that_cannot_be_remembered_is_stopped(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def spawn(*_: Any, **__: Any) -> int:
        # Where its id is to be written nothing can be, as on a full disk.
        [folder] = cache.glob("engine-*/")
        (folder / "pid").mkdir()
        started.append(subprocess.Popen(["sleep", "60"], start_new_session=True))
        return started[0].pid

    monkeypatch.setattr(lifecycle, "_check_machine", lambda: None)  # which starts processes too
    monkeypatch.setattr("os.posix_spawn", spawn)
    with pytest.raises(IsADirectoryError):
        lifecycle.up(0)
    assert not process_control.is_group_alive(started[0].pid)
    started[0].wait()


def test_an_engine_ends_with_its_owner_even_if_that_is_killed() -> None:
    program = """
import os, time
from gradshard.local_engine import lifecycle, process_control
engine = lifecycle.status(process_control.free_port())
lifecycle.start(engine, None, ephemeral=True, owner=os.getpid())
print(lifecycle.status(engine.port).pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as owner:
        assert owner.stdout
        pid = int(owner.stdout.readline())
        assert process_control.is_group_alive(pid)
        owner.kill()
    for _ in poll(30, pause=0.05):
        if not process_control.is_group_alive(pid):
            return
    os.killpg(pid, signal.SIGKILL)
    pytest.fail("the engine outlived its owner")
