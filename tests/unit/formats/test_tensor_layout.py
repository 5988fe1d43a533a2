"""What aggregation asks of a layout."""

import pytest

from gradshard_core.formats.tensor_layout import Layout, Run, Runs, Span


def test_spans_merge_neighbours_and_skip_the_empty() -> None:
    packed = Layout.pack(
        [
            ("a", "F32", (2,)),
            ("b", "F32", ()),
            ("none", "I8", (0,)),
            ("c", "F32", (1,)),
            ("d", "I8", (3,)),
        ]
    )
    assert packed.spans == (Span("F32", 0, 16), Span("I8", 16, 19))


def test_one_run_for_the_same_order_and_several_for_another() -> None:
    mine = Layout.pack([("a", "F32", (2,)), ("b", "F32", (1,)), ("c", "I8", (3,))])
    theirs = Layout.pack([("b", "F32", (1,)), ("c", "I8", (3,)), ("a", "F32", (2,))])
    assert mine.runs_in(mine, 100) == Runs((0, 15, 100))
    assert mine.runs_in(theirs, 100) == Runs((0, 8, 107, 8, 15, 100))
    assert list(mine.runs_in(theirs, 100)) == [Run(0, 8, 107), Run(8, 15, 100)]


def test_runs_give_the_ranges_of_a_part_of_the_layout() -> None:
    runs = Runs((0, 8, 107, 8, 15, 100, 20, 30, 115))
    assert list(runs.ranges(0, 30)) == [(107, 115), (100, 107), (115, 125)]
    assert list(runs.ranges(3, 10)) == [(110, 115), (100, 102)]
    assert list(runs.ranges(8, 20)) == [(100, 107)]
    assert not runs.are_in_order
    assert Runs((0, 8, 100, 20, 30, 108)).are_in_order
    assert Runs(runs.to_json()) == runs
    with pytest.raises(ValueError, match="4 numbers are no runs"):
        Runs((1, 2, 3, 4))


def test_difference_names_the_first_tensor() -> None:
    mine = Layout.pack([("a", "F32", (2,)), ("b", "F32", (1,))])
    assert mine.difference(Layout.pack([("b", "F32", (1,)), ("a", "F32", (2,))])) is None
    assert mine.difference(Layout.pack([("b", "F32", (1,))])) == "tensor 'a' is missing"
    assert mine.difference(Layout.pack([("a", "F16", (2,)), ("b", "F32", (1,))])) == (
        "tensor 'a' is F16 [2], not F32 [2]"
    )
    extra = Layout.pack([("a", "F32", (2,)), ("b", "F32", (1,)), ("c", "I8", ())])
    assert mine.difference(extra) == "tensor 'c' is not in the round's layout"
