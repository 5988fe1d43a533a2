"""Tasks: when each one ran, what it read and wrote, how much memory it took."""

from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

from gradshard.report.charts import Chart, axis, line, time_axis
from gradshard.report.markup import Markup, joined, tag
from gradshard.report.parts.part import (
    COLORS,
    MAX_POINTS,
    ONE_BY_ONE,
    Part,
    format_moment,
    seconds_between,
)
from gradshard.report.round_facts import Facts
from gradshard.report.row_limits import Detail
from gradshard.report.tables import NUMBER, TIME, Cell, Column, measured, table
from gradshard.utils.text import format_duration, format_size, pluralize


class _Run(NamedTuple):
    """A task, and from when to when it ran, in seconds since the round was planned."""

    level: int
    begin: float
    end: float
    task: Facts


def tasks_part(facts: Facts, detail: Detail) -> Part:
    """Return the part about the tasks of a round."""
    tasks = facts["tasks"]
    if tasks:
        content = joined(_by_level(tasks), _each(facts, detail), _clock_note())
    else:
        content = tag("p", "No task has reported.")
    return Part("tasks", "Tasks", _summary(facts), content)


def _summary(facts: Facts) -> str:
    if not facts["tasks_planned"]:
        return "none planned"
    words = [f"{facts['tasks_done']:,} of {facts['tasks_planned']:,} done"]
    if facts["seconds"] is not None:
        did = "failed after" if facts["state"] == "failed" else "aggregated in"
        words.append(f"{did} {format_duration(facts['seconds'])}")
    totals, projected = facts["totals"], facts["projected"]
    if totals:
        words.append(f"{format_size(totals['bytes_read'])} read")
        memory = f"at most {totals['peak_mb']:.0f} MB of memory"
        if "needed_mb" in projected:
            memory += f" ({projected['needed_mb']:.0f} MB projected)"
        words.append(memory)
        words.append(pluralize(totals["cold_starts"], "cold start"))
    return " · ".join(words)


def _clock_note() -> Markup:
    return tag(
        "p",
        "A task starts at the time on its function's clock, and ends after its seconds.",
        class_="dim small",
    )


def _by_level(tasks: Sequence[Facts]) -> Markup:
    names = (
        "done", "s, least", "s, median", "s, most", "MB, most",
        "read", "written", "GETs", "PUTs", "retries", "cold starts",
    )  # fmt: skip
    levels = sorted({task["level"] for task in tasks})
    return table(
        "Tasks by level",
        [Column("level"), *(Column(name, NUMBER) for name in names)],
        [_level_row(of, [task for task in tasks if task["level"] == of]) for of in levels],
    )


def _level_row(of: int, tasks: Sequence[Facts]) -> list[str]:
    seconds = [task["seconds"] for task in tasks]
    summed: Any = {
        name: sum(task[name] for task in tasks)
        for name in ("bytes_read", "bytes_written", "gets", "puts", "retries", "is_cold")
    }
    return [
        f"level {of}",
        f"{len(tasks):,}",
        *(f"{value:.2f}" for value in (min(seconds), median(seconds), max(seconds))),
        f"{max(task['peak_mb'] for task in tasks):.0f}",
        format_size(summed["bytes_read"]),
        format_size(summed["bytes_written"]),
        *(f"{summed[name]:,}" for name in ("gets", "puts", "retries", "is_cold")),
    ]


def _each(facts: Facts, detail: Detail) -> Markup:
    """Return a table of tasks: a few by their start, many by their seconds below a chart."""
    runs = _runs(facts)
    if len(runs) <= ONE_BY_ONE:
        return _task_table("Tasks by start", runs, facts, detail)
    slowest = sorted(runs, key=lambda run: -float(run.task["seconds"]))
    listing = _task_table("Tasks, the slowest first", slowest, facts, detail)
    return joined(_running_chart(runs), listing)


def _runs(facts: Facts) -> list[_Run]:
    """Return when tasks ran. Clocks differ, so a start may seem to be before the planning."""
    runs = []
    for task in facts["tasks"]:
        begin = max(0.0, seconds_between(facts["planned_at"], task["started_at"]))
        runs.append(_Run(task["level"], begin, begin + task["seconds"], task))
    return sorted(runs, key=lambda run: run[:3])


def _task_table(caption: str, runs: Sequence[_Run], facts: Facts, detail: Detail) -> Markup:
    end = max(run.end for run in runs)
    most_memory = max(run.task["peak_mb"] for run in runs)
    most_memory = max(most_memory, facts["projected"].get("memory_mb") or 0)
    return table(
        caption,
        [
            Column("task"),
            Column("ran, since planning", NUMBER),
            *(Column(name, NUMBER) for name in ("s", "CPU s", "MB", "read", "written", "retries")),
            Column("cold"),
            Column("ended", TIME),
        ],
        [_task_row(run, end, most_memory, facts["opened_at"]) for run in runs[: detail.rows]],
        of=len(runs),
    )


def _task_row(run: _Run, end: float, most_memory: float, opened_at: str | None) -> list[object]:
    task = run.task
    return [
        f"level {task['level']}, task {task['task']:,}",
        Cell(
            f"{run.begin:.2f} to {run.end:.2f} s",
            (run.begin / end, run.end / end),
            _color(run.level),
        ),
        f"{task['seconds']:.2f}",
        f"{task['cpu_seconds']:.2f}",
        measured(f"{task['peak_mb']:.0f}", task["peak_mb"], most_memory, "mute"),
        format_size(task["bytes_read"]),
        format_size(task["bytes_written"]),
        f"{task['retries']:,}",
        "yes" if task["is_cold"] else "",
        format_moment(task["ended_at"], since=opened_at),
    ]


def _color(level: int) -> str:
    return COLORS[level % len(COLORS)]


def _running_chart(runs: Sequence[_Run]) -> Markup:
    """Draw how many tasks of each level ran at each time."""
    x = time_axis(max(run.end for run in runs))
    levels = sorted({run.level for run in runs})
    running = {of: _running([run for run in runs if run.level == of], x.high) for of in levels}
    most = max(number for points in running.values() for _, number in points)
    y = axis(most, lambda number: f"{number:,.0f}", whole=True)
    return Chart(
        "Tasks that ran at the same time, since the round was planned",
        f"{pluralize(len(runs), 'task')}, at most {most:,.0f} at the same time; "
        f"the last ended after {format_duration(max(run.end for run in runs))}.",
        [line(points, x, y, _color(of)) for of, points in running.items()],
        x,
        y,
        [(_color(of), f"level {of}") for of in levels],
    ).html()


def _running(runs: Sequence[_Run], end: float) -> list[tuple[float, float]]:
    """Count the tasks that ran at each of some times."""
    changes = [0] * (MAX_POINTS + 2)
    for run in runs:
        changes[int(run.begin / end * MAX_POINTS)] += 1
        changes[int(run.end / end * MAX_POINTS) + 1] -= 1
    points, now = [], 0
    for n, change in enumerate(changes[:-1]):
        now += change
        points.append((n / MAX_POINTS * end, float(now)))
    return points
