"""What a round is charged for: by hand, and as its functions do it."""

import hashlib
import json
import random
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gradshard_core.formats.keys import ObjectVersion, RoundKeys, StoredTensors
from gradshard_core.formats.layout import Layout, encode_header
from gradshard_core.planning import aws_prices, limits, pricing
from gradshard_core.planning.lambda_config import LambdaConfig
from gradshard_core.planning.measured_cost import measured
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_json import parse_plan
from gradshard_core.planning.pricing import Bill, Requests, Tasks
from gradshard_core.planning.round_spec_parsing import parse_spec
from gradshard_core.planning.round_workload import lists_of
from gradshard_core.records.model_registry import Version
from gradshard_core.rounds import aws_callbacks, end_of_wait
from gradshard_core.rounds.collect_update import collect_update
from gradshard_core.rounds.finalize_round import finalize_round
from gradshard_core.rounds.open_round import open_round
from gradshard_core.rounds.plan_context import PlanRequest
from gradshard_core.rounds.plan_round import plan_round
from gradshard_core.rounds.waiting_record import Seen
from gradshard_core.s3.store import S3Store
from gradshard_core.s3.traffic import Meter
from gradshard_core.s3.transport import ResponseError
from gradshard_core.units import MIB

ROOT = Path(__file__).parents[3]
MACHINE = ROOT / "statemachine" / "round.asl.json"
GET, PUT, FREE = "GET", "PUT", "free"


class CountedS3:
    """A bucket that counts what each request is priced as; objects are a size and an ETag."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.created: Counter[str] = Counter()
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.parts: list[int] = []
        self.meter = Meter()

    def close(self) -> None:
        """There are no connections."""

    def call(self, operation: str, /, **parameters: Any) -> dict[str, Any]:
        answer: dict[str, Any] | None = getattr(self, operation)(**parameters)
        return answer or {}

    def get_object(self, *, Key: str, Range: str = "", **_: Any) -> dict[str, Any]:  # noqa: N803
        self.asked[GET] += 1
        body, size = self._found(Key)
        if Range:
            first, last = map(int, Range.removeprefix("bytes=").split("-"))
            body = body.ljust(min(last + 1, size), b"\0")[first:]
        return {
            "Body": _Body(body),
            "ContentRange": f"{Range.replace('=', ' ')}/{size}",
            "ETag": _etag(body),
        }

    def head_object(self, *, Key: str, **_: Any) -> dict[str, Any]:  # noqa: N803
        self.asked[GET] += 1
        body, size = self._found(Key)
        return {"ETag": _etag(body), "ContentLength": size}

    def put_object(self, *, Key: str, Body: bytes, **_: Any) -> None:  # noqa: N803
        self.asked[PUT] += 1
        self.create(Key, Body, len(Body))

    def create(self, key: str, body: bytes, size: int) -> None:
        """Make an object's next version, of which S3 may tell."""
        self.objects[key] = (body, size)
        self.created[key] += 1

    def delete_object(self, *, Key: str, **_: Any) -> None:  # noqa: N803
        self.asked[FREE] += 1
        self.objects.pop(Key, None)

    def delete_objects(self, **_: Any) -> dict[str, Any]:
        self.asked[FREE] += 1
        return {}

    def notifications(self) -> int:
        """Count what S3 tells the topic of updates, as the template filters it."""
        return sum(
            created
            for key, created in self.created.items()
            if key.startswith("rounds/") and key.endswith(".safetensors")
        )

    def create_multipart_upload(self, **_: Any) -> dict[str, str]:
        self.asked[PUT] += 1
        return {"UploadId": "u"}

    def complete_multipart_upload(self, *, Key: str, **_: Any) -> None:  # noqa: N803
        self.asked[PUT] += 1
        self.create(Key, b"", sum(self.parts))

    def list_multipart_uploads(self, **_: Any) -> dict[str, Any]:
        return self._page()

    def list_objects_v2(self, *, Prefix: str, **_: Any) -> dict[str, Any]:  # noqa: N803
        found = [
            {"Key": key, "ETag": "", "Size": size, "LastModified": datetime.now(UTC)}
            for key, (_, size) in self.objects.items()
            if key.startswith(Prefix)
        ]
        return self._page(Contents=found)

    def list_object_versions(self, *, Prefix: str, **_: Any) -> dict[str, Any]:  # noqa: N803
        found = [key for key in self.objects if key.startswith(Prefix)]
        return self._page(Versions=[{"Key": key, "VersionId": ""} for key in found])

    def list_parts(self, **_: Any) -> dict[str, Any]:
        return self._page(
            Parts=[
                {"PartNumber": number, "ETag": "", "Size": size}
                for number, size in enumerate(self.parts, 1)
            ]
        )

    def _page(self, **entries: Any) -> dict[str, Any]:
        self.asked[PUT] += 1  # as LISTs are
        return {"IsTruncated": False, **entries}

    def _found(self, key: str) -> tuple[bytes, int]:
        if key not in self.objects:
            raise ResponseError("NoSuchKey", "get_object", "S3 answered NoSuchKey")
        return self.objects[key]


class _Body:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self) -> bytes:
        return self.data

    def readinto(self, buffer: memoryview) -> int:
        buffer[:] = self.data[: len(buffer)]
        return len(buffer)

    def close(self) -> None:
        pass


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No state machine is there to be resumed, no schedule and no bus."""
    monkeypatch.setattr(aws_callbacks, "resume", lambda *_: True)
    monkeypatch.setattr(aws_callbacks, "schedule_deadline", lambda *_: None)
    monkeypatch.setattr(aws_callbacks, "publish", lambda *_: None)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("terms", "tasks"),
    [
        ({"shards": 2, "server_optimizer": "fedavg"}, [2]),
        ({"topology": "lambda_fl", "server_optimizer": "fedadam"}, [2, 1]),
        ({"shards": 1}, [1]),
        ({"shards": 2}, [2]),
        ({"topology": "lambda_fl"}, [2, 1]),
        ({"topology": "grid", "fan_in": 2, "shards": 2}, [6, 4, 2]),
        ({"shards": 2, "assignments": {"batch_size": 8, "epochs": 1, "learning_rate": 0.1}}, [2]),
        ({"rule": "median", "shards": 2}, [2]),
        ({"dp": {"clip": 1.0, "noise_multiplier": 2.0, "delta": 1e-5}, "shards": 2}, [2]),
        ({"rule": "geometric_median", "shards": 2}, [2]),
        ({"rule": "geometric_median", "shards": 2, "server_optimizer": "fedadam"}, [2]),
    ],
)
def test_the_functions_make_the_requests_that_are_priced(
    monkeypatch: pytest.MonkeyPatch, terms: dict[str, Any], tasks: list[int]
) -> None:
    clients = 5 if len(tasks) == 3 else 3
    names = [f"c{client}" for client in range(clients)]
    published: list[str] = []
    monkeypatch.setattr(aws_callbacks, "publish", lambda kind, _: published.append(kind))
    s3 = CountedS3()
    store, keys = S3Store("b", s3), RoundKeys("r")
    layout = Layout.pack([("w", "F32", (3 * MIB,))])
    update = encode_header(layout, {"num_samples": "1"})

    model = encode_header(layout, {})
    s3.objects["models/model/puts/1.safetensors"] = (model, len(model) + layout.nbytes)
    source = ObjectVersion("models/model/puts/1.safetensors", "", "", len(model) + layout.nbytes)
    first = Version("model", 1, StoredTensors(source, len(model))).to_json()
    s3.objects["models/model/current.json"] = (json.dumps(first).encode(), 1)

    open_round(store, "r", {"clients": names} | terms, started="2026-01-01T00:00:00Z", token="t")
    seen = Seen()
    for client in names:
        key = keys.update(client)
        s3.create(key, update, len(update) + layout.nbytes)
        assert collect_update(store, key, _etag(update).strip('"'), seen)["status"] == "accepted"
    request = PlanRequest("2026-01-01T00:00:01", "complete", 0)
    plan_round(store, "r", request, aggregator=LambdaConfig(128, "arm64"))
    plan = parse_plan(json.loads(s3.objects[keys.plan][0]))
    assert [len(plan.tasks(level)) for level in range(len(tasks))] == tasks
    measured = len(plan.tasks(0)) if plan.computation.measures else 0
    if measured:
        _do_tasks(s3, keys, plan)
        assert finalize_round(store, "r")["status"] == "replan"
        request = PlanRequest("2026-01-01T00:00:02", "replan", 1)
        plan_round(store, "r", request, aggregator=LambdaConfig(128, "arm64"))
        plan = parse_plan(json.loads(s3.objects[keys.plan][0]))
    _do_tasks(s3, keys, plan)
    cancelled: list[str] = []
    monkeypatch.setattr(aws_callbacks, "cancel_deadline", cancelled.append)
    assert finalize_round(store, "r")["status"] == "completed"
    # So nothing is called or written at the deadline.
    assert cancelled == ["r"]

    models = {"fedavg": 1, "fedadam": 3}.get(terms.get("server_optimizer", ""), 0)
    before, lists = [measured] if measured else [], lists_of(parse_spec({"clients": names} | terms))
    counted = pricing.around(tasks, clients, models, before, lists)
    assert counted == Requests(s3.asked[GET], s3.asked[PUT])
    assert pricing.notifications(clients) == s3.notifications()
    assert published == ["RoundCompleted"]  # the event that is priced


def _do_tasks(s3: CountedS3, keys: RoundKeys, plan: Plan) -> None:
    """Leave behind what the tasks would, uncounted."""
    figures = ("gets", "puts", "retries", "bytes_read", "bytes_written", "seconds", "cpu_seconds")
    report = dict.fromkeys((*figures, "peak_mb"), 1) | {
        "attempt": plan.attempt,
        "is_cold": False,
        "rejected": [],
    }
    if plan.computation.measures:
        report["products"] = {}
    for level in range(len(plan.levels)):
        for task in plan.tasks(level):
            done = report | {"task": task.number}
            if plan.is_last(level) and not plan.computation.measures:
                header = plan.layout.header.nbytes if task.number == 0 else 0
                nbytes = header + task.end - task.start
                s3.parts.append(nbytes)
                done |= {"parts": [["", nbytes]] * len(plan.outputs)}
            elif not plan.computation.measures:
                s3.create(keys.partial_sum(0, level, task.number), b"", 1)
            s3.create(keys.task_report(level, task.number), json.dumps(done).encode(), 1)


@pytest.mark.parametrize("clients", [1, 2, 12, 13, 22, 40])
def test_looks_are_those_of_arrivals_at_one_warm_function(
    monkeypatch: pytest.MonkeyPatch, clients: int
) -> None:
    monkeypatch.setattr(aws_callbacks, "resume", lambda *_: True)
    names = [f"c{client}" for client in range(clients)]
    for is_named in (True, False):
        s3, seen, spec = (
            CountedS3(),
            Seen(),
            parse_spec({"clients": names if is_named else clients}),
        )
        store, keys = S3Store("b", s3), RoundKeys("r")
        s3.create(keys.callback, b'{"tokens": ["t"]}', 1)
        for client in random.Random(clients).sample(names, clients):  # noqa: S311 - no secret
            s3.create(keys.update(client), b"", 1)
            is_last = len(s3.objects) == clients + 1
            assert end_of_wait.resume_if_due(store, keys, spec, client, seen) == is_last
        looks, listings = pricing._looks(clients, lists_of(spec))
        assert s3.asked == Counter({GET: looks + 1, PUT: listings})  # and the callback


@pytest.mark.parametrize("clients", [0, 1, 2, 9, 21, 22, 40])
def test_looks_are_those_of_arrivals_in_random_order(clients: int) -> None:
    rng = random.Random(clients)  # noqa: S311 - no secret
    looks = listings = 0
    for _ in range(3000):
        order = rng.sample(range(clients), clients)
        for turn, arriving in enumerate(order):
            there = set(order[: turn + 1])
            others = [client for client in range(clients) if client != arriving]
            for looked_for in rng.sample(others, min(20, len(others))):
                looks += 1
                if looked_for not in there:
                    break
            else:
                listings += len(others) > 20
                looks += len(others) <= 20
    found = pricing.looks_apart(clients)
    assert found == pytest.approx((looks / 3000, listings / 3000), rel=0.05)


def test_listings_of_many_have_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pricing, "_looks", lambda clients, _: (2.0 * clients, 4.0))
    one, some, many = (pricing.around([1], clients) for clients in (1, 500, 2500))
    assert some.gets - one.gets == 499 * (3 + 2)
    assert some.puts == one.puts
    # Marks; and five pieces of contributors, which the manifest has, too.
    assert many.gets - one.gets == 2499 * (3 + 2) + 2500 + 5
    # A mark.
    assert many.puts - one.puts == 2500 + 2 * 5
    # 4,002 partial sums of one level, whose tasks are one object more; and the records of all tasks
    # in twelve pieces.
    deep = pricing.around([4002, 2001], 1)
    assert deep.puts - one.puts == 5 + 1 + 12
    assert deep.gets - one.gets == 6002


def test_tasks_in_batches_by_hand() -> None:
    levels = [[Tasks(80, 10.0), Tasks(1, 30.0)], [Tasks(2, 5.0)]]
    bill = pricing.bill(
        levels,
        clients=7,
        memory_mb=512,
        architecture="x86_64",
        aggregators=Requests(1000, 100),
        by_clients=Requests(70, 14),
        batch=40,
    )
    # 81 tasks are three executions of as long as the slowest, two tasks are one.
    started, seconds = 3 + 1, 3 * 30 + 5
    assert bill.step_functions == pytest.approx(
        (3 + 2 * 2 + started) * 0.025e-3 + started * 1e-6 + seconds * 0.0625 * 0.00001667
    )
    assert bill.lambda_ == pytest.approx((800 + 30 + 10) * 0.5 * 0.0000166667)
    assert bill.s3_aggregators == pytest.approx(1000 * 0.4e-6 + 100 * 5e-6)
    assert bill.s3_clients == pytest.approx(70 * 0.4e-6 + 14 * 5e-6)
    # 83 tasks, seven arrivals, the result, open, plan, and finalize after each level.
    assert bill.requests == pytest.approx((83 + 7 + 1 + 4) * 0.2e-6)
    assert bill.events == pytest.approx((7 + 1) * 0.5e-6 + 1e-6)
    # Six arrivals look for one client each, and the last one for seven.
    around = (3 + 2 * 7 + 13 + 10 + 85 + 1) * 0.4e-6 + (2 + 4 + 3) * 5e-6
    assert bill.round_ == pytest.approx(
        (7 * 256 + 256 + 472 + 256) / 1024 * 0.3 * 0.0000166667 + around
    )


def test_tasks_alone_pay_an_execution_each() -> None:
    def step_functions(batch: int) -> float:
        return pricing.bill(
            [[Tasks(40, 60.0)]],
            clients=1,
            memory_mb=128,
            architecture="arm64",
            aggregators=Requests(0, 0),
            by_clients=Requests(0, 0),
            batch=batch,
        ).step_functions

    each = 0.025e-3 + 1e-6 + 60 * 0.0625 * 0.00001667
    assert step_functions(1) - step_functions(40) == pytest.approx(39 * each)


def test_transitions_are_those_of_the_state_machine() -> None:
    machine = json.loads(MACHINE.read_text())
    states = machine["States"]
    path = [machine["StartAt"]]
    while not (state := states[path[-1]]).get("End"):
        path.append(state["Next"])
    caught = {rule["ErrorEquals"][0]: rule["Next"] for rule in states["FinalizeRound"]["Catch"]}
    loop = path[path.index(caught["NextLevel"]) : path.index("FinalizeRound") + 1]
    assert loop == ["AggregateLevel", "FinalizeRound"]
    assert len(loop) == aws_prices.LEVEL_TRANSITIONS
    assert caught["Replan"] == "PlanAgain"
    between = [caught["Replan"], states[caught["Replan"]]["Next"]]
    assert between == ["PlanAgain", "PlanRound"]
    assert len(between) == aws_prices.REPLAN_TRANSITIONS
    # From the start to the first state, and from each to the next or the end.
    assert len(path) + 1 == aws_prices.ROUND_TRANSITIONS + aws_prices.LEVEL_TRANSITIONS
    assert [states[name]["Type"] for name in loop] == ["Map", "Task"]
    batches = states["AggregateLevel"]["ItemProcessor"]
    assert batches["ProcessorConfig"] == {"Mode": "DISTRIBUTED", "ExecutionType": "EXPRESS"}
    assert list(batches["States"]) == ["AggregateBatch"]


def test_the_documentation_of_quotas_has_the_machines_transitions() -> None:
    page = (ROOT / "docs" / "deploying.md").read_text()
    level = aws_prices.LEVEL_TRANSITIONS
    assert (
        f"| {aws_prices.ROUND_TRANSITIONS + level} for a round of one level, {level} more for each "
        f"further level, and 1 for each {limits.INLINE_ITERATIONS} tasks"
    ) in page


def test_bills_add_up() -> None:
    bill = Bill(1, 2, 3, 4, 5, 6, 7, 8)
    assert (bill.aggregators, bill.full, bill.total) == (3, 6, 36)
    assert bill.minus(Bill(1, 1, 1, 1, 1, 1, 1, 1)) == Bill(0, 1, 2, 3, 4, 5, 6, 7)
    assert bill.to_json() == {
        "lambda": 1,
        "s3_aggregators": 2,
        "s3_clients": 3,
        "requests": 4,
        "step_functions": 5,
        "round": 6,
        "events": 7,
        "starts": 8,
        "agg": 3,
        "full": 6,
        "total": 36,
    }


def test_every_invocation_is_billed() -> None:
    bill = pricing.bill(
        [[Tasks(3, 1.0)]],
        clients=5,
        memory_mb=128,
        architecture="arm64",
        aggregators=Requests(0, 0),
        by_clients=Requests(0, 0),
    )
    # Tasks, arrivals, the result, and open, plan and finalize.
    assert pricing.invocations(3, 5) == 3 + 5 + 1 + 3
    assert pricing.invocations(3, 5, levels=2) == 3 + 5 + 1 + 4
    assert bill.requests == pytest.approx((3 + 5 + 1 + 3) * aws_prices.DOLLARS_PER_INVOCATION)


def test_only_tasks_that_started_cold_pay_for_it() -> None:
    def starts(*cold: bool) -> float:
        report = {"level": 0, "seconds": 1.0, "gets": 1, "puts": 1}
        return measured(
            [report | {"is_cold": is_cold} for is_cold in cold],
            clients=3,
            memory_mb=128,
            architecture="arm64",
            nbytes=MIB,
        ).starts

    # 0.13 CPU-seconds at a share of 128 / 1769 of a processor, after 0.1 s of the runtime.
    each = 128 / 1024 * (0.1 + 0.13 * 1769 / 128) * 0.0000133334
    assert starts(True, True) - starts(True, False) == pytest.approx(each)
    assert starts(False, False) > 0


def test_a_finished_round_is_priced_by_the_bytes_that_clients_sent() -> None:
    report = {"level": 0, "seconds": 1.0, "gets": 1, "puts": 1, "is_cold": False}
    terms: dict[str, Any] = {"clients": 2, "memory_mb": 192, "architecture": "arm64"}
    large, small = 3_000_000_000, 800_000_000
    bills = [
        measured([report], nbytes=large, sent=sent, **terms).s3_clients
        for sent in ((), (large, large), (small, large))
    ]
    assert bills[0] == bills[1]
    # Eight parts, and three requests more, or one request.
    assert bills[0] - bills[2] == pytest.approx(10 * 0.005 / 1000)
