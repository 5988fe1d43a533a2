"""Alarms and dashboard, held against what functions emit in whole rounds and what AWS documents.

A metric that nobody emits would leave an alarm silent for ever. What is emitted is read as
CloudWatch reads it, from the lines that the deployed handlers write, and alarms are evaluated in
its way: https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/alarm-evaluation.html.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest

from gradshard.client.model import Model
from gradshard.client.training import Training
from gradshard_core.observability import embedded_metrics
from tests import compressed, reference
from tests.compressed import random_units
from tests.notifications import uploaded
from tests.unit.application.test_template import ALARMS, RESOURCES, STACK, of_type, shown
from tests.unit.fakes import MemoryStack
from tests.unit.in_memory import OPENED, Machine
from tests.unit.observability.test_embedded_metrics import ENVIRONMENT, Context

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

AWS_METRICS = {
    # https://docs.aws.amazon.com/step-functions/latest/dg/procedure-cw-metrics.html
    "AWS/States": {"ExecutionsStarted", "ExecutionsFailed", "ExecutionsAborted"},
    # https://docs.aws.amazon.com/lambda/latest/dg/monitoring-metrics-types.html
    "AWS/Lambda": {"Errors", "Throttles", "ConcurrentExecutions"},
    # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-available-cloudwatch-metrics.html
    "AWS/SQS": {"ApproximateNumberOfMessagesVisible"},
    # https://docs.aws.amazon.com/scheduler/latest/UserGuide/monitoring-cloudwatch.html
    "AWS/Scheduler": {"InvocationDroppedCount"},
}
"""What AWS documents, of which this is what the template refers to."""

NAMED = {
    # The dimension, the type of resource it names, and how a template says that: a state machine's
    # Ref is its ARN, a queue's its URL.
    "AWS/States": ("StateMachineArn", "AWS::StepFunctions::StateMachine", "${%s}"),
    "AWS/Lambda": ("FunctionName", "AWS::Lambda::Function", "${%s}"),
    "AWS/SQS": ("QueueName", "AWS::SQS::Queue", "${%s.QueueName}"),
    "AWS/Scheduler": ("ScheduleGroup", "AWS::Scheduler::ScheduleGroup", "${%s}"),
}

SECONDS_BETWEEN = 3600
"""From a good round to a bad one."""


class Metric(NamedTuple):
    namespace: str
    name: str
    dimension: str
    value: str


class Point(NamedTuple):
    metric: Metric
    seconds: float
    value: float


def points(text: str, seconds: float) -> Iterator[Point]:
    """Read lines in the embedded metric format, all of them of one moment."""
    for line in text.splitlines():
        record = json.loads(line) if line.startswith("{") else {}
        for directive in record.get("_aws", {}).get("CloudWatchMetrics", []):
            [[dimension]] = directive["Dimensions"]
            for metric in directive["Metrics"]:
                found = record[metric["Name"]]
                for value in found if isinstance(found, list) else [found]:
                    name = Metric(
                        directive["Namespace"], metric["Name"], dimension, record[dimension]
                    )
                    yield Point(name, seconds, value)


# ------------------------------------------------------------------------------ what is emitted


def good_round(machine: Machine) -> None:
    """Two clients, one of which mends what was rejected."""
    compressed_round(machine)
    machine.begin("good")
    machine.open(clients=["a", "b"])
    machine.store.put_bytes(machine.keys.update("b"), b"junk")
    machine.collect("b", "junk")
    for client in "ab":
        machine.collect(client, machine.submit(client, {"w": np.ones(3, "f4")}))
    assert machine.turn(OPENED) == {"status": "completed"}
    machine.collect("b", machine.submit("b", {"w": np.zeros(3, "f4")}))
    machine.step("collect_update", **uploaded("rounds/elsewhere/updates/a.safetensors"))
    training(machine)


def compressed_round(machine: Machine) -> None:
    """One client, which compresses its update."""
    machine.begin("compressed")
    machine.open(clients=["a"], codecs=["int8"])
    tensor = np.ones(32, "f4")
    units = random_units(np.random.default_rng(0), "int8", 1)
    key = machine.keys.update("a")
    body = compressed.write("int8", {"w": tensor}, {"w": units}, {"num_samples": "1"})
    machine.store.put_bytes(key, body)
    machine.collect("a", machine.store.etags[key].strip('"'))
    assert machine.turn(OPENED) == {"status": "completed"}


def training(machine: Machine) -> None:
    """One that has ended, and one that pauses."""
    Model(MemoryStack(machine.store)).put({"w": np.ones(3, "f4")})
    spec = {"rounds": 1, "clients": ["a"], "round": {"server_optimizer": "fedavg"}}
    times = {"started": "2026-01-01T00:00:00+00:00"}
    for name in ("ends", "pauses"):
        going = machine.step("start_training", training=name, spec=spec, **times)
        assert machine.step("advance_training", **going)["status"] == "round"
        if name == "ends":
            Training(MemoryStack(machine.store), name).stop("enough")
            cause = {"error": "E", "cause": "by hand"}
            machine.step("abort_round", round="ends-00001", task={"level": 0, "number": 0}, **cause)
            ended = machine.step("advance_training", **going | {"step": 1})
            assert ended["status"] == "ended"
        else:
            machine.step("pause_training", training=name, run=1, error="E", cause="c")


def bad_round(machine: Machine) -> None:
    """NaN leaves too few; and every function comes near its limits."""
    machine.open(clients=["a", "b"], min_clients=2)
    machine.submit("a", {"w": np.full(3, np.nan, "f4")})
    machine.submit("b", {"w": np.ones(3, "f4")})
    outcome = machine.turn(OPENED)
    assert outcome["status"] == "replan"
    with pytest.raises(Exception, match="1 good update,"):
        machine.plan(outcome)
    machine.step("abort_round", error="QuorumError", cause="1 good update")


@pytest.fixture
def good(machine: Machine, capsys: pytest.CaptureFixture[str]) -> list[Point]:
    """What functions emit in a good round."""
    good_round(machine)
    return list(points(capsys.readouterr().out, 0))


@pytest.fixture
def bad(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[Point]:
    """What functions emit in a bad round, an hour later."""
    machine.begin("bad")
    monkeypatch.setattr(Context, "memory_limit_in_mb", 1)
    monkeypatch.setattr(Context, "get_remaining_time_in_millis", lambda _: 0)
    bad_round(machine)
    return list(points(capsys.readouterr().out, SECONDS_BETWEEN))


def resolved(namespace: str, name: str, dimension: str, value: str) -> Metric:
    """Name a metric as it is called in the stack that the functions here are of."""
    return Metric(namespace, name, dimension, value.replace(STACK, ENVIRONMENT[SERVICE]))


SERVICE = "GRADSHARD_STACK"


def of_alarm(alarm: dict[str, Any]) -> Metric:
    [dimension] = alarm["Dimensions"]
    value = shown(dimension["Value"])
    return resolved(alarm["Namespace"], alarm["MetricName"], dimension["Name"], value)


def dashboard() -> dict[str, Any]:
    [found] = of_type("AWS::CloudWatch::Dashboard").values()
    body: dict[str, Any] = json.loads(shown(found["DashboardBody"]))
    return body


def of_dashboard() -> list[Metric]:
    return [
        resolved(*metric[:4])
        for widget in dashboard()["widgets"]
        for metric in widget["properties"].get("metrics", [])
    ]


def assert_emitted(metric: Metric, emitted: set[Metric]) -> None:
    if metric.namespace == embedded_metrics.NAMESPACE:
        assert metric in emitted
        return
    assert metric.name in AWS_METRICS[metric.namespace]
    dimension, kind, way = NAMED[metric.namespace]
    assert metric.dimension == dimension
    assert metric.value in {way % name for name in of_type(kind)}


def test_alarms_and_dashboard_use_emitted_metrics(good: list[Point], bad: list[Point]) -> None:
    emitted = {point.metric for point in (*good, *bad)}
    assert {metric.namespace for metric in emitted} == {embedded_metrics.NAMESPACE}
    for metric in (*map(of_alarm, ALARMS.values()), *of_dashboard()):
        assert_emitted(metric, emitted)
    # And nothing is emitted, and paid for, that nobody looks at.
    assert emitted <= set(of_dashboard())
    assert {metric.name for metric in emitted} == set(embedded_metrics.UNITS)


def test_the_dashboard_has_every_alarm_and_only_resources_of_the_template() -> None:
    body = dashboard()
    for name in re.findall(r"\$\{([^}]*)\}", json.dumps(body)):
        assert name.partition(".")[0] in RESOURCES or name.startswith("AWS::")
    [listed] = [w["properties"]["alarms"] for w in body["widgets"] if w["type"] == "alarm"]
    assert sorted(listed) == sorted(f"${{{name}.Arn}}" for name in ALARMS)
    assert all(widget["x"] + widget["width"] <= 24 for widget in body["widgets"])


# ---------------------------------------------------------------------------- what goes off when

STATISTICS: dict[str, Callable[[list[float]], float]] = {"Sum": sum, "Maximum": max}
OK, ALARM = "OK", "ALARM"


def states(alarm: dict[str, Any], data: Sequence[tuple[float, float]], periods: int) -> list[str]:
    """Evaluate an alarm of one period at a time, from second 0 on, period by period."""
    assert (alarm["EvaluationPeriods"], alarm.get("DatapointsToAlarm", 1)) == (1, 1)
    assert alarm["ComparisonOperator"] == "GreaterThanOrEqualToThreshold"
    assert alarm["TreatMissingData"] == "notBreaching"
    by_period: dict[int, list[float]] = defaultdict(list)
    for seconds, value in data:
        by_period[int(seconds // alarm["Period"])].append(value)
    found = []
    for period in range(periods):
        values = by_period[period]
        breaching = values and STATISTICS[alarm["Statistic"]](values) >= alarm["Threshold"]
        found.append(ALARM if breaching else OK)
    return found


class Sent(NamedTuple):
    """What AWS says of a good round and of a bad one; nothing where it sends no point at all."""

    good: Sequence[float]
    bad: Sequence[float]


BY_AWS = {
    # Only where one ended so.
    "ExecutionsFailed": Sent((), (1,)),
    "ExecutionsAborted": Sent((), (1,)),
    # With every invocation, as 0 where it was not throttled.
    "Throttles": Sent((0, 0, 0), (0, 3, 0)),
    # As long as the queue is used or holds a message.
    "ApproximateNumberOfMessagesVisible": Sent((0, 0), (0, 1)),
    # Only where one was.
    "InvocationDroppedCount": Sent((), (1,)),
}
"""Points of AWS's own metrics, by the documents above."""


def series(alarm: dict[str, Any], recorded: list[Point]) -> list[tuple[float, float]]:
    if alarm["Namespace"] == embedded_metrics.NAMESPACE:
        metric = of_alarm(alarm)
        return [(point.seconds, point.value) for point in recorded if point.metric == metric]
    told = BY_AWS[alarm["MetricName"]]
    return [(0.0, value) for value in told.good] + [(SECONDS_BETWEEN, v) for v in told.bad]


@pytest.mark.parametrize("name", ALARMS)
def test_an_alarm_goes_off_in_a_bad_round_and_in_no_good_one(
    name: str, good: list[Point], bad: list[Point]
) -> None:
    alarm = ALARMS[name]
    data = series(alarm, good + bad)
    at = SECONDS_BETWEEN // alarm["Period"]
    found = states(alarm, data, at + 3)
    assert found == [OK] * at + [ALARM, OK, OK]


@pytest.mark.parametrize("name", ["MemoryLimitNearAlarm", "TimeLimitNearAlarm"])
def test_limits_are_near_at_four_fifths(name: str) -> None:
    assert states(ALARMS[name], [(0, 79.9), (300, 80.0)], 2) == [OK, ALARM]


def test_counts_go_off_at_the_first() -> None:
    for name, alarm in ALARMS.items():
        if alarm["Namespace"].startswith("AWS/"):
            assert states(alarm, [(0, 0), (alarm["Period"], 1)], 2) == [OK, ALARM], name


def test_a_good_round_is_one_that_averaged(machine: Machine) -> None:
    """The rounds above are what they are called."""
    good_round(machine)
    result = reference.decode(machine.store.objects[machine.keys.result])
    assert result["w"].tolist() == [1.0, 1.0, 1.0]
