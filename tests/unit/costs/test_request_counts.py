"""The counted requests of a round are those that its functions make."""

import hashlib
import json
import random
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest

from gradshard_core.costs import request_counts, round_cost
from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.costs.request_counts import Requests
from gradshard_core.costs.workload_from_spec import lists_of
from gradshard_core.formats.object_keys import ObjectVersion, RoundKeys, StoredTensors
from gradshard_core.formats.tensor_layout import Layout, encode_header
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_json import parse_plan
from gradshard_core.records.model_registry import Version
from gradshard_core.rounds import aws_requests, resume_round
from gradshard_core.rounds.collect_update import collect_update
from gradshard_core.rounds.finalize_round import finalize_round
from gradshard_core.rounds.open_round import open_round
from gradshard_core.rounds.plan_context import PlanRequest
from gradshard_core.rounds.plan_round import plan_round
from gradshard_core.rounds.waiting_record import Seen
from gradshard_core.s3.store import S3Store
from gradshard_core.s3.traffic import Meter
from gradshard_core.s3.transport import ResponseError
from gradshard_core.specs.round_spec_checks import parse_spec
from gradshard_core.units import MIB

GET, PUT, FREE = "GET", "PUT", "free"
MODELS = {"fedavg": 1, "fedadam": 3}
"""The objects of model and state that a round writes, by its server optimizer."""


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

    def put_object(
        self,
        *,
        Key: str,  # noqa: N803
        Body: bytes,  # noqa: N803
        IfNoneMatch: str | None = None,  # noqa: N803
        IfMatch: str | None = None,  # noqa: N803
        **_: Any,
    ) -> None:
        self.asked[PUT] += 1
        there = _etag(self.objects[Key][0]) if Key in self.objects else None
        if (IfNoneMatch and there) or (IfMatch and IfMatch != there):
            raise ResponseError("PreconditionFailed", "put_object", "S3 answered 412")
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
    monkeypatch.setattr(aws_requests, "resume", lambda *_: True)
    monkeypatch.setattr(aws_requests, "schedule_deadline", lambda *_: None)
    monkeypatch.setattr(aws_requests, "publish", lambda *_: None)


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
        ({"rule": {"name": "krum", "f": 1}, "shards": 2}, [2]),
        ({"rule": {"name": "multi_krum", "f": 1}, "shards": 2}, [2]),
        ({"rule": {"name": "multi_krum", "f": 1, "m": 2}, "shards": 2}, [2]),
        ({"rule": {"name": "bulyan", "f": 1}, "shards": 2}, [2]),
    ],
)
def test_the_functions_make_the_requests_that_are_priced(
    monkeypatch: pytest.MonkeyPatch, terms: dict[str, Any], tasks: list[int]
) -> None:
    clients = 5 if len(tasks) == 3 else 3
    clients = 7 if "f" in terms.get("rule", ()) else clients
    names = [f"c{client}" for client in range(clients)]
    published: list[str] = []
    monkeypatch.setattr(aws_requests, "publish", lambda kind, _: published.append(kind))
    s3 = CountedS3()
    store, keys = S3Store("b", s3), RoundKeys("r")
    layout = Layout.pack([("w", "F32", (3 * MIB,))])
    update = encode_header(layout, {"num_samples": "1"})
    _put_model(s3, layout)

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
    monkeypatch.setattr(aws_requests, "cancel_deadline", cancelled.append)
    assert finalize_round(store, "r")["status"] == "completed"
    # So nothing is called or written at the deadline.
    assert cancelled == ["r"]

    models = MODELS.get(terms.get("server_optimizer", ""), 0)
    before, lists = [measured] if measured else [], lists_of(parse_spec({"clients": names} | terms))
    counted = request_counts.count_requests(tasks, clients, models, before, lists)
    assert counted == Requests(s3.asked[GET], s3.asked[PUT])
    assert round_cost.notifications(clients) == s3.notifications()
    assert published == ["RoundCompleted"]  # the event that is priced


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("clients", "fan_in", "terms"),
    [
        (4, 2, {}),
        (12, 4, {}),
        (42, 21, {}),
        (200, 2, {}),  # more groups than stages
        (8, 2, {"shards": 2}),
        (8, 2, {"server_optimizer": "fedadam"}),
    ],
)
def test_the_stages_of_an_eager_round_make_the_requests_that_are_priced(
    monkeypatch: pytest.MonkeyPatch, clients: int, fan_in: int, terms: dict[str, Any]
) -> None:
    """Each stage is over before further clients arrive."""
    monkeypatch.setattr(aws_requests, "cancel_deadline", lambda _: None)
    names, layout = [f"c{client}" for client in range(clients)], Layout.pack([("w", "F32", (MIB,))])
    eager = {"topology": "grid", "fan_in": fan_in, "weights": "counts", "eager": True}
    settled = {} if terms.get("server_optimizer") else {"layout": layout.to_json()}
    terms = {"clients": names, "shards": 1, **eager, **settled, **terms}
    s3 = CountedS3()
    store, keys = S3Store("b", s3), RoundKeys("r")
    _put_model(s3, layout)
    update = encode_header(layout, {"num_samples": "1"})
    calls: Counter[str] = Counter()

    def wait() -> None:
        token = f"t{calls['open']}"
        calls["open"] += 1
        started = "2026-01-01T00:00:00Z"
        assert not open_round(store, "r", terms, started=started, token=token)["resumed"]

    def add_stage() -> str:
        s3.parts.clear()
        calls["plan"] += 1
        request = PlanRequest(f"2026-01-01T00:00:{calls['plan']:02}", "complete", 0)
        planned = plan_round(store, "r", request, aggregator=LambdaConfig(128, "arm64"))
        _do_tasks(s3, keys, parse_plan(json.loads(s3.objects[keys.plan][0])))
        while planned := planned["next"]:  # the state machine asks after each level
            finalize_round(store, "r", planned)
            calls["finalize"] += 1
        calls["finalize"] += 1
        return str(finalize_round(store, "r")["status"])

    wait()
    random.seed(clients)
    status, seen = "awaiting", Seen()
    for client in random.Random(1).sample(names, clients):  # noqa: S311 - no secret
        s3.create(keys.update(client), update, len(update) + layout.nbytes)
        calls["collect"] += 1
        if collect_update(store, keys.update(client), _etag(update).strip('"'), seen)["resumed"]:
            status = add_stage()
            if status == "awaiting":
                wait()
    assert status == "completed"

    plan = parse_plan(json.loads(s3.objects[keys.plan][0]))
    tasks = [len(plan.tasks(level)) for level in range(len(plan.levels))]
    lists, models = lists_of(parse_spec(terms)), MODELS.get(terms.get("server_optimizer", ""), 0)
    counted = request_counts.count_requests(tasks, clients, models, lists=lists)
    assert lists.stages == calls["plan"]
    assert counted.puts == s3.asked[PUT]
    # In groups of two an arrival looks once; in larger ones at random.
    assert counted.gets == pytest.approx(s3.asked[GET], rel=0.05 if fan_in > 2 else 0)
    called = round_cost.invocations(0, clients, levels=len(tasks), stages=lists.stages)
    assert called == calls.total() + 1  # and for the result


def _put_model(s3: CountedS3, layout: Layout) -> None:
    header = encode_header(layout, {})
    key, nbytes = "models/model/puts/1.safetensors", len(header) + layout.nbytes
    s3.objects[key] = (header, nbytes)
    source = ObjectVersion(key, "", "", nbytes)
    first = Version("model", 1, StoredTensors(source, len(header))).to_json()
    s3.objects["models/model/current.json"] = (json.dumps(first).encode(), 1)


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
    monkeypatch.setattr(aws_requests, "resume", lambda *_: True)
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
            assert resume_round.resume_if_due(store, keys, spec, client, seen) == is_last
        looks, listings = request_counts._looks(clients, lists_of(spec))
        assert s3.asked == Counter({GET: looks + 1, PUT: listings})  # and the callback


@pytest.mark.slow
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
    found = request_counts.looks_apart(clients)
    assert found == pytest.approx((looks / 3000, listings / 3000), rel=0.05)


def test_listings_of_many_have_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_counts, "_looks", lambda clients, _: (2.0 * clients, 4.0))
    one, some, many = (request_counts.count_requests([1], clients) for clients in (1, 500, 2500))
    assert some.gets - one.gets == 499 * (3 + 2)
    assert some.puts == one.puts
    # Marks; and five pieces of contributors, which the manifest has, too.
    assert many.gets - one.gets == 2499 * (3 + 2) + 2500 + 5
    # A mark.
    assert many.puts - one.puts == 2500 + 2 * 5
    # 4,002 partial sums of one level, whose tasks are one object more; and the records of all tasks
    # in twelve pieces.
    deep = request_counts.count_requests([4002, 2001], 1)
    assert deep.puts - one.puts == 5 + 1 + 12
    assert deep.gets - one.gets == 6002
