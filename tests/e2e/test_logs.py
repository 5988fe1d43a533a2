"""What the deployed functions log: a round can be followed through all of them."""

import json
from collections.abc import Iterator
from typing import Any

import boto3
import numpy as np
import pytest

from gradshard import Federation
from tests.e2e.deployed import Deployed, until

pytestmark = pytest.mark.e2e

GROUPS = [
    f"/aws/lambda/gradshard-{name}"
    for name in (
        "open-round",
        "collect-update",
        "plan-round",
        "aggregate-shard",
        "finalize-round",
    )
]


def lines_of(round_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every line about a round, with its log group."""
    logs = boto3.client("logs")
    for group in GROUPS:
        for page in logs.get_paginator("filter_log_events").paginate(logGroupName=group):
            for event in page["events"]:
                for text in event["message"].splitlines():
                    if text.startswith("{") and (line := json.loads(text)).get("round") == round_id:
                        yield group, line


def test_a_round_is_followed_by_its_name(federation: Federation, deployed: Deployed) -> None:
    round_ = federation.open_round("logged", clients=["a", "b"], topology="lambda_fl", timeout=600)
    for client in "ab":
        round_.submit(client, {"w": np.ones(3, "f4")}, samples=1)
    manifest = round_.wait(120)

    expected = {(task["level"], task["task"]) for task in manifest["tasks"]}

    def collected(lines: list[tuple[str, dict[str, Any]]]) -> set[str]:
        return {line["contributor"] for group, line in lines if group.endswith("collect-update")}

    def done(lines: list[tuple[str, dict[str, Any]]]) -> set[tuple[int, int]]:
        tasks = [line["task"] for group, line in lines if group.endswith("aggregate-shard")]
        return {(task["level"], task["number"]) for task in tasks}

    def found() -> list[tuple[str, dict[str, Any]]] | None:
        # A function answers before its log group has its last line.
        lines = list(lines_of("logged"))
        every = {group for group, _ in lines} == set(GROUPS) and collected(lines) == {"a", "b"}
        return lines if every and done(lines) >= expected else None

    lines = until(found)
    assert {line["message"] for _, line in lines} == {"done"}
    assert {line["service"] for _, line in lines} == {"gradshard"}
    tasks = [line for group, line in lines if group.endswith("aggregate-shard")]
    assert done(lines) == expected
    assert sum(line["BytesRead"] for line in tasks) >= manifest["totals"]["bytes_read"]
    assert all(0 < line["MemoryUsed"] < 100 for _, line in lines)
