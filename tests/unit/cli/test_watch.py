"""``gradshard watch``."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from gradshard.cli import watch
from gradshard.client.federation import Federation
from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.costs.round_projection import project
from gradshard_core.costs.workload import Workload
from tests.unit.cli.commands import REPORT, Run, assert_one_line, drawn
from tests.unit.client.test_federation import OPENED, execution, plan_json
from tests.unit.fakes import MemoryStack, MemoryStore


def test_watch_ends_well_with_the_round(run: Run, finished: MemoryStore) -> None:
    result = run("watch", "r1")
    assert result.exit_code == 0
    assert result.stdout == (
        "completed: 0 of 2 updates in (1 rejected), 2 of 2 tasks done, 24 B read\n"
        "1 averaged, 1 rejected, 0 missing\n"
    )


@pytest.mark.parametrize(
    ("clients", "text"),
    [
        (["a", "b"], "1 of 2 updates in, waiting for b"),
        (["a", "b", "c"], "1 of 3 updates in, waiting for b and c"),
        ([*"abcdefgh"], "1 of 8 updates in, waiting for b, c, d, e, f and 2 more"),
        (3, "1 of 3 updates in, waiting for 2 more clients"),
    ],
)
def test_watch_names_the_missing_clients(
    run: Run,
    store: MemoryStore,
    stack: MemoryStack,
    monkeypatch: pytest.MonkeyPatch,
    clients: Any,
    text: str,
) -> None:
    terms = {"clients": clients, "min_clients": 1, "timeout": 600}
    store.put_json("rounds/r1/spec.json", OPENED | {"spec": terms})
    store.put_bytes("rounds/r1/updates/a.safetensors", b"1234")
    assert text.replace(",", "", 1) in " ".join(TestWatchOnATerminal.seen(stack).split())
    looks = iter(["RUNNING", "FAILED"])
    monkeypatch.setattr(stack, "execution", lambda _: execution(next(looks)))
    result = run("watch", "r1")
    assert result.stdout == f"awaiting: {text}\n"


def test_watch_fails_with_the_round(run: Run, opened: MemoryStore, stack: MemoryStack) -> None:
    stack.executions["r1"] = execution("FAILED", cause="it burnt")
    assert "rounds/r1/manifest.json" not in opened.objects
    assert_one_line(run("watch", "r1"), "it burnt", code=3)


class TestWatchOnATerminal:
    def test_shows_the_latest_arrivals_rejections_pace_and_cost(
        self, opened: MemoryStore, stack: MemoryStack
    ) -> None:
        projected = project(Workload(2**20, ((7,),)), 4, LambdaConfig(512, "x86_64")).to_json()
        clients = {f"c{n}": "x" for n in range(7)}
        opened.put_json(
            "rounds/r1/plan.json", plan_json(clients, shards=4, nbytes=2**20, projected=projected)
        )
        for client in clients:
            opened.put_bytes(f"rounds/r1/updates/{client}.safetensors", b"1234")
        for number in range(2):
            opened.put_json(
                f"rounds/r1/task-reports/0/0000{number}.json", REPORT | {"task": number}
            )
        reason = "tensor '\x1b[2J' is odd"
        record = {"client": "eve", "reason": reason, "late": False}
        opened.put_json("rounds/r1/rejections/eve.json", record)
        seen = self.seen(stack)
        for text in (
            "r1 ", "aggregating, open for 1 min", "7 of 2 updates in (2 rejected)",
            "2 of 4 tasks done", "3.7 MB of 7.3 MB read, 122.3 kB/s", "time left", "cost so far",
            "c6", r"tensor '\x1b[2J' is odd",
        ):  # fmt: skip
            assert text in seen, text
        # Five of the seven.
        assert seen.count("4 B") == 5

    def test_awaiting_says_how_long_the_deadline_is_off(
        self, opened: MemoryStore, stack: MemoryStack
    ) -> None:
        assert "awaiting, open for 1 min 30 s, 8 min 30 s to the deadline" in self.seen(stack)

    def test_fits_a_narrow_terminal(self, opened: MemoryStore, stack: MemoryStack) -> None:
        for client in "ab":
            opened.put_bytes(f"rounds/r1/updates/{client}.safetensors", b"1234")
        seen = self.seen(stack, width=40)
        assert "…" not in seen
        assert "2 of 2 updates" in seen

    @staticmethod
    def seen(stack: MemoryStack, width: int = 100) -> str:
        connected = Federation()
        connected.stack = stack
        observer = connected.round("r1").status_poller()
        status = observer.poll(check_execution=False)
        now = datetime.fromisoformat(str(OPENED["opened_at"])) + timedelta(seconds=90)
        return drawn(watch.View(observer, connected).render(status, now), width)
