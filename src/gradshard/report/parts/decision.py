"""The decision of a robust rule: the norm, score and weight of each update."""

from gradshard.report.facts import Facts
from gradshard.report.markup import named
from gradshard.report.parts.part import Detail, Part
from gradshard.report.tables import NUMBER, Column, measured, table
from gradshard.utils.text import pluralize
from gradshard_core.records.decision import is_clipped, sample_in_words, verdict_on


def decision_part(facts: Facts, detail: Detail) -> Part | None:
    """Return the part about a robust rule's decision; None if nothing was measured."""
    decision = facts["decision"]
    if decision is None:
        return None
    entries = decision["clients"]
    out = sum(verdict_on(entry) == "left out" for entry in entries)
    clipped = sum(is_clipped(entry) for entry in entries)
    said = [
        f"{pluralize(len(entries), 'update')} measured",
        f"{out} left out",
        f"{clipped} clipped",
    ]
    if decision.get("sample"):
        said.append(sample_in_words(decision["sample"]))
    is_by_layer = any("layers" in entry for entry in entries)
    longest = max((entry["norm"] for entry in entries), default=0.0)
    rows: list[list[object]] = [
        [
            named(entry["client"]),
            verdict_on(entry),
            measured(f"{entry['norm']:.4g}", entry["norm"], longest, "c0"),
            *([] if is_by_layer else [f"{entry['score']:.4g}", f"{entry['weight']:.4g}"]),
        ]
        for entry in entries
    ]
    return Part(
        "rule",
        f"Rule {decision['rule']['name']}",
        " · ".join(said),
        table(
            "What the rule measured and decided",
            [
                Column("client"),
                Column("update"),
                Column("norm", NUMBER),
                *(
                    []
                    if is_by_layer
                    else [Column(decision["score"], NUMBER), Column("weight", NUMBER)]
                ),
            ],
            rows,
            most=detail.rows,
        ),
    )
