"""The local engine as its user has it: through no proxy, found by its port, deployed to again."""

import contextlib
import http.client
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import boto3
import numpy as np
import pytest
from botocore.config import Config
from safetensors.numpy import save_file

from gradshard import Federation
from gradshard.deployment.defaults import KEEPER_STACK
from gradshard.local_engine import application, lifecycle
from gradshard.local_engine.lifecycle import Engine
from gradshard_core.s3.sigv4 import sign

pytestmark = pytest.mark.e2e

COMMAND = Path(sys.executable).with_name("gradshard")
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith("AWS_") and not name.lower().endswith("_proxy")
}


def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command with no settings of AWS's, but for those given."""
    cache = {name: os.environ[name] for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME")}
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        env=CLEAN | cache | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def said(*arguments: object, **variables: str) -> str:
    done = run(*arguments, **variables)
    assert done.returncode == 0, done
    return done.stdout


def reset(engine: Engine) -> None:
    """Have an engine forget everything."""
    target, headers = sign(
        "POST",
        f"127.0.0.1:{engine.port}",
        "/_ministack/reset",
        {},
        {},
        b"",
        region=lifecycle.REGION,
        credentials=engine.credentials,
        now=datetime.now(UTC),
    )
    connection = http.client.HTTPConnection("127.0.0.1", engine.port)
    with contextlib.closing(connection):
        connection.request("POST", target, headers=headers)
        assert connection.getresponse().status == 200


@pytest.fixture
def proxy() -> Iterator[tuple[dict[str, str], list[bytes]]]:
    """The variables that name a proxy, and what it was sent."""
    heard: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))

    def listen() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                heard.append(connection.recv(2000))
                connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")

    thread = threading.Thread(target=listen)
    thread.start()
    url = f"http://127.0.0.1:{server.getsockname()[1]}"
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    yield {name: url for upper in names for name in (upper, upper.lower())}, heard
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


@pytest.fixture
def own_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share_builds: Callable[[Path], None]
) -> None:
    """Folders for engines of a test's own."""
    share_builds(tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def test_requests_to_the_engine_go_through_no_proxy(
    engine: Engine, proxy: tuple[dict[str, str], list[bytes]], tmp_path: Path
) -> None:
    variables, heard = proxy
    at = ("--local", "--port", engine.port)
    said("local", "up", "--port", engine.port, **variables)
    said("local", "status", "--port", engine.port, **variables)
    said("open", "direct", "--client", "a", "--client", "b", *at, **variables)
    for client in "ab":
        save_file({"w": np.ones(4, np.float32)}, tmp_path / client)
    said("submit", "direct", "a", tmp_path / "a", "--samples", 1, *at, **variables)
    ticket = tmp_path / "b.ticket"
    said("ticket", "direct", "b", "-o", ticket, "--max-size", "1MB", *at, **variables)
    said("submit", "--ticket", ticket, tmp_path / "b", "--samples", 1, **variables)
    assert "completed" in said("watch", "direct", *at, **variables)
    said("fetch", "direct", "-o", tmp_path / "average", *at, **variables)
    said("fetch", "--ticket", ticket, "-o", tmp_path / "again", **variables)
    # Nor where the environment leads to it, without NO_PROXY.
    environment = {k: v for k, v in engine.environment.items() if k.lower() != "no_proxy"}
    said("show", "direct", **environment, **variables)
    assert heard == []


def test_the_printed_commands_work(engine: Engine) -> None:
    up = said("local", "up", "--port", engine.port)
    options = re.search(r"use it with (--local --port \d+),", up)
    line = re.search(r'  (eval "\$\(gradshard local env --port \d+\)")\n', up)
    assert options, up
    assert line, up
    said("open", "as-said", "--client", "a", *options[1].split())
    path = {"PATH": f"{COMMAND.parent}:{CLEAN['PATH']}"}
    cache = {name: os.environ[name] for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME")}
    shell = subprocess.run(
        ["bash", "-c", f"{line[1]} && gradshard show as-said && env"],
        env=CLEAN | path | cache,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "awaiting" in shell.stdout
    for name, value in engine.environment.items():
        assert shlex.quote(f"{name}={value}").strip("'") in shell.stdout


def test_an_error_names_the_engine_that_runs(engine: Engine) -> None:
    other = run("show", "r", "--local", "--port", 4999)
    assert other.returncode == 1
    expected = f"one runs with --port {engine.port}"
    assert f"no local engine is running on port 4999: {expected}; or start" in other.stderr
    for command in ("down", "status"):
        assert f"port 4999 ({expected})" in run("local", command, "--port", 4999).stdout
    nowhere = engine.environment | {"AWS_ENDPOINT_URL": "http://127.0.0.1:4999"}
    assert "gradshard local status --port 4999" in run("show", "r", **nowhere).stderr


def test_binding_a_running_engine_to_another_address_is_an_error(engine: Engine) -> None:
    done = run("local", "up", "--port", engine.port, "--bind", "127.0.0.9")
    assert done.returncode == 1
    assert "runs already and does not listen on 127.0.0.9" in done.stderr


def test_the_aggregator_stays_when_it_knows_the_keeper_already(engine: Engine) -> None:
    bucket = application._bucket_of(engine, KEEPER_STACK)
    application._update(engine, KeeperBucket=bucket)


def test_the_help_warns_of_the_exposed_address(tmp_path: Path) -> None:
    help_ = " ".join(said("local", "up", "--help").split())
    assert "and has the key of the engine can run code on this machine as you" in help_


def test_an_unknown_key_is_answered_with_advice(engine: Engine) -> None:
    session = boto3.Session("test", "test")
    client = session.client("cloudformation", config=Config(proxies={}))
    with pytest.raises(client.exceptions.ClientError, match="gradshard local env"):
        client.describe_stacks()


def test_rounds_survive_down_up_and_a_kill(engine: Engine, own_folders: None) -> None:
    own = lifecycle.up(0)
    at = ("--local", "--port", own.port)

    def federation() -> Federation:
        return Federation(local=True, port=own.port)

    def kill(signal_to: Callable[[int, int], None]) -> None:
        pid = lifecycle.status(own.port).pid
        assert pid
        signal_to(pid, signal.SIGKILL)
        while lifecycle.status(own.port).running:
            time.sleep(0.05)

    submitted = np.arange(1_000_000, dtype="f4")
    try:
        first = federation().open_round("first", clients=["a"], timeout=600)
        first.submit("a", {"w": submitted}, samples=1)
        first.wait(240)
        said("open", "before", "--client", "a", *at)
        key = own.credentials
        kill(os.kill)  # the functions' processes stay
        assert "no local engine is running" in run("show", "before", *at).stderr
        # The application was in the memory of the engine, and is deployed again.
        said("local", "up", "--port", own.port)
        assert lifecycle.status(own.port).credentials != key
        assert np.array_equal(federation().round("first").fetch()["w"], submitted)

        round_ = federation().open_round("kept", clients=["a"], timeout=600)
        round_.submit("a", {"w": submitted}, samples=1)
        round_.wait(240)
        assert lifecycle.down(own.port)
        lifecycle.up(own.port)
        assert np.array_equal(federation().round("kept").fetch()["w"], submitted)
        assert "kept" in said("list", *at)
        # And rounds go on.
        following = federation().open_round("following", clients=["a"], timeout=600)
        following.submit("a", {"w": submitted}, samples=1)
        following.wait(240)

        kill(os.killpg)
        lifecycle.up(own.port)
        assert np.array_equal(federation().round("following").fetch()["w"], submitted)
    finally:
        lifecycle.down(own.port, delete=True)
    assert not own.kept.exists()


def test_an_ephemeral_engine_keeps_nothing_and_is_deployed_to_after_a_reset(
    engine: Engine, own_folders: None
) -> None:
    own = lifecycle.up(0, ephemeral=True, owner=os.getpid())
    at = ("--local", "--port", own.port)
    try:
        said("open", "gone", "--client", "a", *at)
        assert not own.kept.exists()
        reset(own)
        assert run("local", "status", "--port", own.port).returncode == 1
        lifecycle.up(own.port)
        said("open", "after-reset", "--client", "a", *at)
        lifecycle.up(own.port)
    finally:
        lifecycle.down(own.port)
    assert not own.folder.exists()
    lifecycle.down(own.port)
