"""Passes of robust rules and private rounds beside the mean of the same updates."""

import json
from dataclasses import replace
from typing import Any, Final

from benchmarks import runs
from benchmarks.runs import FUNCTION
from benchmarks.servers import Server
from benchmarks.suite import Progress
from benchmarks.workload import RESNET_18, Case, Prepared, Workloads
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_json import parse_plan, plan_to_json
from gradshard_core.privacy.privacy_mechanism import PrivacyMechanism
from gradshard_core.robust.rules import parse_robust_rule

MEAN: Final = "mean"
CLIENTS: Final = (20, 64)

_PRIVATE: Final = PrivacyMechanism(clip=1.0, noise_multiplier=1.0, delta=1e-5)
PASSES: Final[dict[str, dict[str, Any]]] = {
    "measuring norms": {"robust": parse_robust_rule({"name": "norm_clip"}), "measures": True},
    "measuring pairs": {"robust": parse_robust_rule({"name": "krum", "f": 1}), "measures": True},
    "median": {"robust": parse_robust_rule({"name": "median"})},
    "private sum": {"dp": _PRIVATE, "measured": 0},
}
"""Each pass by the fields of the plan's computation that make it. Only time is compared here."""


def measure(server: Server, times: int, *, quick: bool, say: Progress) -> list[dict[str, Any]]:
    """Run each pass on the same updates, one after the other in each run."""
    return [_measure(server, clients, times, say) for clients in CLIENTS[: 1 if quick else None]]


def _measure(server: Server, clients: int, times: int, say: Progress) -> dict[str, Any]:
    say(f"rules, {clients} clients: making updates")
    mean = Workloads(server).prepare(Case(clients, RESNET_18, 1, whole=True))
    prepared = {MEAN: mean} | {
        name: _prepare(server, mean, name, changed) for name, changed in PASSES.items()
    }
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in prepared}
    for number in range(times):
        for name, case in prepared.items():
            say(f"rules, {clients} clients: run {number + 1} of {times}, {name}")
            measured[name].append(runs.run(FUNCTION, case, server))
    return {
        "case": mean.case.round_id,
        "client_gb": mean.client_bytes / 1e9,
        "rows": {
            name: {
                "cpu_to_mean": runs.summary(
                    [
                        run["cpu_seconds"] / plain["cpu_seconds"]
                        for run, plain in zip(found, measured[MEAN], strict=True)
                    ]
                ),
                **runs.summarise(found),
            }
            for name, found in measured.items()
        },
    }


def _prepare(server: Server, mean: Prepared, name: str, changed: dict[str, Any]) -> Prepared:
    """Put a plan on the server that differs from the mean's in its computation."""
    before = RoundKeys(mean.case.round_id)
    keys = RoundKeys(f"{before.round_id}-{name.replace(' ', '-')}")
    plan = parse_plan(json.loads(server.path(before.plan).read_text()))
    plan = replace(
        plan,
        round_id=keys.round_id,
        computation=replace(plan.computation, **changed),
        upload_id=server.create_upload(keys.result),
    )
    _put(server, keys.plan, plan_to_json(plan))
    if plan.computation.dp is not None:
        _put(server, keys.noise_key, {"key": bytes(32).hex()})
        _put(server, keys.decision(plan.attempt), _decision(plan))
    tasks = [
        {"round": keys.round_id, "attempt": plan.attempt, "task": task._asdict()}
        for task in plan.tasks(0)
    ]
    return replace(mean, job={**mean.job, "tasks": tasks}, expected={})


def _decision(plan: Plan) -> dict[str, Any]:
    """Return a decision by which every update is clipped."""
    entries = [{"client": c.client, "weight": 3e-4} for c in plan.contributors]
    return {"clients": entries, "weights": 3e-4 * len(entries)}


def _put(server: Server, key: str, value: Any) -> None:
    server.path(key).write_bytes(json.dumps(value).encode())
    server.publish(key)
