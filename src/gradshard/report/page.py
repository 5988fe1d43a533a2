"""The page: one section for each round, before them what they have in common."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gradshard.report.charts import Axis, Picture, axis, columns, numbered, time_axis
from gradshard.report.facts import Facts, compared
from gradshard.report.markup import Markup, joined, named, tag
from gradshard.report.sections import Detail, round_section
from gradshard.report.style import STYLE
from gradshard.report.tables import NUMBER, Column, table
from gradshard.utils.text import format_duration, format_size, pluralize

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Nothing is run and nothing fetched, whatever a client may have called its tensors."""


@dataclass(frozen=True)
class _Measure:
    """A number by which rounds are compared."""

    name: str
    title: str
    write: Callable[[float], str]
    whole: bool = False


def _dollars(amount: float) -> str:
    return f"${1000 * amount:.3g}"


_MEASURES: Final = (
    _Measure("contributors", "Contributors", lambda n: f"{n:.0f}", whole=True),
    _Measure("rejected", "Rejected", lambda n: f"{n:.0f}", whole=True),
    _Measure("waited_seconds", "Waited for updates", format_duration),
    _Measure("seconds", "Time of aggregation", format_duration),
    _Measure("bytes_read", "Bytes read by tasks", format_size),
    _Measure("dollars", "Dollars per 1000 such rounds, as measured", _dollars),
    _Measure("cold_starts", "Cold starts", lambda n: f"{n:.0f}", whole=True),
    _Measure("peak_mb", "Most memory of a task", lambda n: f"{n:.0f} MB"),
)


def page(rounds: Sequence[Facts], *, made_at: str) -> str:
    """Return the page about some rounds.

    Parameters
    ----------
    rounds
        As :func:`gradshard.report.facts.facts_of` returns them.
    made_at
        When they were looked at.
    """
    detail = Detail.for_rounds(len(rounds))
    names = [facts["round"] for facts in rounds]
    title = f"Round {names[0]}" if len(names) == 1 else pluralize(len(names), "round")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{title} · gradshard"),
        # Nothing in it is a client's, and a style sheet is not escaped.
        tag("style", Markup(STYLE)),
    )
    body = tag(
        "body",
        tag("header", tag("h1", title), tag("p", f"gradshard report, {made_at}", class_="dim")),
        tag(
            "main",
            _comparison(rounds) if len(rounds) > 1 else "",
            *(round_section(facts, number, detail) for number, facts in enumerate(rounds, 1)),
        ),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _comparison(rounds: Sequence[Facts]) -> Markup:
    entries = compared(rounds)
    return tag(
        "section",
        tag("h2", "Compared", id="compared"),
        tag("div", *(_trend(measure, entries) for measure in _MEASURES), class_="pictures"),
        table(
            "The same in numbers",
            [
                Column("", NUMBER),
                Column("round"),
                Column("state"),
                *(Column(measure.title, NUMBER) for measure in _MEASURES),
            ],
            [
                [
                    number,
                    tag("a", named(entry["round"]), href=f"#round-{number}"),
                    entry["state"],
                    *(_written(measure, entry) for measure in _MEASURES),
                ]
                for number, entry in enumerate(entries, 1)
            ],
            fold_after=len(entries),
        ),
        aria_labelledby="compared",
    )


def _written(measure: _Measure, entry: Mapping[str, Any]) -> str:
    value = entry[measure.name]
    return "unknown" if value is None else measure.write(value)


def _axis(measure: _Measure, high: float) -> Axis:
    if measure.write is format_duration:
        return time_axis(high)
    return axis(high, lambda value: measure.write(value).replace(".0 ", " "), whole=measure.whole)


def _trend(measure: _Measure, entries: Sequence[Mapping[str, Any]]) -> Markup:
    values = [entry[measure.name] for entry in entries]
    known = [value for value in values if value is not None]
    if not known:
        return joined()
    y = _axis(measure, max(known))
    bars = [
        (value or 0, "c0", f"{n}: {entry['round']}, {_written(measure, entry)}")
        for n, (value, entry) in enumerate(zip(values, entries, strict=True), 1)
    ]
    picture = Picture(
        measure.title,
        f"From {measure.write(min(known))} to {measure.write(max(known))} in "
        f"{pluralize(len(known), 'round')}.",
        columns(bars, y),
        numbered([f"{n}" for n in range(1, len(entries) + 1)]),
        y,
        height=8,
    )
    return picture.html()
