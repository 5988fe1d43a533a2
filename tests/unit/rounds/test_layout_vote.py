"""Whose layout wins."""

from gradshard.formats.layout import Layout
from gradshard.rounds.layout_vote import agree

AB = Layout.pack([("a", "F32", (2,)), ("b", "F32", (1,))])
BA = Layout.pack([("b", "F32", (1,)), ("a", "F32", (2,))])
OTHER = Layout.pack([("a", "F32", (3,)), ("b", "F32", (1,))])


def test_the_majority_wins_in_its_most_frequent_order() -> None:
    layout, differences = agree({"c1": BA, "c2": AB, "c3": AB, "c4": OTHER}, None)
    assert layout == AB
    assert list(differences) == ["c4"]
    assert "that of 3 of the 4 updates, client 'c1' the first" in differences["c4"]
    assert "tensor 'a' is F32 [3], not F32 [2]" in differences["c4"]


def test_a_tie_goes_to_the_first_client_id() -> None:
    assert agree({"c2": AB, "c1": OTHER}, None)[0] == OTHER
    assert agree({"c2": OTHER, "c1": AB}, None)[0] == AB
    assert agree({"c2": AB, "c1": BA}, None)[0] == BA


def test_the_declared_layout_wins_over_all() -> None:
    layout, differences = agree({"c1": OTHER, "c2": OTHER, "c3": BA}, AB)
    assert layout == AB
    assert set(differences) == {"c1", "c2"}
    assert "the one the round was opened with" in differences["c1"]


def test_no_updates_no_layout() -> None:
    assert agree({}, None) == (None, {})
