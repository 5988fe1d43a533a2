"""Whose layout a round has."""

import tracemalloc
from collections.abc import Mapping

import numpy as np
import pytest

from gradshard_core.errors import PlanError
from gradshard_core.formats.compressed_updates import encode_layout
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.rounds import layout_vote
from gradshard_core.rounds.layout_vote import difference
from gradshard_core.rounds.seen_layouts import SeenLayout
from tests.unit.in_memory import OPENED, Machine

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

AB = Layout.pack([("a", "F32", (2,)), ("b", "F32", (1,))])
BA = Layout.pack([("b", "F32", (1,)), ("a", "F32", (2,))])
OTHER = Layout.pack([("a", "F32", (3,)), ("b", "F32", (1,))])
WIDER = Layout.pack([("a", "F32", (2,)), ("b", "F32", (1,)), ("c", "F32", (10**9,))])
DOUBLE = Layout.pack([("a", "F64", (2,)), ("b", "F32", (1,))])
COMPOSED = Layout.pack([("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "F32", (2,))])
DECOMPOSED = Layout.pack([("cafe\N{COMBINING ACUTE ACCENT}", "F32", (2,))])


def majority(layouts: Mapping[str, Layout]) -> tuple[Layout, str]:
    distinct = {id(layout): layout for layout in layouts.values()}
    seen = {key: SeenLayout.of(layout) for key, layout in distinct.items()}
    return layout_vote.majority({c: seen[id(layout)] for c, layout in layouts.items()})


def differences(
    layouts: Mapping[str, Layout], settled: Layout, whose: str, *, partial: bool
) -> dict[str, str]:
    found = {c: difference(layouts[c], settled, whose, partial=partial) for c in layouts}
    return {client: reason for client, reason in found.items() if reason is not None}


def test_the_majority_wins_in_its_most_frequent_order() -> None:
    layouts = {"c1": BA, "c2": AB, "c3": AB, "c4": OTHER}
    layout, whose = majority(layouts)
    assert layout == AB
    assert whose == "that of 3 of the 4 updates, client 'c1' the first"
    [(client, difference)] = differences(layouts, layout, whose, partial=False).items()
    assert client == "c4"
    assert "that of 3 of the 4 updates, client 'c1' the first" in difference
    assert "tensor 'a' is F32 [3], not F32 [2]" in difference


def test_orders_that_tie_go_to_the_first_client_id() -> None:
    assert majority({"c2": AB, "c1": BA})[0] == BA
    assert majority({"c2": BA, "c1": AB})[0] == AB


def test_codecs_do_not_split_the_vote_on_the_order() -> None:
    codecs = [("topk", 4), ("topk", 10), ("int8", 0)]
    packed = [encode_layout(AB, codec, {"a": (size,)}) for codec, size in codecs]
    layouts: dict[str, Layout] = {"c1": BA, "c2": BA}
    layout, _ = majority(layouts | dict(zip(("c3", "c4", "c5"), packed, strict=True)))
    assert layout == AB


@pytest.mark.parametrize("minority", [OTHER, WIDER, DOUBLE])
def test_less_than_half_never_decide(minority: Layout) -> None:
    clients = {"a": minority, "b": minority, "c": AB, "d": AB, "e": AB}
    assert majority(clients)[0] == AB
    assert majority({"c": AB})[0] == AB


@pytest.mark.parametrize(
    ("layouts", "counts"),
    [
        (
            {"a": OTHER, "b": AB},
            "the 2 updates: 1 have the one of client 'a', and 1 that of client",
        ),
        ({"a": OTHER, "b": OTHER, "c": AB, "d": BA}, "the 4 updates: 2 have the one of client 'a'"),
        (
            {"a": OTHER, "b": OTHER, "c": AB, "d": WIDER, "e": DOUBLE},
            "5 updates: 2 have the one of",
        ),
    ],
)
def test_without_a_majority_the_round_fails_and_names_both(
    layouts: dict[str, Layout], counts: str
) -> None:
    with pytest.raises(PlanError, match=counts) as failure:
        majority(layouts)
    assert "whose tensor 'a' is F32 [2], not F32 [3]; open a round" in str(failure.value)
    assert "--layout FILE --updates-from ROUND" in str(failure.value)


def test_updates_to_a_private_round_are_not_advised_to_be_averaged_by_another(
    machine: Machine,
) -> None:
    dp = {"clip": 1.0, "noise_multiplier": 2.0, "delta": 1e-5}
    machine.open(clients=["a", "b"], min_clients=2, dp=dp)
    machine.submit("a", {"w": np.ones(1, "f4")})
    machine.submit("b", {"w": np.ones(2, "f4")})
    with pytest.raises(PlanError, match=r"to which the clients send again \(--layout FILE\)$"):
        machine.plan(OPENED)


def test_partial_updates_may_lack_tensors_and_have_no_others() -> None:
    last = Layout.pack([("b", "F32", (1,))])
    layouts = {"c1": last, "c2": WIDER, "c3": AB}
    found = differences(layouts, AB, "the model's", partial=True)
    assert found == {
        "c2": "its layout is not the round's (the model's): tensor 'c' is not in the round's layout"
    }
    assert list(differences(layouts, AB, "the model's", partial=False)) == ["c1", "c2"]


def test_names_that_read_the_same_are_shown_apart() -> None:
    layouts = {"a": COMPOSED, "b": COMPOSED, "c": DECOMPOSED}
    layout, whose = majority(layouts)
    assert layout == COMPOSED
    [difference] = differences(layouts, layout, whose, partial=False).values()
    assert r"'cafe\u0301' is there, which reads the same" in difference
    assert r"the round's is 'caf\xe9'" in difference


def test_clients_that_share_a_layout_take_no_memory_each() -> None:
    """A copy for each of 4,096 clients and 400 tensors would take half of plan_round's memory."""
    layout = Layout.pack((f"layer{i}.weight", "F32", (1,)) for i in range(1000))
    layouts = {f"c{i}": layout for i in range(1000)}
    tracemalloc.start()
    try:
        assert majority(layouts)[0] is layout
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4e6
