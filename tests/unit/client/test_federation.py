"""Opening, submitting, waiting and fetching, against a bucket in memory."""

import json
import math
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gradshard.client import round_opening
from gradshard.client.executions import Execution
from gradshard.client.federation import Federation
from gradshard.client.round import Round
from gradshard.updates.compression import Compression
from gradshard.updates.residual import Residual
from gradshard.updates.tensors import pack
from gradshard.updates.upload_source import TensorContent
from gradshard.utils import polling
from gradshard.utils.crc64 import crc64_text
from gradshard_core.errors import (
    DigestError,
    RoundExistsError,
    RoundFailed,
    RoundNotFoundError,
    RoundStateError,
    SpecError,
    TicketError,
    UpdateError,
    WaitTimeoutError,
)
from gradshard_core.formats.object_keys import ObjectVersion, RoundKeys
from gradshard_core.formats.tensor_layout import Runs, encode_header
from gradshard_core.limits import aws_limits
from gradshard_core.planning.output_objects import StoredHeader
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_json import plan_to_json
from gradshard_core.planning.plan_parts import (
    Computation,
    Contributor,
    Level,
    Participants,
    PlannedLayout,
    Rejection,
)
from gradshard_core.records.plan_and_manifest import piece_reader
from gradshard_core.records.stored_spec import PAYLOAD_ROOM_BYTES
from gradshard_core.specs.round_spec_checks import parse_spec
from tests import reference
from tests.unit.fakes import MemoryStack, MemoryStore

TENSORS = {"w": np.arange(6, dtype="f4")}
SPEC = {"clients": ["a", "b"], "min_clients": 2, "timeout": 600}
OPENED = {
    "round": "r1",
    "spec": SPEC,
    "opened_at": "2026-01-01T00:00:00+00:00",
    "deadline_at": "2026-01-01T00:10:00+00:00",
}


def plan_json(contributors: dict[str, str], **fields: Any) -> dict[str, Any]:
    """Return the plan of a round of these clients, by the ETags of their updates, as JSON."""
    keys = RoundKeys("r1")
    sources = {
        name: ObjectVersion(keys.update(name), "", etag, 1) for name, etag in contributors.items()
    }
    plan = Plan(
        "r1",
        Participants(
            tuple(Contributor(name, source, 1, 0.5, Runs([])) for name, source in sources.items()),
            rejected=(Rejection("b", "NaN"),),
        ),
        Computation((Level.of_sizes([len(contributors)]),), shards=2),
        PlannedLayout(nbytes=24, tensors=1, header=StoredHeader(80, "")),
        upload_id="u",
        opened_at=str(OPENED["opened_at"]),
        planned_at="2026-01-01T00:01:00+00:00",
    )
    written: dict[str, Any] = json.loads(json.dumps(plan_to_json(plan)))
    return written | fields


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_opening, "OPENING_SECONDS", 0.05)
    monkeypatch.setattr(polling, "FIRST_PAUSE_SECONDS", 0.01)


@pytest.fixture
def stack(store: MemoryStore) -> MemoryStack:
    return MemoryStack(store)


@pytest.fixture
def round_(stack: MemoryStack, store: MemoryStore) -> Round:
    """Give a round that is open."""
    store.put_json("rounds/r1/spec.json", OPENED)
    return Round(stack, "r1")


@pytest.fixture
def federation(stack: MemoryStack) -> Federation:
    federation = Federation()
    federation.stack = stack
    return federation


def execution(status: str, **fields: Any) -> Execution:
    return Execution(**({"status": status, "input": SPEC, "error": "", "cause": ""} | fields))


class TestOpening:
    def test_starts_an_execution_of_the_spec(
        self, federation: Federation, stack: MemoryStack
    ) -> None:
        round_ = federation.open_round("r1", clients=["b", "a"], timeout=600)
        assert [json.loads(payload) for payload in stack.started] == [SPEC]
        assert round_.id == "r1"

    def test_twice_in_the_same_terms(
        self, federation: Federation, stack: MemoryStack, round_: Round
    ) -> None:
        stack.executions["r1"] = execution("SUCCEEDED")
        assert federation.open_round("r1", clients=["a", "b"], timeout=600).id == round_.id

    @pytest.mark.usefixtures("round_")
    def test_twice_with_other_options(self, federation: Federation) -> None:
        stated = r"'r1' .* other options \(clients, min_clients\)"
        with pytest.raises(RoundExistsError, match=stated):
            federation.open_round("r1", clients=["a", "c"], min_clients=1, timeout=600)

    @pytest.mark.parametrize(
        ("terms", "reason"),
        [
            (
                {
                    "clients": 2,
                    "layout": {
                        f"é{number}": {"dtype": "F32", "shape": [2]} for number in range(7000)
                    },
                },
                r"layout takes \d+: shorten the tensors' names, or give a server_optimizer",
            ),
        ],
    )
    def test_in_terms_longer_than_an_executions_input(
        self, federation: Federation, stack: MemoryStack, terms: dict[str, Any], reason: str
    ) -> None:
        with pytest.raises(SpecError, match=reason):
            federation.open_round("long", **terms)
        assert stack.started == []

    @pytest.mark.usefixtures("round_")
    @pytest.mark.parametrize(("clients", "characters"), [(4096, 63), (30_000, 5)])
    def test_with_more_ids_than_an_executions_input_takes(
        self, federation: Federation, stack: MemoryStack, clients: int, characters: int
    ) -> None:
        ids = [f"c{number:0{characters}}" for number in range(clients)]
        with pytest.raises(RoundExistsError):  # of the fixture: it was sent
            federation.open_round("r1", ids)
        [payload] = stack.started
        assert len(payload) < aws_limits.MAX_PAYLOAD_BYTES / 8
        get = piece_reader(federation.stack.store, RoundKeys("r1").expected)
        spec = parse_spec(json.loads(payload), get)
        assert not isinstance(spec.clients, int)
        assert list(spec.clients) == ids
        assert spec.expects(ids[-1])
        assert not spec.expects("c")
        record = {"spec": json.loads(payload), "opened_at": "x", "deadline_at": "y"}
        federation.stack.store.put_json("rounds/r1/spec.json", record)
        assert Round(stack, "r1").status()["missing"] == ids

    @pytest.mark.usefixtures("round_")
    def test_in_terms_as_long_as_may_be(self, federation: Federation, stack: MemoryStack) -> None:
        ids = [f"c{number:058}" for number in range(4096)]
        with pytest.raises(RoundExistsError):  # of the fixture: it was sent
            federation.open_round("r1", ids)
        [payload] = stack.started
        assert len(payload) <= aws_limits.MAX_PAYLOAD_BYTES - PAYLOAD_ROOM_BYTES
        assert json.loads(payload)["clients"] == ids

    def test_with_other_options_before_the_first_is_open(
        self, federation: Federation, stack: MemoryStack
    ) -> None:
        stack.executions["r1"] = execution("RUNNING")
        with pytest.raises(RoundExistsError):
            federation.open_round("r1", clients=3)

    def test_tells_why_it_failed(self, federation: Federation, stack: MemoryStack) -> None:
        stack.executions["r1"] = execution("FAILED", cause="no permission")
        with pytest.raises(RoundFailed, match=r"first used \(no permission\); choose another name"):
            federation.open_round("r1", clients=["a", "b"], timeout=600)

    @pytest.mark.parametrize("clients", [["a", "b"], 3])
    def test_of_a_round_whose_objects_have_expired(
        self, federation: Federation, stack: MemoryStack, clients: Any
    ) -> None:
        stack.executions["r1"] = execution("SUCCEEDED", started="2026-01-01", stopped="2026-01-02")
        with pytest.raises(
            RoundExistsError, match=r"another name: it ran from 2026-01-01 to 2026-01-02.*90 days"
        ):
            federation.open_round("r1", clients=clients, timeout=600)
        for look in (Round.spec, Round.status, Round.wait, Round.fetch):
            with pytest.raises(RoundNotFoundError, match="to 2026-01-02, and its objects"):
                look(Round(stack, "r1"))
        with pytest.raises(RoundNotFoundError, match="have been deleted since"):
            Round(stack, "r1").submit("a", TENSORS, samples=1)

    def test_of_a_round_that_ends_while_it_is_looked_at(
        self,
        federation: Federation,
        stack: MemoryStack,
        store: MemoryStore,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def look(name: str) -> Execution:
            store.put_json(f"rounds/{name}/spec.json", OPENED)
            return execution("SUCCEEDED")

        monkeypatch.setattr(stack, "execution", look)
        assert federation.open_round("r1", clients=["a", "b"], timeout=600).is_new

    def test_of_a_name_that_is_taken_by_nothing_to_be_seen(
        self, federation: Federation, stack: MemoryStack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(round_opening, "OPENING_SECONDS", 0.01)
        monkeypatch.setattr(stack, "start", lambda *_: False)
        with pytest.raises(RoundExistsError, match="the name 'r1' is taken"):
            federation.open_round("r1", clients=["a", "b"], timeout=600)

    def test_of_updates_of_a_round_that_is_not_there(
        self, federation: Federation, stack: MemoryStack
    ) -> None:
        with pytest.raises(RoundNotFoundError, match="no round 'r0'"):
            federation.open_round("r1", clients=["a"], updates_from="r0")
        assert not stack.started

    def test_rejects_terms_too_long_for_step_functions(self, federation: Federation) -> None:
        layout = {f"t{i:0100}": {"dtype": "F32", "shape": [1]} for i in range(2000)}
        with pytest.raises(SpecError, match="bytes of JSON"):
            federation.open_round("r1", clients=3, layout=layout)

    @pytest.mark.parametrize("name", ["../up", "", "a/b", "x" * 65, "\x1b[31m"])
    def test_rejects_path_characters(self, federation: Federation, name: str) -> None:
        with pytest.raises(SpecError, match="round id"):
            federation.open_round(name, clients=3)


class TestSubmitting:
    @pytest.mark.parametrize("seconds", [-4, 0, math.inf, math.nan])
    def test_names_invalid_reports_of_the_training(
        self, round_: Round, store: MemoryStore, seconds: float
    ) -> None:
        with pytest.raises(UpdateError, match=r"train_seconds is .*, not a number above zero"):
            round_.submit("a", TENSORS, samples=3, training={"train_seconds": seconds})
        assert "rounds/r1/updates/a.safetensors" not in store.objects

    def test_uploads(self, round_: Round, store: MemoryStore) -> None:
        round_.submit("a", TENSORS, samples=3)
        assert "rounds/r1/updates/a.safetensors" in store.objects

    def test_to_a_round_that_is_just_opening(self, stack: MemoryStack, store: MemoryStore) -> None:
        stack.executions["r2"] = execution("RUNNING")
        Round(stack, "r2").submit("a", TENSORS, samples=3)
        assert "rounds/r2/updates/a.safetensors" in store.objects

    @pytest.mark.parametrize(
        ("client", "update", "samples", "error", "reason"),
        [
            ("c", TENSORS, 3, UpdateError, "'c' is not expected in round 'r1'"),
            ("a/b", TENSORS, 3, SpecError, "client id"),
            ("a", TENSORS, None, UpdateError, "samples is missing"),
            ("a", TENSORS, 0, UpdateError, "samples is 0"),
            ("a", {}, 3, UpdateError, "empty"),
            ("a", {"w": np.ones(1, bool)}, 3, UpdateError, "'w'"),
            ("a", "/no/such.safetensors", 3, FileNotFoundError, "such"),
        ],
    )
    def test_bad_ones_are_not_sent(
        self,
        round_: Round,
        store: MemoryStore,
        client: str,
        update: Any,
        samples: Any,
        error: type[Exception],
        reason: str,
    ) -> None:
        with pytest.raises(error, match=reason):
            round_.submit(client, update, samples)
        assert list(store.objects) == ["rounds/r1/spec.json"]

    def test_of_another_layout_is_not_sent(self, round_: Round, store: MemoryStore) -> None:
        spec = SPEC | {"layout": {"w": {"dtype": "F32", "shape": [2]}}}
        store.put_json("rounds/r1/spec.json", OPENED | {"spec": spec})
        with pytest.raises(UpdateError, match=r"F32 \[6\], not F32 \[2\]"):
            round_.submit("a", TENSORS, samples=3)

    def test_of_some_layers_is_not_sent_as_a_whole_one(
        self, round_: Round, store: MemoryStore
    ) -> None:
        layout = {name: {"dtype": "F32", "shape": [6]} for name in ("w", "x")}
        spec = SPEC | {"layout": layout, "rule": {"name": "fedavg"}}
        store.put_json("rounds/r1/spec.json", OPENED | {"spec": spec})
        with pytest.raises(
            UpdateError, match=r"has 1 of the 2 tensors .* partial=True \(--partial"
        ):
            round_.submit("a", TENSORS, samples=3)
        round_.submit("a", TENSORS, samples=3, partial=True)

    @pytest.mark.parametrize("is_file", [False, True])
    @pytest.mark.parametrize("partial", [False, True])
    def test_in_the_order_of_the_rounds_layout(
        self,
        stack: MemoryStack,
        store: MemoryStore,
        tmp_path: Path,
        *,
        is_file: bool,
        partial: bool,
    ) -> None:
        names = ["c", "a", "d", "b"]
        layout = {name: {"dtype": "F32", "shape": [2, 3]} for name in names}
        spec = SPEC | {"layout": layout, "rule": {"name": "fedavg"}}
        store.put_json("rounds/r2/spec.json", OPENED | {"spec": spec})
        sent = sorted(set(names) - ({"d"} if partial else set()))
        update = {name: np.full((2, 3), ord(name), "f4") for name in sent}
        path = tmp_path / "update.safetensors"
        path.write_bytes(reference.encode(update, {"num_samples": "3", "more": "of it"}))
        given: Any = path if is_file else update
        for _ in range(2):
            Round(stack, "r2").submit("a", given, 3, partial=partial)
        blob = store.objects["rounds/r2/updates/a.safetensors"]
        assert list(reference.decode(blob)) == [name for name in names if name in update]
        for name, tensor in reference.decode(blob).items():
            assert tensor.tobytes() == update[name].tobytes()
        if is_file:
            assert b'"more":"of it"' in blob

    def test_to_no_round(self, stack: MemoryStack) -> None:
        with pytest.raises(RoundNotFoundError, match="'nope'"):
            Round(stack, "nope").submit("a", TENSORS, samples=3)

    def test_to_a_round_that_has_ended(self, round_: Round, store: MemoryStore) -> None:
        store.put_json(
            round_.keys.manifest, {"status": "failed", "error": "E", "cause": "nobody came"}
        )
        with pytest.raises(RoundStateError, match="has ended"):
            round_.submit("a", TENSORS, samples=3)

    def test_after_planning_only_a_repetition_is_accepted(
        self, round_: Round, store: MemoryStore
    ) -> None:
        round_.submit("a", TENSORS, samples=3)
        counted = store.etags[round_.keys.update("a")]
        store.put_json(round_.keys.plan, plan_json({"a": counted}))
        round_.submit("a", TENSORS, samples=3)
        with pytest.raises(RoundStateError, match="planned"):
            round_.submit("a", TENSORS, samples=4)
        with pytest.raises(RoundStateError, match="planned"):
            round_.submit("b", TENSORS, samples=3)

    def test_a_residual_is_kept_by_a_repetition_if_the_program_died_before(
        self, round_: Round, store: MemoryStore
    ) -> None:
        store.put_json(round_.keys.spec, OPENED | {"spec": SPEC | {"codecs": ["int8"]}})
        update = {"w": np.linspace(-1, 1, 1000, dtype="f4")}
        # It died when S3 had the update, and its residual was as before.
        round_.submit("a", update, samples=3, codec=Compression("int8", residual=Residual()))
        store.put_json(round_.keys.plan, plan_json({"a": store.etags[round_.keys.update("a")]}))
        residual = Residual()
        for _ in range(2):
            round_.submit("a", update, samples=3, codec=Compression("int8", residual=residual))
            assert residual.norm > 0

    def test_to_a_group_that_an_eager_round_still_awaits(
        self, round_: Round, store: MemoryStore
    ) -> None:
        terms = {"clients": list("abcd"), "topology": "lambda_fl", "eager": True}
        store.put_json(round_.keys.spec, OPENED | {"spec": terms | {"weights": "counts"}})
        store.put_json(round_.keys.plan, plan_json({}, awaited=[1]))
        round_.submit("c", TENSORS, samples=3)
        assert round_.keys.update("c") in store.objects
        with pytest.raises(RoundStateError, match="planned"):
            round_.submit("a", TENSORS, samples=3)


class TestWaiting:
    def test_returns_the_manifest(self, round_: Round, store: MemoryStore) -> None:
        store.put_json(round_.keys.manifest, {"status": "completed"})
        assert round_.wait() == {"status": "completed"}

    def test_raises_the_cause(self, round_: Round, store: MemoryStore) -> None:
        store.put_json(
            round_.keys.manifest, {"status": "failed", "error": "E", "cause": "nobody came"}
        )
        with pytest.raises(RoundFailed, match="nobody came"):
            round_.wait()

    def test_sees_that_the_execution_died(self, round_: Round, stack: MemoryStack) -> None:
        stack.executions["r1"] = execution("ABORTED")
        with pytest.raises(RoundFailed, match="ABORTED"):
            round_.wait()

    def test_gives_up(self, round_: Round) -> None:
        seen: list[str] = []
        with pytest.raises(WaitTimeoutError, match=r"within 0\.05 s"):
            round_.wait(timeout=0.05, progress=lambda status: seen.append(status["state"]))
        assert set(seen) == {"awaiting"}

    def test_for_no_round(self, stack: MemoryStack) -> None:
        with pytest.raises(RoundNotFoundError):
            Round(stack, "nope").wait()


class TestStatus:
    def test_while_awaiting(self, round_: Round, store: MemoryStore) -> None:
        round_.submit("a", TENSORS, samples=3)
        store.put_json(round_.keys.rejection("a"), {"client": "a", "reason": "bad", "late": False})
        status = round_.status()
        assert status["state"] == "awaiting"
        assert [update["client"] for update in status["arrived"]] == ["a"]
        assert status["missing"] == ["b"]
        assert status["rejected"] == [{"client": "a", "reason": "bad"}]
        assert round_.rejection("a") == "bad"
        assert round_.rejection("b") is None

    def test_while_aggregating(self, round_: Round, store: MemoryStore) -> None:
        store.put_json(round_.keys.plan, plan_json({"a": "x"}))
        store.put_json(round_.keys.task_report(0, 1), {})
        store.put_json(round_.keys.rejection("b"), {"client": "b", "reason": "slow", "late": True})
        status = round_.status()
        assert (status["state"], status["tasks_done"]) == ("aggregating", 1)
        assert status["plan"]["contributors"] == ["a"]
        assert status["rejected"] == [{"client": "b", "reason": "NaN"}]
        assert status["late"] == [{"client": "b", "reason": "slow"}]

    def test_reports_of_an_attempt_given_up_do_not_count(
        self, round_: Round, store: MemoryStore
    ) -> None:
        store.put_json(round_.keys.task_report(0, 0), {})
        store.put_json(round_.keys.plan, plan_json({"a": "x"}, planned_at="2999-01-01T00:00:00Z"))
        assert round_.status()["tasks_done"] == 0

    def test_of_no_round(self, stack: MemoryStack) -> None:
        with pytest.raises(RoundNotFoundError):
            Round(stack, "nope").status()


class TestFetching:
    @pytest.fixture
    def finished(self, round_: Round, store: MemoryStore) -> Round:
        layout, views = pack(TENSORS)
        data = encode_header(layout, {}) + b"".join(views)
        store.put_bytes(round_.keys.result, data)
        update = {"key": round_.keys.result, "version": "", "nbytes": len(data)}
        update["etag"] = store.etags[round_.keys.result]
        update["crc64nvme"] = store.checksums[round_.keys.result]
        store.put_json(round_.keys.manifest, {"status": "completed", "update": update})
        return round_

    def test_arrays(self, finished: Round) -> None:
        np.testing.assert_array_equal(finished.fetch()["w"], TENSORS["w"])

    def test_a_file(self, finished: Round, store: MemoryStore, tmp_path: Path) -> None:
        path = tmp_path / "update.safetensors"
        assert finished.fetch(path) == path
        assert path.read_bytes() == store.objects[finished.keys.result]
        assert list(tmp_path.iterdir()) == [path]

    def test_a_failure_leaves_no_file(
        self, finished: Round, store: MemoryStore, tmp_path: Path
    ) -> None:
        store.etags[finished.keys.result] = '"other"'
        path = tmp_path / "update.safetensors"
        path.write_text("the one before")
        with pytest.raises(Exception, match=r"update\.safetensors"):
            finished.fetch(path)
        assert path.read_text() == "the one before"
        assert list(tmp_path.iterdir()) == [path]

    def test_the_manifest_says_which_bytes_are_the_average(
        self, finished: Round, store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """S3 is not asked, so that a fetch costs no further request."""
        key = finished.keys.result
        store.objects[key] = store.objects[key][:-1] + b"x"
        store.checksums[key] = crc64_text(store.objects[key])
        monkeypatch.setattr(store, "checksum", None)
        with pytest.raises(DigestError, match=r"update\.safetensors: .* fetch it again"):
            finished.fetch(tmp_path / "f")
        with pytest.raises(DigestError):
            finished.fetch()

    def test_fetch_before_the_end_is_rejected(self, round_: Round) -> None:
        with pytest.raises(RoundStateError, match="has not ended"):
            round_.fetch()


class TestTickets:
    def test_are_for_the_round_and_the_client(self, round_: Round) -> None:
        ticket = round_.ticket("a", expires=60, max_bytes=5000)
        assert (ticket.round_id, ticket.client, ticket.max_bytes) == ("r1", "a", 5000)
        assert "/rounds/r1/updates/a.safetensors?X-Amz-Expires=60" in next(iter(ticket.upload))

    def test_rejects_tickets_for_unexpected_clients(self, round_: Round) -> None:
        with pytest.raises(UpdateError, match="'eve' is not expected"):
            round_.ticket("eve", max_bytes=5000)

    def test_need_a_size(self, round_: Round) -> None:
        with pytest.raises(TicketError, match="no layout to go by: give max_bytes"):
            round_.ticket("a")

    def test_default_size_is_that_of_the_rounds_layout(
        self, round_: Round, store: MemoryStore
    ) -> None:
        layout = {"w": {"dtype": "F32", "shape": [6]}}
        store.put_json("rounds/r1/spec.json", OPENED | {"spec": SPEC | {"layout": layout}})
        content = TensorContent(TENSORS, 2**53)
        assert content.nbytes <= round_.ticket("a").max_bytes <= content.nbytes + 64 * 1024

    def test_need_a_round(self, stack: MemoryStack) -> None:
        with pytest.raises(RoundNotFoundError):
            Round(stack, "nope").ticket("a", max_bytes=5000)


# ------------------------------------------------------------------ before anything is sent


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_nan_is_found_before_it_is_sent(
    store: MemoryStore, round_: Round, tmp_path: Path, dtype: Any, value: float
) -> None:
    tensors = {"n": np.arange(3), "w": np.zeros(700_000, dtype)}
    tensors["w"][600_001] = value
    path = tmp_path / "u"
    path.write_bytes(b"".join(_pieces(tensors)))
    before = set(store.objects)
    for update in (tensors, path):
        with pytest.raises(UpdateError, match="'w' holds a NaN or an infinity at element 600001"):
            round_.submit("a", update, 3)
    assert set(store.objects) == before


def _pieces(tensors: dict[str, Any]) -> list[Any]:
    layout, views = pack(tensors)
    return [encode_header(layout, {}), *views]


def test_a_fifo_is_not_waited_for(round_: Round, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="fifo is a FIFO or a pipe, not a regular file; write it"):
        round_.submit("a", tmp_path / "fifo", 3)
