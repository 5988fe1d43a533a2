"""The section about one round: its outcome, and parts that fold."""

from collections.abc import Sequence

from gradshard.report.comparison import state_label
from gradshard.report.markup import Markup, named, tag
from gradshard.report.parts.clients import clients_part
from gradshard.report.parts.cost import cost_part
from gradshard.report.parts.decision import decision_part
from gradshard.report.parts.layers import layers_part
from gradshard.report.parts.part import Part, shorten
from gradshard.report.parts.settings import settings_part
from gradshard.report.parts.tasks import tasks_part
from gradshard.report.round_facts import Facts
from gradshard.report.row_limits import Detail
from gradshard.report.summary_sentence import outcome


def parts_of(facts: Facts, detail: Detail) -> list[Part]:
    """Return the parts of a round's section."""
    parts = (
        clients_part(facts, detail),
        decision_part(facts, detail),
        tasks_part(facts, detail),
        layers_part(facts, detail),
        cost_part(facts),
        settings_part(facts),
    )
    return [part for part in parts if part is not None]


def round_section(facts: Facts, parts: Sequence[Part], number: int, *, is_alone: bool) -> Markup:
    """Return the section about a round.

    Parameters
    ----------
    facts
        The result of :func:`gradshard.report.round_facts.facts_of`.
    parts
        The result of :func:`parts_of`.
    number
        The round's place on the page, from 1.
    is_alone
        Whether the page is about this round only. The top of the page then has its name and
        outcome, and its first part is unfolded.
    """
    address = f"round-{number}"
    heading = tag("h2", "Round ", named(facts["round"]), id=address)
    return tag(
        "section",
        tag("div", heading, state_label(facts["state"]), class_="spoken" if is_alone else "head"),
        "" if is_alone or facts["cause"] else tag("p", outcome(facts), class_="sentence"),
        _cause(facts),
        *(
            folding(part, f"{address}-{part.name}", is_open=is_alone and not n)
            for n, part in enumerate(parts)
        ),
        class_="round",
        aria_labelledby=address,
    )


def folding(part: Part, address: str, *, is_open: bool) -> Markup:
    """Return a part as an element that folds."""
    return tag(
        "details",
        tag(
            "summary",
            tag("h3", part.heading, id=address),
            " ",
            tag("span", part.summary, class_="summary"),
        ),
        tag("div", part.content, class_="content"),
        class_="part",
        open="" if is_open else None,
    )


def _cause(facts: Facts) -> Markup:
    if facts["cause"] is None:
        return Markup("")
    kind = f"{facts['error']}: " if facts["error"] else ""
    return tag("p", tag("strong", "Cause. "), kind, named(shorten(facts["cause"])), class_="cause")
