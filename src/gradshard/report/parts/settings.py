"""Settings: the options and the plan of a round, and its times."""

from collections.abc import Sequence

from gradshard.client.privacy_accounting import privacy_in_words
from gradshard.report.markup import named, tag
from gradshard.report.parts.part import Part, format_moment
from gradshard.report.round_facts import Facts
from gradshard.report.tables import facts_table
from gradshard.utils.text import format_duration, format_size, pluralize


def settings_part(facts: Facts) -> Part:
    """Return the part about the settings of a round."""
    return Part(
        "settings", "Settings", _summary(facts), facts_table("Settings and times", _rows(facts))
    )


def _summary(facts: Facts) -> str:
    words = [facts["rule"], f"topology {facts['topology']}"]
    if facts["shards"] is not None:
        words.append(f"M = {facts['shards']:,}")
    if facts["nbytes"] is not None:
        size, tensors = format_size(facts["nbytes"]), pluralize(facts["tensors"], "tensor")
        words.append(f"updates of {size}, {tensors}")
    if facts["waited_seconds"] is not None:
        words.append(f"waited {format_duration(facts['waited_seconds'])} for updates")
    return " · ".join(words)


def _rows(facts: Facts) -> list[tuple[str, object]]:
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
    moments = ("opened_at", "deadline_at", "planned_at", "finished_at")
    rows += [
        (name.replace("_", " "), format_moment(facts[name]))
        for name in moments
        if facts[name] is not None
    ]
    memory = facts["projected"].get("memory_mb")
    if memory is not None:
        rows.append(("memory of a function", f"{memory:.0f} MB"))
    if facts["updates_from"]:
        rows.append(("updates of", tag("span", "round ", named(facts["updates_from"]))))
    if model := facts["model"]:
        optimizer = model["optimizer"]["optimizer"]
        made = f"version {model['version']} of {model['model']}, by {optimizer}"
        rows.append(("model", named(made)))
    if facts["privacy"]:
        rows.append(("privacy", privacy_in_words(facts["privacy"])))
    return rows + [("note", named(note)) for note in facts["notes"]]


def _range(sizes: Sequence[int]) -> str:
    least, most = min(sizes), max(sizes)
    return f"{most}" if least == most else f"{least} to {most}"
