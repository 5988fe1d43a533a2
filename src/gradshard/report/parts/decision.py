"""The decision of a robust rule: the norm, score and weight of each update."""

from statistics import median

from gradshard.client.robust_decision_text import sample_in_words, verdict_on
from gradshard.report.markup import Markup, joined, named
from gradshard.report.parts.part import Part
from gradshard.report.round_facts import Facts
from gradshard.report.row_limits import Detail
from gradshard.report.tables import NUMBER, Column, measured, table
from gradshard.utils.text import pluralize
from gradshard_core.records.robust_decision import is_clipped


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
    content = [
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
        )
    ]
    if is_by_layer:
        content.append(_by_layer(decision, detail))
    return Part("rule", f"Rule {decision['rule']['name']}", " · ".join(said), joined(*content))


def _by_layer(decision: Facts, detail: Detail) -> Markup:
    """Return what the rule decided in each layer of partial updates."""
    found: dict[str, list[Facts]] = {}
    for entry in decision["clients"]:
        for name, figures in entry["layers"].items():
            found.setdefault(name, []).append(figures)
    rows: list[list[object]] = []
    for name, of_layer in found.items():
        scores = [figures["score"] for figures in of_layer]
        rows.append(
            [
                named(name),
                f"{len(of_layer)}",
                f"{sum(verdict_on(figures) == 'left out' for figures in of_layer)}",
                f"{sum(map(is_clipped, of_layer))}",
                *(f"{value:.4g}" for value in (min(scores), median(scores), max(scores))),
            ]
        )
    score = decision["score"]
    titles = ("updates", "left out", "clipped", f"{score}, least", "median", "most")
    return table(
        "Layers in which the rule decided",
        [Column("layer"), *(Column(title, NUMBER) for title in titles)],
        rows,
        most=detail.rows,
    )
