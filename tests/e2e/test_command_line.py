"""The `gradshard` command as users type it."""

import json
import os
import re
import subprocess
import threading
import time
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gradshard.local_engine.lifecycle import Engine
from gradshard.local_engine.process_control import free_port
from tests import reference
from tests.e2e.command import gradshard

pytestmark = pytest.mark.e2e


def said(*arguments: object) -> str:
    """Run a command that must succeed and be silent about it but for its answer."""
    done = gradshard(*arguments)
    assert (done.returncode, without_host(done.stderr)) == (0, ""), done
    return done.stdout


def without_host(stderr: str) -> str:
    """Leave out the line that names the host of a ticket before the command contacts it."""
    return re.sub(r"\Awith a ticket of \S+\n", "", stderr)


def said_json(*arguments: object) -> Any:
    return json.loads(said(*arguments, "--json"))


@pytest.fixture(scope="module")
def updates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files as the safetensors library writes them."""
    folder = tmp_path_factory.mktemp("updates")
    rng = np.random.default_rng(3)
    files = {}
    for client in "ab":
        files[client] = folder / f"{client}.safetensors"
        tensors = {
            "fc.weight": reference.random_tensor(rng, "F32", (50, 40)),
            "fc.bias": reference.random_tensor(rng, "F16", (40,)),
            "bn.num_batches_tracked": reference.random_tensor(rng, "I64", ()),
        }
        # The number of samples in the file, or given on the command line.
        save_file(tensors, files[client], {"num_samples": "7"} if client == "b" else None)
    return files


def test_a_round_from_open_to_fetch(
    engine: Engine, updates: dict[str, Path], tmp_path: Path
) -> None:
    opening = ("open", "typed", "--client", "a", "--client", "b", "--min-clients", 2)
    assert "round typed is open for 2 clients" in said(*opening)
    opened = said_json(*opening)
    assert (opened["round"], opened["spec"]["clients"]) == ("typed", ["a", "b"])

    assert "as a" in said("submit", "typed", "a", updates["a"], "--samples", 5)
    awaiting = said_json("show", "typed")
    assert (awaiting["state"], awaiting["missing"]) == ("awaiting", ["b"])
    said("submit", "typed", "b", updates["b"])

    *_, completed, last_line = said("watch", "typed").splitlines()
    assert completed.startswith("completed: 2 of 2 updates in, 1 of 1 tasks done")
    assert last_line == "2 averaged, 0 rejected, 0 missing"

    shown = said("show", "typed", "--local", "--port", engine.port)
    assert all(word in shown for word in ("completed", "2 of 2", "contributor", "MB at most"))
    status = said_json("show", "typed")
    assert (status["state"], status["missing"], status["rejected"]) == ("completed", [], [])
    samples = [(c["client"], c["samples"]) for c in status["manifest"]["contributors"]]
    assert samples == [("a", 5), ("b", 7)]

    file = tmp_path / "average.safetensors"
    assert str(file) in said("fetch", "typed", "-o", file)
    assert said("fetch", "typed", "-o", file, "--quiet") == ""
    assert said_json("fetch", "typed", "-o", file)["nbytes"] == file.stat().st_size
    *_, last = map(json.loads, said("watch", "typed", "--json").splitlines())
    assert (last["state"], sorted(last["arrived"])) == ("completed", ["a", "b"])
    verbose = gradshard("show", "typed", "-v")
    assert verbose.returncode == 0
    assert all(line.startswith("gradshard: ") for line in verbose.stderr.splitlines())
    assert "GetObject: GET http" in verbose.stderr
    result = load_file(file)
    expected = reference.average([load_file(updates[client]) for client in "ab"], [5, 7])
    assert set(result) == set(expected)
    for name, tensor in expected.items():
        assert (result[name].dtype, result[name].shape) == (tensor.dtype, tensor.shape)
        assert result[name].tobytes() == tensor.tobytes(), name


def test_a_client_with_a_ticket_needs_no_credentials(
    engine: Engine, updates: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said("open", "ticketed", "--client", "a", "--client", "b", "--min-clients", 2)
    files = {client: tmp_path / f"{client}.ticket" for client in "ab"}
    for client, file in files.items():
        said("ticket", "ticketed", client, "-o", file, "--max-size", "1MB", "--expires", "10m")
        assert file.stat().st_mode & 0o777 == 0o600
    said("ticket", "ticketed", "a", "-o", tmp_path / "short", "--max-size", "9000B", "--expires", 1)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    by_a, by_b = (("--ticket", files[client]) for client in "ab")

    assert_one_line(gradshard("fetch", *by_a, "-o", tmp_path / "x"), "has not ended")
    assert "to round ticketed as a" in said("submit", *by_a, updates["a"], "--samples", 5)
    said("submit", *by_a, updates["a"], "--samples", 5)
    assert_one_line(gradshard("submit", *by_a, updates["b"]), "was used already")
    shown = said_json("show", *by_a)
    assert (shown["state"], shown["uploaded"] > 0, shown["reason"]) == ("open", True, None)
    time.sleep(1)  # the ticket's time; commands may be quicker
    expired = gradshard("submit", "--ticket", tmp_path / "short", updates["a"], "--samples", 5)
    assert_one_line(expired, "it expired at")

    said("submit", "ticketed", "b", updates["b"], *by_b)
    assert said("watch", *by_a) == "completed\n"
    assert "completed" in said("show", "ticketed", *by_b)
    file = tmp_path / "average.safetensors"
    assert str(file) in said("fetch", *by_b, "-o", file)
    expected = reference.average([load_file(updates[client]) for client in "ab"], [5, 7])
    for name, tensor in load_file(file).items():
        assert tensor.tobytes() == expected[name].tobytes(), name
    assert_one_line(gradshard("submit", *by_a, updates["b"]), "was used already")


def test_a_report_of_rounds_that_ended_and_one_that_goes_on(
    engine: Engine, updates: dict[str, Path], tmp_path: Path
) -> None:
    said("open", "reported", "--client", "a", "--client", "b", "--timeout", 600)
    for client in "ab":
        said("submit", "reported", client, updates[client], "--samples", 5)
    said("watch", "reported")
    said("open", "starved", "--clients", 1, "--timeout", 1)
    gradshard("watch", "starved")
    said("open", "going", "--clients", 1, "--timeout", 600)

    rounds = ("reported", "starved", "going")
    document = said_json("report", *rounds)
    told, starved, going = document["rounds"]
    assert [facts["state"] for facts in document["rounds"]] == ["completed", "failed", "awaiting"]
    assert "0 good updates" in starved["cause"]
    assert going["uploads"] == []
    [task] = told["tasks"]
    planned, started, ended, finished = (
        datetime.fromisoformat(moment)
        for moment in (
            told["planned_at"],
            task["started_at"],
            task["ended_at"],
            told["finished_at"],
        )
    )
    # The clocks are one machine's; starts are told to the millisecond.
    assert planned - timedelta(milliseconds=1) <= started < ended <= finished
    assert {upload["fate"] for upload in told["uploads"]} == {"counted"}
    assert all(entry["arrived_at"] for entry in told["contributors"])
    assert told["dollars"]["measured"]["total"] == pytest.approx(
        told["dollars"]["projected"]["total"], rel=0.5
    )

    file = tmp_path / "page.html"
    assert "page.html: 3 rounds, " in said("report", *rounds, "-o", file)
    written = file.read_text()
    assert all(f"<bdi>{name}</bdi>" in written for name in rounds)
    assert "0 good updates" in written
    assert_one_line(gradshard("report", "reported", "unheard"), "there is no round 'unheard'")


def test_a_failed_round_fails_its_watcher(engine: Engine) -> None:
    said("open", "watched", "--clients", 1, "--timeout", 1)
    done = gradshard("watch", "watched")
    assert_one_line(done, "round 'watched' failed: 0 good updates, but min_clients is 1", code=3)
    assert "0 good updates" in said("show", "watched")


def assert_one_line(done: subprocess.CompletedProcess[str], message: str, code: int = 1) -> None:
    # Errors of usage name the help.
    assert done.returncode == (2 if done.stderr.endswith("--help`.\n") else code), done
    [line] = without_host(done.stderr).splitlines()
    assert line.startswith("gradshard: ")
    assert message in line


def test_users_errors_are_one_line(
    engine: Engine, updates: dict[str, Path], tmp_path: Path
) -> None:
    said("open", "slips", "--client", "a", "--timeout", 600)
    missing, junk = tmp_path / "missing.safetensors", tmp_path / "junk.safetensors"
    junk.write_bytes(b"PK\x03\x04")
    a = updates["a"]
    for arguments, message in (
        (("submit", "slips", "a", missing, "--samples", 1), f"{missing}: No such file"),
        (("submit", "slips", "a", junk, "--samples", 1), f"{junk}: not a safetensors object"),
        (("submit", "slips", "a", a, "--samples", 0), "samples is 0, not from 1"),
        (("submit", "slips", "a", a), "num_samples is missing"),
        (("submit", "slips", "eve", a, "--samples", 1), "client 'eve' is not expected"),
        (("submit", "slips", "../a", a, "--samples", 1), "client id '../a' is not"),
        (("submit", "unheard", "a", a, "--samples", 1), "there is no round 'unheard'"),
        (("show", "unheard"), "there is no round 'unheard'"),
        (("watch", "unheard"), "there is no round 'unheard'"),
        (("fetch", "unheard", "-o", tmp_path / "x"), "there is no round 'unheard'"),
        (("fetch", "slips", "-o", tmp_path / "x"), "has not ended"),
        (("open", "slips", "--clients", 9), "with other options"),
        (("open", "more", "--clients", 100_001), "clients is 100001, not a whole number from 1 to"),
        (("open", "more", "--clients", 65, "--topology", "shards"), "add 65 updates of 65 clients"),
        (("open", "neither"), "Give the expected clients"),
        (("show", "slips", "--stack", "nowhere"), "there is no stack 'nowhere'"),
        (("show", "slips", "--local", "--port", free_port()), "no local engine is running"),
        (("sho", "slips"), "Did you mean `gradshard show`?"),
    ):
        assert_one_line(gradshard(*arguments), message)
    assert said_json("show", "slips")["arrived"] == []
    assert not (tmp_path / "x").exists()


def test_an_endpoint_that_does_not_answer(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    assert_one_line(gradshard("show", "typed"), "is the local engine running")


class Portal(BaseHTTPRequestHandler):
    """Answers everything with a page, as what stands between a network and its guests does."""

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html><p>Welcome<br></html>")


def test_an_endpoint_that_is_not_aws(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Portal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        asked = gradshard("show", "typed")
        server.shutdown()
    assert_one_line(asked, "the answer is not one of AWS's")


def test_no_credentials(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert_one_line(gradshard("show", "typed"), "no AWS credentials found")


def test_plan_sends_no_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    asked = ("plan", "--size", "512MB", "--clients", 20, "--shards", 4, "--memory", 512)
    plan = said_json(*asked)
    assert (plan["nbytes"], plan["choice"]["shards"], plan["choice"]["memory_mb"]) == (
        512_000_000,
        4,
        512,
    )
    dollars = plan["choice"]["dollars"]
    paper, ours = (
        ("lambda", "s3_aggregators", "s3_clients"),
        ("requests", "step_functions", "round"),
    )
    parts = (*paper, *ours, "events", "starts")
    assert dollars["total"] == pytest.approx(sum(dollars[part] for part in parts))
    assert "M=4" in said(*asked)
    # A plan for what is deployed has to ask.
    assert_one_line(gradshard(*asked, "--stack", "gradshard"), "is the local engine running")
