"""Axes, drawings and their cells."""

import pytest

from gradshard.report import charts


class TestCharts:
    @pytest.mark.parametrize(
        ("high", "ticks"),
        [
            (0, ["0", "0.25", "0.5", "0.75", "1"]),
            (7, ["0", "2", "4", "6", "8"]),
            (0.03, ["0", "0.01", "0.02", "0.03"]),
            (1000, ["0", "250", "500", "750", "1000"]),
        ],
    )
    def test_an_axis_has_round_numbers_and_holds_the_highest(
        self, high: float, ticks: list[str]
    ) -> None:
        found = charts.axis(high, lambda value: f"{value:g}")
        assert [label for _, label in found.ticks] == ticks
        assert found.high >= high

    def test_an_axis_of_whole_numbers_has_no_halves(self) -> None:
        assert [tick for tick, _ in charts.axis(1, str, whole=True).ticks] == [0, 1]

    @pytest.mark.parametrize("high", [0.01, 1, 39, 41, 61, 3_600, 100_000, 604_800, 5_000_000])
    def test_an_axis_of_time_holds_the_latest(self, high: float) -> None:
        found = charts.time_axis(high)
        assert found.high >= high
        assert 2 <= len(found.ticks) <= 60

    def test_bins_hold_everything_once(self) -> None:
        for count, most in ((0, 5), (3, 5), (5, 5), (11, 5), (10_000, 120)):
            pieces = charts.bins(count, most)
            assert [n for piece in pieces for n in piece] == list(range(count))
            assert len(pieces) <= most

    def test_a_heat_map_leaves_out_missing_cells(self) -> None:
        drawn = "".join(charts.heat_map([[None, 1.0], [0.5, None]], "c0"))
        assert drawn.count("M") == 2
        assert charts.heat_map([[None]], "c0") == []
