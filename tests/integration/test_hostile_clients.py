"""What clients send that is too much: at once, too long, or gone again."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gradshard_core.errors import PlanError
from gradshard_core.formats.headers import FIRST_READ_BYTES
from gradshard_core.rounds import arrivals
from gradshard_core.rounds.collect_update import collect_update
from gradshard_core.rounds.quorum import QuorumError
from tests import reference
from tests.integration.by_hand import Round


def test_a_header_of_100_mb_is_rejected_by_number(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=["a", "b"], min_clients=1)
    round_.submit("a", {"w": np.ones(1, "f4")})
    for nbytes, reason in (
        (99_000_000, "header of 99000000 bytes is over the 16777216 that gradshard reads"),
        (101_000_000, "would announce a header of 101000000 bytes, over the format's 100000000"),
    ):
        etag = round_.upload("b", nbytes.to_bytes(8, "little") + bytes(nbytes))
        round_.store.meter.take()
        outcome = collect_update(round_.store, round_.keys.update("b"), etag)
        assert round_.store.meter.take().bytes_read < 2 * FIRST_READ_BYTES
        assert reason in outcome["reason"]
    round_.store.delete_versions(round_.keys.update("b"))
    assert round_.go() == {"status": "completed"}


def test_a_thousand_updates_at_once(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=1000)
    updates = [{"w": np.random.default_rng(i).standard_normal(9, np.float32)} for i in range(1000)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: round_.submit(f"c{i:04}", updates[i], i + 1), range(1000)))
    assert round_.go() == {"status": "completed"}
    manifest = round_.manifest()
    assert (len(manifest["contributors"]), manifest["rejected"]) == (1000, [])
    tree = [int(size) for size in manifest["order"].removeprefix("tree:").split(",")]
    expected = reference.average(updates, range(1, 1001), tree=tree)
    assert reference.decode(round_.result())["w"].tobytes() == expected["w"].tobytes()


@pytest.mark.parametrize("name", ["ä", "..", "a%2Fb", "a b", "x" * 255, "a/b", ".a", "a\nb", "\\"])
@pytest.mark.parametrize("clients", [2, ["a", "b"]], ids=["a number", "ids"])
def test_an_object_without_a_clients_name_is_ignored(
    open_round: Callable[..., Round], clients: int | list[str], name: str
) -> None:
    """Whoever may write to the bucket chooses the key, and counts neither as arrived nor as bad."""
    round_ = open_round(clients=clients, min_clients=2)
    round_.submit("a", {"w": np.ones(1, "f4")})
    key = f"{round_.keys.updates}{name}.safetensors"
    round_.store.put_bytes(key, b"of nobody")
    assert collect_update(round_.store, key, "etag")["status"] == "ignored"
    assert arrivals.arrived(round_.store, round_.keys) == ["a"]
    round_.submit("b", {"w": np.ones(1, "f4")})
    assert round_.go() == {"status": "completed"}
    assert [c["client"] for c in round_.manifest()["contributors"]] == ["a", "b"]
    assert round_.manifest()["rejected"] == []


def test_a_name_of_megabytes_does_not_stand_in_the_cause(
    open_round: Callable[..., Round],
) -> None:
    """The state machine carries 256 KiB; what exceeds it would fail with no cause at all."""
    named = {"n" * 1_000_000: np.ones(1, "f4")}
    round_ = open_round(clients=["a", "b", "c"], min_clients=3)
    round_.submit("a", {"w": np.ones(1, "f4")})
    round_.submit("b", named)
    with pytest.raises(PlanError, match="no layout is that of more than half") as caught:
        round_.plan()
    assert len(str(caught.value)) < 1000
    round_.submit("c", {"w": np.ones(1, "f4")})
    with pytest.raises(QuorumError) as under:
        round_.plan()
    assert len(str(under.value)) < 1000
    assert len(round_.reason("b")) < 500
