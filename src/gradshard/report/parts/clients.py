"""Clients: the outcome, the arrival and the weight of each update."""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from gradshard.report.charts import Chart, axis, bins, dots, line, mark, time_axis
from gradshard.report.markup import Markup, joined, named, tag
from gradshard.report.parts.part import (
    MAX_POINTS,
    ONE_BY_ONE,
    Part,
    format_moment,
    seconds_between,
    shorten,
)
from gradshard.report.round_facts import COUNTED, LATE, REJECTED, UNUSED, WAITING, Facts
from gradshard.report.row_limits import Detail
from gradshard.report.tables import NUMBER, TIME, Cell, Column, measured, table
from gradshard.utils.text import format_duration, format_size

MISSING: Final = "missing"

OUTCOMES: Final = {
    REJECTED: "bad",
    LATE: "c1",
    MISSING: "bad",
    WAITING: "c3",
    UNUSED: "mute",
    COUNTED: "c0",
}
"""The states of a client's update with their colours, the most urgent first."""


class _Client(NamedTuple):
    """A row of the table."""

    client: str
    outcome: str
    arrived_at: str | None = None
    nbytes: int | None = None
    samples: int | None = None
    weight: float | None = None
    codec: str = ""
    reason: str = ""


def clients_part(facts: Facts, detail: Detail) -> Part:
    """Return the part about the clients of a round."""
    clients = _clients(facts)
    content = joined(
        _arrivals(facts),
        _table(facts, clients, detail) if clients else tag("p", "No client is known yet."),
    )
    return Part("clients", "Clients", _summary(facts, clients), content)


def _summary(facts: Facts, clients: Sequence[_Client]) -> str:
    outcomes = [client.outcome for client in clients]
    counts = [
        f"{outcomes.count(outcome):,} {outcome}"
        for outcome in OUTCOMES
        if outcome in outcomes and outcome != COUNTED
    ]
    counted = f"{len(facts['contributors']):,} of {facts['expected']:,} {_word(COUNTED, facts)}"
    return " · ".join([counted, *counts, f"quorum {facts['min_clients']:,}"])


def _word(outcome: str, facts: Facts) -> str:
    """Return an outcome as a word. The planned updates of a failed round were not averaged."""
    return "planned" if outcome == COUNTED and facts["state"] == "failed" else outcome


def _clients(facts: Facts) -> list[_Client]:
    """Return a row for each client and outcome, with the outcomes in the order of OUTCOMES."""
    uploads = {(upload["client"], upload["fate"]): upload for upload in facts["uploads"]}
    rows = [
        *_refused(facts["rejected"], REJECTED, uploads),
        *_refused(facts["late"], LATE, uploads),
        *(_Client(client, MISSING) for client in facts["missing"]),
        *(
            _Client(upload["client"], fate, upload["arrived_at"], upload["nbytes"])
            for fate in (WAITING, UNUSED)
            for upload in facts["uploads"]
            if upload["fate"] == fate
        ),
    ]
    return rows + [
        _Client(
            entry["client"],
            COUNTED,
            entry["arrived_at"],
            entry["nbytes"],
            entry["samples"],
            entry["weight"],
            _codec(entry),
        )
        for entry in facts["contributors"]
    ]


def _codec(entry: Facts) -> str:
    """Return the codec of a compressed update, and the error that its client stated."""
    if entry["codec"] is None:
        return ""
    error = entry["codec_error"]
    return entry["codec"] if error is None else f"{entry['codec']}, error {error:.2g}"


def _refused(
    entries: Sequence[Facts], outcome: str, uploads: dict[tuple[str, str], Facts]
) -> Iterable[_Client]:
    for entry in entries:
        upload = uploads.get((entry["client"], outcome), {})
        yield _Client(
            entry["client"],
            outcome,
            upload.get("arrived_at"),
            upload.get("nbytes"),
            reason=entry["reason"],
        )


def _table(facts: Facts, clients: Sequence[_Client], detail: Detail) -> Markup:
    """Return the table of clients, without columns that would be empty."""
    opened_at = None if facts["updates_from"] else facts["opened_at"]
    after = [
        None if at is None or opened_at is None else max(0.0, seconds_between(opened_at, at))
        for at in (client.arrived_at for client in clients)
    ]
    longest = max((s for s in after if s is not None), default=0.0)
    heaviest = max((client.weight or 0.0 for client in clients), default=0.0)
    columns = [
        Column("client"),
        Column("outcome"),
        Column("arrived after", NUMBER),
        Column("arrived at", TIME),
        Column("size", NUMBER),
        Column("samples", NUMBER),
        Column("weight", NUMBER),
        Column("codec"),
        Column("reason"),
    ]
    rows: list[list[object]] = [
        [
            named(client.client),
            tag("span", _word(client.outcome, facts), class_=f"outcome {OUTCOMES[client.outcome]}"),
            measured("" if s is None else format_duration(s), s, longest, OUTCOMES[client.outcome]),
            _arrival(client, facts["opened_at"]),
            "" if client.nbytes is None else format_size(client.nbytes),
            "" if client.samples is None else f"{client.samples:,}",
            measured(_weight(client), client.weight, heaviest, "c0"),
            named(client.codec) if client.codec else "",
            named(shorten(client.reason)) if client.reason else "",
        ]
        for client, s in zip(clients, after, strict=True)
    ]
    used = [n for n in range(len(columns)) if any(_is_filled(row[n]) for row in rows)]
    return table(
        "What became of each update",
        [columns[n] for n in used],
        [[row[n] for n in used] for row in rows],
        most=detail.rows,
    )


def _is_filled(cell: object) -> bool:
    return bool(cell.content if isinstance(cell, Cell) else cell)


def _arrival(client: _Client, opened_at: str | None) -> str:
    if client.arrived_at is None:
        # The client replaced the object after planning, and S3 lists the newer one.
        return "unknown" if client.outcome == COUNTED else ""
    return format_moment(client.arrived_at, since=opened_at)


def _weight(client: _Client) -> str:
    if client.outcome != COUNTED:
        return ""
    return "by layer" if client.weight is None else f"{client.weight:.5g}"


def _arrivals(facts: Facts) -> Markup:
    """Draw how many uploads there were at each time."""
    if facts["updates_from"]:
        return tag("p", "The updates were sent to round ", named(facts["updates_from"]), ".")
    uploads, opened_at = facts["uploads"], facts["opened_at"]
    if not uploads or opened_at is None:
        return tag("p", "No update has arrived.")
    after = [max(0.0, seconds_between(opened_at, upload["arrived_at"])) for upload in uploads]
    waited = facts["waited_seconds"]
    x = time_axis(max(*after, waited or 0, 1))
    y = axis(len(uploads), lambda n: f"{n:,.0f}", whole=True)
    fates = [upload["fate"] for upload in uploads]
    shapes = [line(_steps(after, x.high), x, y, "mute")]
    if waited is not None:
        shapes.append(mark(waited, x, "c2"))
    dotted = [n for n, fate in enumerate(fates) if len(uploads) <= ONE_BY_ONE or fate != COUNTED]
    for fate, style in OUTCOMES.items():
        points = [(after[n], n + 1.0) for n in dotted[:MAX_POINTS] if fates[n] == fate]
        if points:
            shapes.append(dots(points, x, y, style))
    legend = [(style, _word(fate, facts)) for fate, style in OUTCOMES.items() if fate in fates]
    if waited is not None:
        legend.append(("c2", f"planned after {format_duration(waited)}"))
    return Chart(
        "Uploads since the round was opened",
        f"The first after {format_duration(after[0])}, "
        f"the last after {format_duration(after[-1])}.",
        shapes,
        x,
        y,
        legend,
    ).html()


def _steps(after: Sequence[float], end: float) -> list[tuple[float, float]]:
    """Return the points of a line that rises by one at each upload; of many uploads, some."""
    points = [(0.0, 0.0)]
    for piece in bins(len(after), MAX_POINTS):
        n = piece[-1]
        points += [(after[n], points[-1][1]), (after[n], n + 1.0)]
    return [*points, (end, float(len(after)))]
