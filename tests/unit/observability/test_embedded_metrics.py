"""What handlers log and measure: every line one JSON object in ASCII, the same keys everywhere."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gradshard_core.limits import aws_limits
from gradshard_core.observability import embedded_metrics
from gradshard_core.planning.plan_parts import Task
from tests.notifications import uploaded

FUNCTIONS = Path(__file__).parents[3] / "functions"
NAMES = sorted(folder.name for folder in FUNCTIONS.iterdir())

HOSTILE = "\x1b[2J\r\n{}\u202e\u2066\x7f\x9b31mé"
"""What clears a terminal, forges a line, and turns the reading direction."""

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_REGION": "us-east-1",
    "GRADSHARD_BUCKET": "bucket",
    "GRADSHARD_BUCKET_HOST": "bucket.s3.us-east-1.amazonaws.com",
    "GRADSHARD_URL_SUFFIX": "amazonaws.com",
    "GRADSHARD_AGGREGATOR_MEMORY": "128",
    "GRADSHARD_ARCHITECTURE": "arm64",
    "GRADSHARD_MAP_CONCURRENCY": "0",
    "GRADSHARD_STACK": "stack",
}


class Context:
    function_name = "the-function"
    function_version = "1"
    # The most there is: what is measured is the process of the tests, all that ran before them too.
    memory_limit_in_mb = aws_limits.MAX_MEMORY_MB
    invoked_function_arn = "arn:aws:lambda:us-east-1:000000000000:function:the-function"
    aws_request_id = "the-request"

    def get_remaining_time_in_millis(self) -> int:
        return 30_000


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> "Said":
    return Said(monkeypatch, capsys)


class Said:
    """A handler whose work is replaced by an outcome, and what it printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self.text = ""

    def by(self, name: str, event: dict[str, Any], outcome: Any) -> list[dict[str, Any]]:
        """Invoke; return the lines, each parsed."""
        spec = importlib.util.spec_from_file_location(f"{name}_app", FUNCTIONS / name / "app.py")
        assert spec is not None
        assert spec.loader is not None
        app = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(app)

        def work(*_: object, **__: object) -> Any:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        for worker in (name, "deadline_passed"):
            if hasattr(app, worker):
                self._monkeypatch.setattr(app, worker, work)
        with contextlib.suppress(ValueError):
            app.handler(event, Context())
        self.text = self._capsys.readouterr().out
        return [json.loads(line) for line in self.text.splitlines()]


REPORT = {
    "level": 1,
    "task": 3,
    "seconds": 1.5,
    "bytes_read": 100,
    "bytes_written": 50,
    "retries": 2,
    "rejected": [],
}
REJECTED = [{"client": "a", "reason": "NaN", "etag": ""}]
EVENTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "open_round": ({"round": "r1", "spec": {}, "started": "", "token": ""}, {"status": "opened"}),
    "collect_update": (uploaded("rounds/r1/updates/a.safetensors"), {"status": "accepted"}),
    "plan_round": (
        {"round": "r1", "entered_at": "", "reason": "", "attempt": 1},
        {"status": "planned"},
    ),
    "aggregate_shard": ({"round": "r1", "attempt": 1}, REPORT),
    "finalize_round": ({"round": "r1"}, {"status": "completed"}),
    "abort_round": ({"round": "r1", "error": "E", "cause": "c"}, {"status": "failed"}),
    "start_training": ({"training": "t1", "spec": {}, "started": ""}, {"run": 1}),
    "advance_training": ({"training": "t1", "run": 1, "step": 2}, {"status": "ended"}),
    "pause_training": (
        {"training": "t1", "run": 1, "error": "E", "cause": "c"},
        {"status": "paused"},
    ),
    "write_notices": (uploaded("trainings/t1/renewals/a.renewal"), {"written": 1}),
}


def event_of(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    event, outcome = EVENTS[name]
    if name == "aggregate_shard":
        fields = dict.fromkeys(Task._fields, 0) | {"level": 1, "number": 3}
        event = event | {"task": fields}
    return event, outcome


def metrics_of(lines: list[dict[str, Any]]) -> dict[str, tuple[float, str]]:
    """Read values and units as CloudWatch does."""
    found = {}
    for line in lines:
        for directive in line.get("_aws", {}).get("CloudWatchMetrics", []):
            assert directive["Namespace"] == "gradshard"
            assert directive["Dimensions"] == [["service"]]
            assert line["service"] == "stack"
            for metric in directive["Metrics"]:
                value = line[metric["Name"]]
                [value] = value if isinstance(value, list) else [value]
                found[metric["Name"]] = (value, metric["Unit"])
    return found


def line_of(lines: list[dict[str, Any]], message: str) -> dict[str, Any]:
    [line] = [line for line in lines if line.get("message") == message]
    return line


@pytest.mark.parametrize("name", NAMES)
def test_every_function_says_which_round_and_how_it_ended(said: Said, name: str) -> None:
    event, outcome = event_of(name)
    lines = said.by(name, event, outcome)
    line = line_of(lines, "done")
    assert (line["level"], line["service"]) == ("INFO", "stack")
    assert line.get("round") == "r1" or line["training"] == "t1"
    assert (line["function_name"], line["function_request_id"]) == ("the-function", "the-request")
    assert line["outcome"] == outcome
    measured = metrics_of(lines)
    assert {measured[limit][1] for limit in ("MemoryUsed", "TimeUsed")} == {"Percent"}
    assert 0 < measured["MemoryUsed"][0] < 100
    assert 0 <= measured["TimeUsed"][0] < 10


@pytest.mark.parametrize("name", NAMES)
def test_every_function_says_which_round_and_why_it_failed(said: Said, name: str) -> None:
    event, _ = event_of(name)
    lines = said.by(name, event, ValueError(f"tensor {HOSTILE}"))
    line = line_of(lines, "failed")
    assert line["level"] == "ERROR"
    assert line.get("round") == "r1" or line["training"] == "t1"
    assert (line["error"], line["cause"]) == ("ValueError", f"tensor {HOSTILE}")
    assert set(metrics_of(lines)) == {"MemoryUsed", "TimeUsed"}


def test_a_task_is_named_by_level_and_number(said: Said) -> None:
    event, outcome = event_of("aggregate_shard")
    line = line_of(said.by("aggregate_shard", event, outcome), "done")
    assert (line["task"], line["attempt"]) == ({"level": 1, "number": 3}, 1)


def test_an_update_is_named_by_its_contributor(said: Said) -> None:
    line = line_of(said.by("collect_update", *EVENTS["collect_update"]), "done")
    assert line["contributor"] == "a"


def test_keys_of_one_invocation_are_not_those_of_the_next(said: Said) -> None:
    said.by("collect_update", *EVENTS["collect_update"])
    line = line_of(said.by("collect_update", uploaded("else"), {"status": "ignored"}), "done")
    assert "round" not in line
    assert line["key"] == "else"


MEASURED: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, tuple[float, str]]]] = [
    ("collect_update", {}, {"status": "accepted"}, {"UpdatesAccepted": (1, "Count")}),
    (
        "collect_update",
        {},
        {"status": "accepted", "codec": "int8"},
        {"UpdatesAccepted": (1, "Count"), "UpdatesCompressed": (1, "Count")},
    ),
    ("collect_update", {}, {"status": "rejected", "reason": ""}, {"UpdatesRejected": (1, "Count")}),
    ("collect_update", {}, {"status": "ignored", "late": True}, {"UpdatesLate": (1, "Count")}),
    ("collect_update", {}, {"status": "ignored"}, {"UpdatesIgnored": (1, "Count")}),
    ("collect_update", {"round": "r1", "deadline": True}, {"resumed": True}, {}),
    (
        "aggregate_shard",
        {},
        REPORT,
        {
            "Tasks": (1, "Count"),
            "TaskSeconds": (1.5, "Seconds"),
            "BytesRead": (100, "Bytes"),
            "BytesWritten": (50, "Bytes"),
            "Retries": (2, "Count"),
        },
    ),
    ("aggregate_shard", {}, {"task": 3, "superseded_by": 2}, {}),
    ("finalize_round", {}, {"status": "completed"}, {"RoundsCompleted": (1, "Count")}),
    ("finalize_round", {}, {"status": "awaiting"}, {}),
    (
        "finalize_round",
        {},
        {"status": "replan", "rejected": REJECTED},
        {"Replans": (1, "Count"), "UpdatesRejected": (1, "Count")},
    ),
    ("abort_round", {}, {"status": "failed"}, {"RoundsFailed": (1, "Count")}),
    ("abort_round", {}, {"status": "completed"}, {}),
    ("start_training", {}, {"run": 1}, {}),
    ("advance_training", {}, {"status": "ended"}, {"TrainingsEnded": (1, "Count")}),
    ("advance_training", {}, {"status": "paused"}, {"TrainingsPaused": (1, "Count")}),
    ("advance_training", {}, {"status": "round"}, {}),
    ("pause_training", {}, {"status": "paused"}, {"TrainingsPaused": (1, "Count")}),
    ("pause_training", {}, {"status": "ended"}, {}),
    # The machine's own call follows, and is the one that counts.
    ("abort_round", {"task": {"level": 0, "number": 1}}, {"status": "failed"}, {}),
]


@pytest.mark.parametrize(("name", "more", "outcome", "expected"), MEASURED)
def test_metrics_of_an_outcome(
    said: Said,
    name: str,
    more: dict[str, Any],
    outcome: dict[str, Any],
    expected: dict[str, tuple[float, str]],
) -> None:
    event = more if "deadline" in more else event_of(name)[0] | more
    measured = metrics_of(said.by(name, event, outcome))
    aws_limits = {"MemoryUsed", "TimeUsed"}
    assert {key: value for key, value in measured.items() if key not in aws_limits} == expected


def test_every_metric_is_measured_somewhere() -> None:
    measured = {metric for *_, expected in MEASURED for metric in expected}
    assert measured | {"MemoryUsed", "TimeUsed"} == set(embedded_metrics.UNITS)


def test_a_client_rejected_while_it_was_read_has_a_line_of_its_own(said: Said) -> None:
    outcome = {"status": "replan", "rejected": REJECTED}
    lines = said.by("finalize_round", {"round": "r1"}, outcome)
    line = line_of(lines, "rejected")
    assert (line["round"], line["contributor"], line["reason"]) == ("r1", "a", "NaN")
    assert line_of(lines, "done")["outcome"] == {"status": "replan", "rejected": 1}


@pytest.mark.parametrize(
    ("name", "event", "outcome"),
    [
        (
            "collect_update",
            uploaded(f"rounds/r1/updates/{HOSTILE}.safetensors"),
            {"status": "ignored", "reason": HOSTILE},
        ),
        ("collect_update", uploaded(HOSTILE), {"status": "ignored", "reason": HOSTILE}),
        (
            "finalize_round",
            {"round": "r1"},
            {"status": "replan", "rejected": [{"client": HOSTILE, "reason": HOSTILE}]},
        ),
        ("aggregate_shard", {}, REPORT | {"rejected": [{"client": HOSTILE, "reason": HOSTILE}]}),
        ("abort_round", {"round": "r1"}, {"status": "failed", "cause": HOSTILE}),
        ("plan_round", {"round": "r1"}, ValueError(HOSTILE)),
        ("aggregate_shard", {}, ValueError(HOSTILE)),
    ],
)
def test_text_of_clients_moves_no_cursor_and_forges_no_line(
    said: Said, name: str, event: dict[str, Any], outcome: Any
) -> None:
    given = event_of(name)[0] | event
    lines = said.by(name, given, outcome)
    assert any(HOSTILE in text for line in lines for text in texts_of(line))
    assert all(" " <= character <= "~" for character in said.text if character != "\n")


def texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from texts_of(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from texts_of(entry)


def test_log_lines_stay_short_for_any_text_of_clients(said: Said) -> None:
    rejected = [{"client": f"c{i}", "reason": "x" * 100_000} for i in range(64)]
    said.by("aggregate_shard", event_of("aggregate_shard")[0], REPORT | {"rejected": rejected})
    assert len(said.text) < 64 * 1024


LOADED = """
import os, runpy, sys
own = {*sys.modules}  # what this machine loads into every interpreter (a sitecustomize)
import numpy  # once, for all that follow
for path in sys.argv[1:]:
    if not os.fork():
        runpy.run_path(path)
        print(*({*sys.modules} - own), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, path
"""


@pytest.fixture(scope="module")
def loaded() -> dict[str, list[str]]:
    """Return the modules that each function loads, in a process of its own."""
    paths = [FUNCTIONS / name / "app.py" for name in NAMES]
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *paths],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(NAMES, map(str.split, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_function_loads_nothing_but_the_package_and_numpy(
    loaded: dict[str, list[str]], name: str
) -> None:
    found = {module.partition(".")[0] for module in loaded[name]}
    foreign = {module for module in found - sys.stdlib_module_names if not module.startswith("_")}
    assert foreign == {"gradshard_core", "numpy"}
