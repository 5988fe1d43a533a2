"""The page of ``gradshard train report``: curves, clients, cost and versions of one training."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from gradshard.report.charts import Axis, Chart, axis, axis_between, dots, line, mark
from gradshard.report.markup import Markup, joined, named, tag
from gradshard.report.page import document
from gradshard.report.parts.part import Part, format_moment, shorten
from gradshard.report.round_facts import Facts
from gradshard.report.round_section import folding
from gradshard.report.tables import NUMBER, TIME, Column, facts_table, measured, table, unknown
from gradshard.report.training_facts import metric_names
from gradshard.utils.text import format_duration, listed, pluralize

MAX_ROWS: Final = 2_000
"""Rows of a table; the JSON has all of them."""

MAX_CURVES: Final = 32
"""Metrics that are drawn; clients may send new ones in each round."""

OPEN_PARTS: Final = 3
"""Parts that are unfolded at first."""

MAX_DOTS: Final = 240
"""Rounds whose values are drawn as dots, too."""

ENDINGS: Final = {"running": "is running", "paused": "has paused", "ended": "has ended"}
STYLES: Final = {"running": "awaiting", "paused": "failed", "ended": "completed"}


def training_page(facts: Facts, *, made_at: str) -> str:
    """Return the page about a training.

    Parameters
    ----------
    facts
        The result of :func:`gradshard.report.training_facts.training_facts`.
    made_at
        The time at which the training was read.
    """
    parts = [
        _metrics(facts),
        _clients(facts),
        *_staleness(facts),
        _cost(facts),
        _versions(facts),
        _rounds(facts),
        _settings(facts),
    ]
    heading = joined(
        tag("h1", "Training ", named(facts["training"]), f" {ENDINGS[facts['status']]}"),
        tag("p", _verdict(facts), class_="verdict"),
    )
    links = [tag("a", part.heading, href=f"#{part.name}") for part in parts]
    section = tag(
        "section",
        tag(
            "div",
            tag("h2", "Training ", named(facts["training"]), id="training"),
            tag("span", facts["status"], class_=f"state {STYLES[facts['status']]}"),
            class_="head",
        ),
        _cause(facts),
        *(folding(part, part.name, is_open=n < OPEN_PARTS) for n, part in enumerate(parts)),
        class_="round",
        aria_labelledby="training",
    )
    title = f"Training {facts['training']}"
    return document(title, heading, links, section, made_at)


def _verdict(facts: Facts) -> Markup:
    done = f"{facts['rounds_completed']:,} of {pluralize(facts['rounds_planned'], 'round')}"
    words = [f"{done} completed in {format_duration(facts['seconds'])}, for {_money(facts)}"]
    failed = sum(not r["is_completed"] for r in facts["rounds"])
    if failed:
        words.append(f"{pluralize(failed, 'round')} failed")
    best = facts["best"]
    if best:
        words.append(f"best {best['metric']} {best['value']:.6g}, of version {best['version']}")
    return joined("; ".join(words), ".")


def _money(facts: Facts) -> str:
    most = facts["budget_dollars"]
    return f"${facts['dollars']:.4f}" + (f" of ${most:g}" if most else "")


def _cause(facts: Facts) -> Markup:
    if facts["cause"] is None:
        return Markup("")
    cause = named(shorten(facts["cause"]))
    # Only that of a pause is a fault.
    style = "cause" if facts["status"] == "paused" else "sentence"
    return tag("p", tag("strong", "Cause. "), cause, class_=style)


# ------------------------------------------------------------------------------------ metrics


def _metrics(facts: Facts) -> Part:
    names = metric_names(facts)
    if not names:
        return Part("metrics", "Metrics", "none", tag("p", "No client has sent a metric."))
    charts = [_curve(facts, name, is_evaluation) for name, is_evaluation in names[:MAX_CURVES]]
    if more := len(names) - len(charts):
        text = f"The JSON has {pluralize(more, 'more metric')}, which fewer rounds have."
        charts.append(tag("p", text, class_="dim small"))
    last = _last_values(facts["rounds"])
    summary = " · ".join(f"{name} {value:.4g}" for name, value in [*last.items()][:4])
    return Part("metrics", "Metrics", summary, joined(*charts))


def _last_values(rounds: Sequence[Facts]) -> dict[str, float]:
    last: dict[str, float] = {}
    for facts in rounds:
        last |= facts["metrics"]
    return last


def _curve(facts: Facts, name: str, is_evaluation: bool) -> Markup:
    points = [
        (float(r["number"]), r["metrics"][name])
        for r in facts["rounds"]
        if name in r["metrics"] and r["is_evaluation"] == is_evaluation
    ]
    values = [value for _, value in points]
    x = _rounds_axis(facts)
    y = axis_between(min(values), max(values), lambda value: f"{value:.4g}")
    style = "c1" if is_evaluation else "c0"
    shapes = [line(points, x, y, style)] if len(points) > 1 else []
    if len(points) <= MAX_DOTS:
        shapes.append(dots(points, x, y, style))
    legend = [(style, "measured in evaluations" if is_evaluation else "measured in training")]
    best = facts["best"]
    if best and best["metric"] == name:
        shapes.append(mark(best["number"], x, "c2"))
        legend.append(("c2", f"best: {best['value']:.6g} in round {best['number']}"))
    kind = "evaluation" if is_evaluation else "training"
    return Chart(
        f"{name} ({kind}), by round",
        f"From {values[0]:.6g} in round {points[0][0]:.0f} to {values[-1]:.6g} in round "
        f"{points[-1][0]:.0f}; between {min(values):.6g} and {max(values):.6g}.",
        shapes,
        x,
        y,
        legend,
    ).html()


def _rounds_axis(facts: Facts) -> Axis:
    last = max((r["number"] for r in facts["rounds"]), default=1)
    return axis(last, lambda number: f"{number:,.0f}", whole=True)


# ------------------------------------------------------------------------------------- rounds


def _rounds(facts: Facts) -> Part:
    rounds = facts["rounds"]
    if not rounds:
        return Part("rounds", "Rounds", "none has ended", tag("p", "No round has ended yet."))
    names = [*dict.fromkeys(name for name, _ in metric_names(facts))][:4]
    columns = [
        Column("round"),
        Column("clients", NUMBER),
        *(Column(name, NUMBER) for name in names),
        Column("version", NUMBER),
        Column("cost", NUMBER),
        Column("closed at", TIME),
        Column("cause or notes"),
    ]
    rows = [_round_row(r, names, facts["started_at"]) for r in rounds]
    failed = [r for r in rounds if not r["is_completed"]]
    summary = f"{len(rounds):,} ended" + (f", {len(failed):,} of them failed" if failed else "")
    return Part("rounds", "Rounds", summary, table("Rounds", columns, rows, most=MAX_ROWS))


def _round_row(facts: Facts, names: Sequence[str], since: str) -> list[object]:
    said = facts["notes"] if facts["is_completed"] else [f"{facts['error']}: {facts['cause']}"]
    values = [facts["metrics"].get(name) for name in names]
    name = named(facts["round"])
    return [
        name if facts["is_completed"] else joined(tag("span", "✕ ", class_="failed"), name),
        f"{facts['contributed']:,} of {facts['invited']:,}",
        *("" if value is None else f"{value:.6g}" for value in values),
        "" if facts["version"] is None else f"{facts['version']:,}",
        f"${facts['dollars']:.5f}",
        format_moment(facts["closed_at"], since=since),
        named(shorten("; ".join(said))) if said else "",
    ]


# ------------------------------------------------------------------------------------ clients


def _clients(facts: Facts) -> Part:
    clients = facts["clients"]
    if not clients:
        return Part("clients", "Clients", "none", tag("p", "No client was invited yet."))
    is_buffered = facts["spec"].get("mode") == "buffered"
    asked = "waited for" if is_buffered else "invited"
    done = [r for r in facts["rounds"] if r["is_completed"]] or facts["rounds"]
    rounds = [r for r in done if not r["is_evaluation"]] or done
    x = _rounds_axis(facts)
    y = axis(max(r["invited"] for r in rounds), lambda n: f"{n:,.0f}", whole=True)
    lines = [
        line([(float(r["number"]), float(r[name])) for r in rounds], x, y, style)
        for name, style in (("invited", "mute"), ("contributed", "c0"))
    ]
    chart = Chart(
        "Clients by round",
        f"{sum(r['contributed'] for r in rounds):,} updates of "
        f"{sum(r['invited'] for r in rounds):,} {asked} were averaged.",
        lines,
        x,
        y,
        [("mute", asked), ("c0", "averaged")],
    ).html()
    most = max(entry["invited"] for entry in clients)
    columns = [
        Column("client"),
        Column("sent" if is_buffered else "invited", NUMBER),
        Column("averaged", NUMBER),
        Column("rejected", NUMBER),
        Column("last in round", NUMBER),
        Column("missed in a row", NUMBER),
    ]
    rows: list[list[object]] = [
        [
            named(entry["client"]),
            measured(f"{entry['invited']:,}", entry["invited"], most, "mute"),
            measured(f"{entry['contributed']:,}", entry["contributed"], most, "c0"),
            measured(f"{entry['rejected']:,}", entry["rejected"], most, "bad"),
            unknown() if entry["last_round"] is None else f"{entry['last_round']:,}",
            f"{entry['silent']:,}" if entry["silent"] else "",
        ]
        for entry in clients
    ]
    silent = [entry["client"] for entry in clients if entry["silent"]]
    summary = pluralize(len(clients), "client")
    if silent:
        summary += f" · silent: {listed(silent, 3)}"
    content = joined(chart, table("What each client did", columns, rows, most=MAX_ROWS))
    return Part("clients", "Clients", summary, content)


# ---------------------------------------------------------------------------------- staleness


def _staleness(facts: Facts) -> list[Part]:
    """Return the part about the staleness of a buffered training's updates; none of others."""
    rounds = [r for r in facts["rounds"] if r["staleness"]]
    if not rounds:
        return []
    found = [(float(r["number"]), list(r["staleness"].values())) for r in rounds]
    means = [(number, sum(values) / len(values)) for number, values in found]
    highest = [(number, float(max(values))) for number, values in found]
    every = [value for _, values in found for value in values]
    mean, most = sum(every) / len(every), max(every)
    x = _rounds_axis(facts)
    y = axis(max(most, 1), lambda value: f"{value:.3g}")
    chart = Chart(
        "Staleness by round",
        f"Versions made since an update began: {mean:.2f} on average, at most {most:,}.",
        [line(highest, x, y, "mute"), line(means, x, y, "c0")],
        x,
        y,
        [("mute", "the stalest update"), ("c0", "mean")],
    ).html()
    counts = Counter(every)
    rows: list[list[object]] = [
        [f"{value:,}", measured(f"{count:,}", count, max(counts.values()), "c0")]
        for value, count in sorted(counts.items())
    ]
    columns = [Column("staleness", NUMBER), Column("updates", NUMBER)]
    summary = f"{mean:.2f} on average, at most {most:,}"
    content = joined(chart, table("Updates by staleness", columns, rows, most=MAX_ROWS))
    return [Part("staleness", "Staleness", summary, content)]


# --------------------------------------------------------------------------------------- cost


def _cost(facts: Facts) -> Part:
    rounds, total = facts["rounds"], 0.0
    points = [(0.0, 0.0)]
    for r in rounds:
        total += r["dollars"]
        points.append((float(r["number"]), total))
    x = _rounds_axis(facts)
    y = axis(max(total, facts["dollars"]), lambda value: f"${value:.4g}")
    chart = Chart(
        "Dollars spent so far, by round",
        f"${total:.4f} after {pluralize(len(rounds), 'round')}.",
        [line(points, x, y, "c0")],
        x,
        y,
    ).html()
    kinds = [("rounds of training", False), ("evaluations", True)]
    rows: list[list[object]] = []
    for title, is_evaluation in kinds:
        spent = [r["dollars"] for r in rounds if r["is_evaluation"] == is_evaluation]
        mean = sum(spent) / len(spent) if spent else 0.0
        rows.append([title, f"{len(spent):,}", f"${mean:.6f}", f"${sum(spent):.4f}"])
    columns = [Column("kind"), *(Column(t, NUMBER) for t in ("rounds", "each", "in all"))]
    note = (
        "At AWS's list prices, by the seconds and requests that the rounds' tasks reported; of "
        "failed rounds, as projected. Requests of clients are not in it."
    )
    content = joined(chart, table("Cost", columns, rows), tag("p", note, class_="dim small"))
    return Part("cost", "Cost", _money(facts), content)


# ----------------------------------------------------------------------------------- versions


def _versions(facts: Facts) -> Part:
    made = [r for r in facts["rounds"] if r["version"] is not None]
    model = named(facts["model"])
    if not made:
        text = tag("p", "No version of model ", model, " was made yet.")
        return Part("versions", "Versions", "none", text)
    best = facts["best"] and facts["best"]["version"]
    measured_by = {r["base_version"]: r["metrics"] for r in facts["rounds"] if r["is_evaluation"]}
    rows: list[list[object]] = [
        [
            joined(f"{r['version']:,}", tag("strong", " best") if r["version"] == best else ""),
            f"{r['base_version']:,}",
            named(r["round"]),
            ", ".join(f"{n} {v:.6g}" for n, v in measured_by.get(r["version"], {}).items()),
        ]
        for r in made
    ]
    columns = [
        Column("version"),
        Column("made from", NUMBER),
        Column("by round"),
        Column("evaluated"),
    ]
    content = joined(
        tag("p", "Versions of model ", model, "."),
        table("Versions of the model", columns, rows, most=MAX_ROWS),
    )
    summary = f"{made[0]['base_version']:,} to {made[-1]['version']:,}"
    if best:
        summary += f" · best {best:,}"
    return Part("versions", "Versions", summary, content)


# ----------------------------------------------------------------------------------- settings


def _settings(facts: Facts) -> Part:
    spec = facts["spec"]
    rows: list[tuple[str, object]] = [
        (name.replace("_", " "), named(_shown(value)))
        for name, value in spec.items()
        if name != "round" and value is not None
    ]
    rows += [
        (f"round: {name.replace('_', ' ')}", named(_shown(value)))
        for name, value in spec["round"].items()
    ]
    rows.append(("started at", format_moment(facts["started_at"])))
    summary = f"started {format_moment(facts['started_at'])}"
    return Part("settings", "Settings", summary, facts_table("Options of the training", rows))


def _shown(value: object) -> str:
    if isinstance(value, list):
        return listed([str(item) for item in value], 20)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(entry)}" for name, entry in value.items())
    return shorten(str(value))
