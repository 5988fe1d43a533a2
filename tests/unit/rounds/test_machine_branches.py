"""How finalize_round ends the machine's state: a success, or an error that is caught."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradshard_core.rounds import aws_json, aws_requests
from gradshard_core.rounds.finalize_round import BRANCHES
from tests.unit.in_memory import load
from tests.unit.model_rounds import MemoryFederation
from tests.unit.observability.test_embedded_metrics import ENVIRONMENT

ROOT = Path(__file__).parents[3]
STATES = json.loads((ROOT / "statemachine" / "round.asl.json").read_text())["States"]
REPLAN = {"status": "replan", "reason": "replan", "attempt": 3}


@pytest.mark.parametrize(
    ("outcome", "operation", "error", "told"),
    [
        ({"status": "completed"}, "SendTaskSuccess", None, {"status": "completed"}),
        ({"status": "awaiting"}, "SendTaskFailure", "Awaiting", {"status": "awaiting"}),
        ({"status": "next_level"}, "SendTaskFailure", "NextLevel", {"status": "next_level"}),
        (REPLAN | {"rejected": []}, "SendTaskFailure", "Replan", REPLAN | {"rejected": 0}),
        (
            REPLAN | {"rejected": [{"client": "c" * 64, "reason": "NaN"}] * 4096},
            "SendTaskFailure",
            "Replan",
            REPLAN | {"rejected": 4096},
        ),
    ],
)
def test_the_function_sends_its_token_back(
    monkeypatch: pytest.MonkeyPatch,
    outcome: dict[str, Any],
    operation: str,
    error: str | None,
    told: dict[str, Any],
) -> None:
    for variable, value in ENVIRONMENT.items():
        monkeypatch.setenv(variable, value)
    sent: list[tuple[str, Mapping[str, Any]]] = []
    monkeypatch.setattr(aws_json, "call", lambda _, name, body, **__: sent.append((name, body)))
    handler = vars(load("finalize_round"))["handler"]
    module = handler.__wrapped__.__globals__
    monkeypatch.setitem(module, "finalize_round", lambda *_: dict(outcome))
    monkeypatch.setattr(module["embedded_metrics"], "rejected", lambda *_: None)

    handler.__wrapped__({"round": "r"}, None)
    assert sent == []
    handler.__wrapped__({"round": "r", "token": "t"}, None)
    [(name, body)] = sent
    assert (name, body["taskToken"], body.get("error")) == (operation, "t", error)
    assert json.loads(body["cause" if error else "output"]) == told


def test_a_round_completes_though_its_deadline_cannot_be_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    federation, published = MemoryFederation(monkeypatch), []

    def reject(_round_id: str) -> None:
        raise aws_json.RejectedError("AccessDeniedException", "DeleteSchedule: no permission")

    monkeypatch.setattr(aws_requests, "cancel_deadline", reject)
    monkeypatch.setattr(aws_requests, "publish", lambda name, _: published.append(name))
    federation.model.put({"w": np.zeros(3, "f4")})
    federation.go([{"w": np.ones(3, "f4")}], [1], server_optimizer="fedavg")
    assert published == ["RoundCompleted"]


def test_the_machine_goes_on_by_the_errors_that_the_function_sends() -> None:
    finalizing = STATES["FinalizeRound"]
    caught = {rule["ErrorEquals"][0]: rule["Next"] for rule in finalizing["Catch"][: len(BRANCHES)]}
    assert caught == {
        "NextLevel": "AggregateLevel",
        "Replan": "PlanAgain",
        "Awaiting": "OpenRound",
    }
    assert set(caught) == set(BRANCHES.values())
    assert finalizing["Retry"][0]["ErrorEquals"] == list(caught)
    assert finalizing["Retry"][0]["MaxAttempts"] == 0
    # The cause of the error has all that PlanRound takes of its input.
    taken = [path for path in STATES["PlanRound"]["Parameters"]["Payload"].values() if "$." in path]
    assert {path for path in taken if not path.startswith("$$")} == {"$.reason", "$.attempt"}
    assert {"reason", "attempt"} <= set(REPLAN)


def test_the_machine_waits_longer_than_the_function_may_run() -> None:
    template = (ROOT / "template.yaml").read_text()
    function = template.partition("\n  FinalizeRoundFunction:")[2]
    timeout = int(function.partition("Timeout: ")[2].split()[0])
    assert STATES["FinalizeRound"]["TimeoutSeconds"] > timeout == 900
