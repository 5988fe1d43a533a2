"""What the page says of one round."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from statistics import median
from typing import Any, Final, NamedTuple, Self

from gradshard.report.charts import (
    Axis,
    Box,
    Picture,
    axis,
    bins,
    boxes,
    columns,
    dots,
    heat_map,
    level,
    line,
    numbered,
    time_axis,
)
from gradshard.report.facts import COUNTED, LATE, REJECTED, UNUSED, WAITING, Facts
from gradshard.report.markup import Markup, joined, named, tag
from gradshard.report.tables import NUMBER, TIME, Column, facts_table, table
from gradshard.utils.text import format_duration, format_size, pluralize

ONE_BY_ONE: Final = 64
"""More than so many tasks or uploads are drawn together."""

MOST_POINTS: Final = 240
"""Of a line."""

MOST_CELLS: Final = 1_000
"""A heat map of more is not written out, cell by cell."""

MOST_REASON: Final = 1_000
"""Characters of a reason: one may list every client."""

COLORS: Final = ("c0", "c1", "c2", "c3")

FATES: Final = {COUNTED: "c0", REJECTED: "bad", LATE: "c1", WAITING: "c3", UNUSED: "mute"}

PARTS: Final = {
    "lambda": "Lambda, tasks",
    "s3_aggregators": "S3 requests of tasks",
    "s3_clients": "S3 requests of clients",
    "requests": "Lambda requests",
    "step_functions": "Step Functions",
    "round": "Opening, collecting, planning",
    "events": "Events",
    "starts": "Cold starts",
}


class Detail(NamedTuple):
    """How much is said of a round: less where there are many.

    Parameters
    ----------
    rows
        Of a table.
    bars
        Of a picture, and rows and columns of a heat map.
    """

    rows: int
    bars: int

    @classmethod
    def for_rounds(cls, number: int) -> Self:
        """Return what keeps the page at a megabyte or two."""
        return cls(max(20, 2_000 // (number + 1)), max(30, 120 - 5 * number))


def round_section(facts: Facts, number: int, detail: Detail) -> Markup:
    """Return all that is said of a round."""
    heading = f"round-{number}"
    return tag(
        "section",
        tag(
            "div",
            tag("h2", "Round ", named(facts["round"]), id=heading),
            tag("span", facts["state"], class_=f"state {facts['state']}"),
            class_="head",
        ),
        _cause(facts),
        _tiles(facts),
        tag("h3", "What it was"),
        _terms(facts),
        tag("h3", "Who took part"),
        _people(facts, detail),
        tag("h3", "When"),
        _uploads(facts),
        _gantt(facts),
        *_tasks(facts, detail),
        *_layers(facts, detail),
        *_cost(facts),
        class_="round",
        aria_labelledby=heading,
    )


def _cause(facts: Facts) -> Markup:
    if facts["cause"] is None:
        return Markup("")
    kind = f"{facts['error']}: " if facts["error"] else ""
    return tag("p", tag("strong", "It failed. "), kind, named(_cut(facts["cause"])), class_="cause")


def _cut(reason: str) -> str:
    if len(reason) <= MOST_REASON:
        return reason
    return f"{reason[:MOST_REASON]}… ({len(reason) - MOST_REASON:,} more characters)"


def _tiles(facts: Facts) -> Markup:
    tiles = [
        tag("div", tag("dt", title), tag("dd", value, tag("small", note)))
        for title, value, note in _summary(facts)
    ]
    return tag("dl", *tiles, class_="tiles")


def _summary(facts: Facts) -> Iterable[tuple[str, str, str]]:
    totals = facts["totals"]
    rejected = f", {len(facts['rejected'])} rejected" if facts["rejected"] else ""
    yield (
        "Contributors",
        f"{len(facts['contributors']):,} of {facts['expected']:,}",
        f"quorum {facts['min_clients']:,}{rejected}",
    )
    if facts["seconds"] is not None:
        waited = facts["waited_seconds"]
        note = "" if waited is None else f"after {format_duration(waited)} of waiting"
        yield "Aggregation", format_duration(facts["seconds"]), note
    if facts["tasks_planned"]:
        note = f"M = {facts['shards']:,}"
        yield "Tasks", f"{facts['tasks_done']:,} of {facts['tasks_planned']:,}", note
    if facts["nbytes"] is not None:
        yield "Update", format_size(facts["nbytes"]), pluralize(facts["tensors"], "tensor")
    if totals:
        yield "Read", format_size(totals["bytes_read"]), pluralize(totals["gets"], "GET")
        needed = facts["projected"].get("needed_mb")
        note = "" if needed is None else f"{needed:.0f} MB projected"
        yield "Most memory", f"{totals['peak_mb']:.0f} MB", note
        yield (
            "Cold starts",
            f"{totals['cold_starts']:,}",
            f"of {pluralize(len(facts['tasks']), 'task')}",
        )
    measured = facts["dollars"]["measured"]
    if measured:
        yield "Cost, per 1000 rounds", _dollars(measured["total"]), "as measured, at AWS's prices"


def _terms(facts: Facts) -> Markup:
    groups = [f"{pluralize(len(sizes), 'group')} of {_range(sizes)}" for sizes in facts["groups"]]
    rows: list[tuple[str, object]] = [
        ("topology", facts["topology"]),
        ("order of additions", facts["order"] or "the topology's own"),
        ("rule", facts["rule"]),
        ("weights", facts["weights"]),
        ("M, shards", "not planned" if facts["shards"] is None else f"{facts['shards']:,}"),
        ("levels", "; ".join(groups) or "not planned"),
        ("planned", pluralize(facts["attempts"], "time")),
    ]
    times = ("opened_at", "deadline_at", "planned_at", "finished_at")
    rows += [(n.replace("_", " "), _moment(facts[n])) for n in times if facts[n] is not None]
    if facts["updates_from"]:
        rows.append(("updates of", tag("span", "round ", named(facts["updates_from"]))))
    if model := facts["model"]:
        optimizer = model["optimizer"]["optimizer"]
        made = f"version {model['version']} of {model['model']}, by {optimizer}"
        rows.append(("model", named(made)))
    rows += [("note", named(note)) for note in facts["notes"]]
    return facts_table("Terms and times", rows)


def _range(sizes: Sequence[int]) -> str:
    least, most = min(sizes), max(sizes)
    return f"{most}" if least == most else f"{least} to {most}"


def _moment(written: str | None) -> str:
    if written is None:
        return "unknown"
    return f"{datetime.fromisoformat(written):%Y-%m-%d %H:%M:%S %Z}"


def _people(facts: Facts, detail: Detail) -> Markup:
    contributors = facts["contributors"]
    return joined(
        _weights(contributors, detail) if contributors else tag("p", "No update counts."),
        _reasons("Rejected", facts["rejected"], detail),
        _reasons("Too late, or replaced after planning", facts["late"], detail),
        _missing(facts["missing"], detail),
    )


def _weights(contributors: Sequence[Facts], detail: Detail) -> Markup:
    rows = [
        [
            named(entry["client"]),
            f"{entry['samples']:,}",
            "by layer" if entry["weight"] is None else f"{entry['weight']:.5g}",
            format_size(entry["nbytes"]),
            _moment(entry["arrived_at"]),
        ]
        for entry in contributors
    ]
    listing = table(
        "Contributors",
        [
            Column("client"),
            Column("samples", NUMBER),
            Column("weight", NUMBER),
            Column("size", NUMBER),
            Column("arrived", TIME),
        ],
        rows,
        most=detail.rows,
    )
    weights = [entry["weight"] for entry in contributors if entry["weight"] is not None]
    if len(weights) < 2:
        return listing
    y = axis(max(weights), lambda value: f"{value:g}")
    names = [entry["client"] for entry in contributors]
    picture = _bars(
        "Weight by client, of every layer",
        f"{len(weights)} weights, from {min(weights):.4g} to {max(weights):.4g}.",
        [(value, "c0", f"{n}: {value:.5g}") for n, value in zip(names, weights, strict=True)],
        y,
        "client",
        detail,
    )
    return joined(picture, listing)


def _bars(
    title: str,
    description: str,
    values: Sequence[tuple[float, str, str]],
    y: Axis,
    thing: str,
    detail: Detail,
    extra: Sequence[Markup] = (),
    legend: Sequence[tuple[str, str]] = (),
) -> Markup:
    """Draw a bar for each value, style and hint; of many, the largest of each stretch."""
    count = len(values)
    pieces = bins(count, detail.bars)
    drawn = [max((values[n] for n in piece), key=lambda v: v[0]) for piece in pieces]
    if len(pieces) < count:
        title += f" (the largest of {-(-count // len(pieces))} in a row)"
    numbers = numbered(
        [
            f"{thing} {piece[0] + 1:,}" if not i else f"{piece[0] + 1:,}"
            for i, piece in enumerate(pieces)
        ]
    )
    shapes = [*columns(drawn, y), *extra]
    return Picture(title, description, shapes, numbers, y, legend).html()


def _reasons(title: str, rejections: Sequence[Facts], detail: Detail) -> Markup:
    if not rejections:
        return Markup("")
    rows = [[named(entry["client"]), named(_cut(entry["reason"]))] for entry in rejections]
    return table(title, [Column("client"), Column("reason")], rows, most=detail.rows)


def _missing(missing: Sequence[str], detail: Detail) -> Markup:
    if not missing:
        return Markup("")
    rows = [[named(client)] for client in missing]
    return table("Sent nothing", [Column("client")], rows, most=detail.rows)


def _uploads(facts: Facts) -> Markup:
    if facts["updates_from"]:
        return tag("p", "Its updates were sent to round ", named(facts["updates_from"]), ".")
    uploads, opened_at = facts["uploads"], facts["opened_at"]
    if not uploads or opened_at is None:
        return tag("p", "No update is there.")
    after = [max(0.0, _seconds(opened_at, upload["arrived_at"])) for upload in uploads]
    waited = facts["waited_seconds"]
    x = time_axis(max(*after, waited or 0, 1))
    y = axis(len(uploads), lambda n: f"{n:,.0f}", whole=True)
    shapes = [line(_steps(after, x.high), x, y, "mute")]
    if waited is not None:
        at = x.at(waited)
        shapes.append(tag("path", class_="line dash c2", d=f"M{at:g} 0V1000"))
    fates = [upload["fate"] for upload in uploads]
    special = [n for n, fate in enumerate(fates) if len(uploads) <= ONE_BY_ONE or fate != COUNTED]
    for fate, style in FATES.items():
        points = [
            (after[n], n + 1.0, f"{uploads[n]['client']}: {fate}, {format_duration(after[n])}")
            for n in special[:MOST_POINTS]
            if fates[n] == fate
        ]
        shapes += dots(points, x, y, style)
    legend = [(style, fate) for fate, style in FATES.items() if fate in fates]
    if waited is not None:
        legend.append(("c2", "the round is planned"))
    counts = ", ".join(f"{fates.count(fate)} {fate}" for fate in FATES if fate in fates)
    return Picture(
        f"Uploads since the round was opened: {counts}",
        f"The first after {format_duration(after[0])}, "
        f"the last after {format_duration(after[-1])}.",
        shapes,
        x,
        y,
        legend,
    ).html()


def _steps(after: Sequence[float], end: float) -> list[tuple[float, float]]:
    """Return the line of how many have arrived; of many, some."""
    points = [(0.0, 0.0)]
    for piece in bins(len(after), MOST_POINTS):
        n = piece[-1]
        points += [(after[n], points[-1][1]), (after[n], n + 1.0)]
    return [*points, (end, float(len(after)))]


def _seconds(begin: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


def _gantt(facts: Facts) -> Markup:
    """Draw when tasks ran: each one, or how many did."""
    tasks = facts["tasks"]
    if not tasks:
        return Markup("")
    runs = sorted(
        ((task["level"], *_ran(task, facts["planned_at"]), task) for task in tasks),
        key=lambda run: run[:3],
    )
    x = time_axis(max(end for _, _, end, _ in runs))
    levels = sorted({run[0] for run in runs})
    legend = [(_color(n), f"level {n}") for n in levels]
    note = tag(
        "p",
        "Each function's own clock says when a task began; its end is that and its seconds.",
        class_="dim small",
    )
    description = (
        f"{pluralize(len(tasks), 'task')}, "
        f"the last one done {format_duration(max(r[2] for r in runs))} after planning."
    )
    if len(runs) <= ONE_BY_ONE:
        y = Axis(len(runs), ())
        bars = [
            Box((begin, end), (len(runs) - n - 0.85, len(runs) - n - 0.15), _color(of), _hint(task))
            for n, (of, begin, end, task) in enumerate(runs)
        ]
        height = min(18.0, 2.5 + 0.6 * len(runs))
        title = "Functions since the round was planned, each a bar"
        picture = Picture(title, description, boxes(bars, x, y), x, y, legend, height)
    else:
        running = {of: _running([r[1:3] for r in runs if r[0] == of], x.high) for of in levels}
        y = axis(max(n for line_ in running.values() for _, n in line_), _whole, whole=True)
        lines = [line(points, x, y, _color(of)) for of, points in running.items()]
        title = "Functions that ran at a time, since the round was planned"
        picture = Picture(title, description, lines, x, y, legend)
    return joined(picture.html(), note)


def _whole(number: float) -> str:
    return f"{number:,.0f}"


def _color(of_level: int) -> str:
    return COLORS[of_level % len(COLORS)]


def _ran(task: Facts, planned_at: str) -> tuple[float, float]:
    """Return from when to when, in seconds after planning; two functions' clocks may differ."""
    begin = max(0.0, _seconds(planned_at, task["started_at"]))
    return begin, begin + task["seconds"]


def _running(runs: Sequence[tuple[float, float]], end: float) -> list[tuple[float, float]]:
    """Count who is at work, at some times."""
    changes = [0] * (MOST_POINTS + 2)
    for begin, finish in runs:
        changes[int(begin / end * MOST_POINTS)] += 1
        changes[int(finish / end * MOST_POINTS) + 1] -= 1
    points, now = [], 0
    for n, change in enumerate(changes[:-1]):
        now += change
        points.append((n / MOST_POINTS * end, float(now)))
    return points


def _hint(task: Facts) -> str:
    cold = ", cold start" if task["is_cold"] else ""
    return (
        f"level {task['level']}, task {task['task']}: {format_duration(task['seconds'])}, "
        f"{task['peak_mb']:.0f} MB, {format_size(task['bytes_read'])} read{cold}"
    )


def _tasks(facts: Facts, detail: Detail) -> Iterable[Markup]:
    tasks = facts["tasks"]
    yield tag("h3", "Tasks")
    if not tasks:
        yield tag("p", "No task has reported.")
        return
    yield tag(
        "div", _seconds_picture(tasks, detail), _memory_picture(facts, detail), class_="pictures"
    )
    levels = sorted({task["level"] for task in tasks})
    yield table(
        "Tasks by level",
        [
            Column("level", NUMBER),
            *(Column(name, NUMBER) for name in ("done", "s, least", "median", "most", "MB, most")),
            *(
                Column(name, NUMBER)
                for name in ("read", "written", "GETs", "PUTs", "retries", "cold")
            ),
        ],
        [_level_row(of, [task for task in tasks if task["level"] == of]) for of in levels],
    )
    slowest = sorted(tasks, key=lambda task: -float(task["seconds"]))
    yield table(
        "Tasks, the slowest first",
        [
            Column("level", NUMBER),
            Column("task", NUMBER),
            *(Column(name, NUMBER) for name in ("s", "CPU s", "MB", "read", "written", "retries")),
            Column("cold"),
            Column("ended", TIME),
        ],
        [_task_row(task) for task in slowest],
        most=detail.rows,
    )


def _seconds_picture(tasks: Sequence[Facts], detail: Detail) -> Markup:
    seconds = [task["seconds"] for task in tasks]
    return _bars(
        "Seconds of each task",
        f"From {min(seconds):.2f} to {max(seconds):.2f} s, {median(seconds):.2f} in the middle.",
        [(task["seconds"], _color(task["level"]), _hint(task)) for task in tasks],
        axis(max(seconds), lambda value: f"{value:g} s"),
        "task",
        detail,
        legend=[(_color(n), f"level {n}") for n in sorted({task["level"] for task in tasks})],
    )


def _memory_picture(facts: Facts, detail: Detail) -> Markup:
    tasks, projected = facts["tasks"], facts["projected"]
    most = max(task["peak_mb"] for task in tasks)
    needed, limit = projected.get("needed_mb"), projected.get("memory_mb")
    y = axis(max(most, limit or 0), lambda value: f"{value:g} MB")
    lines, legend = [], []
    for value, style, name in ((needed, "c1", "projected"), (limit, "bad", "the function's")):
        if value is not None:
            lines.append(level(value, y, style))
            legend.append((style, f"{name}, {value:.0f} MB"))
    return _bars(
        "Memory of each task",
        f"At most {most:.0f} MB were resident.",
        [(task["peak_mb"], _color(task["level"]), _hint(task)) for task in tasks],
        y,
        "task",
        detail,
        lines,
        legend,
    )


def _level_row(of: int, tasks: Sequence[Facts]) -> list[str]:
    seconds = [task["seconds"] for task in tasks]
    summed: Any = {
        name: sum(task[name] for task in tasks)
        for name in ("bytes_read", "bytes_written", "gets", "puts", "retries", "is_cold")
    }
    return [
        f"{of}",
        f"{len(tasks):,}",
        *(f"{value:.2f}" for value in (min(seconds), median(seconds), max(seconds))),
        f"{max(task['peak_mb'] for task in tasks):.0f}",
        format_size(summed["bytes_read"]),
        format_size(summed["bytes_written"]),
        *(f"{summed[name]:,}" for name in ("gets", "puts", "retries", "is_cold")),
    ]


def _task_row(task: Facts) -> list[str]:
    return [
        f"{task['level']}",
        f"{task['task']:,}",
        f"{task['seconds']:.2f}",
        f"{task['cpu_seconds']:.2f}",
        f"{task['peak_mb']:.0f}",
        format_size(task["bytes_read"]),
        format_size(task["bytes_written"]),
        f"{task['retries']:,}",
        "yes" if task["is_cold"] else "",
        _moment(task["ended_at"]),
    ]


def _layers(facts: Facts, detail: Detail) -> Iterable[Markup]:
    layers, clients = facts["layers"], [entry["client"] for entry in facts["contributors"]]
    if not layers:
        return
    yield tag("h3", "Layers")
    rows = bins(len(clients), detail.bars)
    cols = bins(len(layers), detail.bars)
    cells = [
        [_mean([layers[c]["weights"].get(clients[r]) for r in row for c in col]) for col in cols]
        for row in rows
    ]
    weights = [w for layer in layers for w in layer["weights"].values()]
    together = (
        "" if len(rows) == len(clients) and len(cols) == len(layers) else ", means of several"
    )
    yield Picture(
        f"Weight by client (down) and layer (across, from the input){together}",
        f"{pluralize(len(clients), 'client')} and {pluralize(len(layers), 'layer')}; "
        f"the deeper the colour the larger the weight, at most {max(weights, default=0):.4g}; "
        "empty where a client lacks the layer.",
        heat_map(cells, "c0"),
        numbered([f"{col[0] + 1}" for col in cols]),
        # Rows are counted from the top.
        Axis(
            len(rows),
            [
                (len(rows) - n - 0.5, f"{row[0] + 1}")
                for n, row in enumerate(rows)
                if n % max(1, len(rows) // 6) == 0
            ],
            is_ruled=False,
        ),
        [("c0", f"up to {max(weights, default=0):.4g}")],
        height=min(24.0, 3 + 1.2 * len(rows)),
    ).html()
    yield table(
        "Layers, from the input to the output",
        [
            Column("", NUMBER),
            Column("layer"),
            *(Column(name, NUMBER) for name in ("covered by", "p", "least", "median", "largest")),
        ],
        [_layer_row(n, layer) for n, layer in enumerate(layers, 1)],
        most=detail.rows,
    )
    if len(clients) * len(layers) <= MOST_CELLS:
        yield table(
            "Weights by client and layer",
            [Column("client"), *(Column(layer["name"], NUMBER) for layer in layers)],
            [[named(client), *_cells(layers, client)] for client in clients],
            fold_after=0,
        )


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _layer_row(number: int, layer: Facts) -> list[object]:
    weights = list(layer["weights"].values())
    figures = (min(weights), median(weights), max(weights)) if weights else ()
    return [
        f"{number}",
        named(layer["name"]),
        f"{len(weights):,}",
        "" if layer["p"] is None else f"{layer['p']:.4g}",
        *(f"{value:.4g}" for value in figures),
        *([""] * (3 - len(figures))),
    ]


def _cells(layers: Sequence[Facts], client: str) -> list[str]:
    weights = (layer["weights"].get(client) for layer in layers)
    return ["" if weight is None else f"{weight:.4g}" for weight in weights]


def _cost(facts: Facts) -> Iterable[Markup]:
    projected, measured = facts["dollars"]["projected"], facts["dollars"]["measured"]
    yield tag("h3", "Cost")
    if not projected:
        yield tag("p", "Nothing was planned: what was paid for are the small functions alone.")
        return
    bills = [("projected", projected, "c1")]
    if measured:
        bills.insert(0, ("measured", measured, "c0"))
    high = max(bill[part] for _, bill, _ in bills for part in PARTS)
    x = axis(1000 * high, lambda value: f"${value:g}")
    y = Axis(
        len(PARTS),
        [(len(PARTS) - n - 0.5, title) for n, title in enumerate(PARTS.values())],
        is_ruled=False,
    )
    width = 0.7 / len(bills)
    bars = [
        Box(
            (0, 1000 * bill[part]),
            (len(PARTS) - n - 0.15 - (k + 1) * width, len(PARTS) - n - 0.15 - k * width),
            style,
            f"{PARTS[part]}, {name}: {_dollars(bill[part])}",
        )
        for n, part in enumerate(PARTS)
        for k, (name, bill, style) in enumerate(bills)
    ]
    totals = ", ".join(f"{_dollars(bill['total'])} as {name}" for name, bill, _ in bills)
    yield Picture(
        "Dollars per 1000 such rounds, by what they are paid for",
        f"In all {totals}.",
        boxes(bars, x, y),
        x,
        y,
        [(style, f"as {name}") for name, _, style in bills],
        height=2.5 * len(PARTS),
        is_named=True,
    ).html()
    yield table(
        "Dollars per 1000 such rounds",
        [Column("part"), *(Column(name, NUMBER) for name, _, _ in bills)],
        [
            *(
                [title, *(_dollars(bill[part]) for _, bill, _ in bills)]
                for part, title in PARTS.items()
            ),
            [tag("strong", "in all"), *(_dollars(bill["total"]) for _, bill, _ in bills)],
        ],
    )
    yield tag(
        "p",
        "At AWS's list prices. Measured: the seconds and requests of the tasks that have reported, "
        "whatever machine they ran on; Step Functions and the small functions as modelled. "
        "Projected: what the planner expected of AWS.",
        class_="dim small",
    )


def _dollars(amount: float) -> str:
    """Per thousand rounds, which is what shows in cents."""
    return f"${1000 * amount:.4f}" if amount < 1e-5 else f"${1000 * amount:.2f}"
