"""Cost: AWS's price of a round, as measured and as the planner projected it."""

from typing import Final

from gradshard.report.markup import joined, tag
from gradshard.report.parts.part import Part, format_dollars
from gradshard.report.round_facts import Facts
from gradshard.report.tables import NUMBER, Column, measured, table

ITEMS: Final = {
    "lambda": "Lambda, tasks",
    "s3_aggregators": "S3 requests of tasks",
    "s3_clients": "S3 requests of clients",
    "requests": "Lambda requests",
    "step_functions": "Step Functions",
    "events": "Events",
    "starts": "Cold starts",
    "round": "Opening, collecting, planning",
}
"""The items of a bill, with their names on the page."""


def cost_part(facts: Facts) -> Part:
    """Return the part about the cost of a round."""
    dollars = facts["dollars"]
    bills = [(name, dollars[name]) for name in ("measured", "projected") if dollars[name]]
    if not bills:
        text = "Nothing was planned, so only the small functions ran, and they cost little."
        return Part("cost", "Cost", "no tasks to pay for", tag("p", text))
    most = max(bill[item] for _, bill in bills for item in ITEMS)
    rows: list[list[object]] = [
        [
            title,
            *(
                measured(format_dollars(bill[item]), bill[item], most, style)
                for (_, bill), style in zip(bills, ("c0", "c1"), strict=False)
            ),
        ]
        for item, title in ITEMS.items()
    ]
    rows.append(
        [
            tag("strong", "in all"),
            *(tag("strong", format_dollars(bill["total"])) for _, bill in bills),
        ]
    )
    columns = [Column("item"), *(Column(name, NUMBER) for name, _ in bills)]
    note = (
        "At AWS's list prices. Measured: the seconds and requests that the tasks reported, "
        "whatever machine they ran on, with Step Functions and the small functions as modelled. "
        "Projected: what the planner expected on AWS."
    )
    content = joined(
        table("Dollars per 1,000 such rounds", columns, rows), tag("p", note, class_="dim small")
    )
    totals = ", ".join(f"{format_dollars(bill['total'])} {name}" for name, bill in bills)
    return Part("cost", "Cost", f"per 1,000 such rounds {totals}", content)
