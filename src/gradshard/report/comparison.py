"""The comparison: one table about several rounds, with a bar in each cell."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gradshard.report.markup import Markup, joined, named, tag
from gradshard.report.parts.part import format_dollars
from gradshard.report.round_facts import Facts, compared
from gradshard.report.summary_sentence import COMPLETED, FAILED
from gradshard.report.tables import NUMBER, Column, measured, table, unknown
from gradshard.utils.text import format_duration, format_size


@dataclass(frozen=True)
class _Measure:
    """A number by which rounds are compared."""

    name: str
    title: str
    write: Callable[[float], str]


def _count(number: float) -> str:
    return f"{number:,.0f}"


_MEASURES: Final = (
    _Measure("contributors", "counted", _count),
    _Measure("rejected", "rejected", _count),
    _Measure("waited_seconds", "waited for updates", format_duration),
    _Measure("seconds", "aggregated in", format_duration),
    _Measure("bytes_read", "read by tasks", format_size),
    _Measure("dollars", "cost of 1,000, measured", format_dollars),
    _Measure("cold_starts", "cold starts", _count),
    _Measure("peak_mb", "most memory of a task", lambda n: f"{n:.0f} MB"),
)


def comparison(rounds: Sequence[Facts]) -> Markup:
    """Return the section that compares rounds."""
    entries = compared(rounds)
    most = {
        measure.name: max((entry[measure.name] or 0 for entry in entries), default=0)
        for measure in _MEASURES
    }
    return tag(
        "section",
        tag("h2", "Comparison", id="comparison"),
        table(
            "Rounds compared; each bar is relative to the largest number of its column",
            [
                Column("round"),
                Column("state"),
                *(Column(measure.title, NUMBER) for measure in _MEASURES),
            ],
            [_row(number, entry, most) for number, entry in enumerate(entries, 1)],
            fold_after=len(entries),
        ),
        aria_labelledby="comparison",
    )


def state_label(state: str) -> Markup:
    """Return a round's state as a word in its colour, with a sign if the round failed."""
    sign = tag("span", "✕ ", aria_hidden="true") if state == FAILED else ""
    return tag("span", sign, state, class_=f"state {state}")


def _row(number: int, entry: Mapping[str, Any], most: Mapping[str, float]) -> list[object]:
    style = "c0" if entry["state"] == COMPLETED else "mute"
    return [
        tag("a", named(entry["round"]), href=f"#round-{number}"),
        joined(state_label(entry["state"])),
        *(
            unknown()
            if (value := entry[measure.name]) is None
            else measured(measure.write(value), value, most[measure.name], style)
            for measure in _MEASURES
        ),
    ]
