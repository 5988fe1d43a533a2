"""The summary of a page: which rounds completed, and the causes that kept the others from it."""

from collections.abc import Iterable, Sequence
from typing import Final

from gradshard.client.round_status import AGGREGATING
from gradshard.report.markup import Markup, joined, listed, named, separated, tag
from gradshard.report.parts.part import shorten
from gradshard.report.round_facts import Facts
from gradshard.utils.text import pluralize

COMPLETED: Final = "completed"
FAILED: Final = "failed"

TOO_FEW: Final = "QuorumError"
"""The error of a round with too few good updates: the absent clients explain it."""

MAX_NAMES: Final = 5
"""Clients that a sentence names."""

MAX_LINES: Final = 10
"""Rounds that the summary explains. The table has all of them."""

MAX_CAUSE: Final = 200
"""Characters of a cause in the summary. The round's own section has more."""


def headline(rounds: Sequence[Facts]) -> Markup:
    """Return the heading of the page, such as ``4 of 5 rounds completed``."""
    if len(rounds) == 1:
        [facts] = rounds
        state = {
            COMPLETED: "completed",
            FAILED: "failed",
            AGGREGATING: "is aggregating",
        }.get(facts["state"], "is waiting for updates")
        return joined("Round ", named(facts["round"]), f" {state}")
    completed = sum(facts["state"] == COMPLETED for facts in rounds)
    return joined(f"{completed:,} of {pluralize(len(rounds), 'round')} completed")


def explanations(rounds: Sequence[Facts]) -> Markup:
    """Return a list: a line for each round that did not complete, or that lacks clients."""
    if len(rounds) == 1:
        return tag("p", outcome(rounds[0]), class_="verdict")
    # Rounds that failed come first, then those that have not ended.
    order = {FAILED: 0, COMPLETED: 2}
    numbers = sorted(range(len(rounds)), key=lambda n: order.get(rounds[n]["state"], 1))
    told = [n for n in numbers if rounds[n]["state"] != COMPLETED or absent(rounds[n])]
    lines = [
        tag(
            "li",
            tag("a", named(rounds[n]["round"]), href=f"#round-{n + 1}"),
            " ",
            outcome(rounds[n]),
        )
        for n in told[:MAX_LINES]
    ]
    if len(told) > MAX_LINES:
        lines.append(tag("li", f"and {pluralize(len(told) - MAX_LINES, 'more round')}"))
    return tag("ul", *lines, class_="verdict") if lines else Markup("")


def outcome(facts: Facts) -> Markup:
    """Return what became of a round: a sentence whose subject, the round's name, is left out."""
    state, missed = facts["state"], absent(facts)
    if state == FAILED:
        if missed and facts["error"] == TOO_FEW:
            return joined("failed: ", missed)
        cause = shorten(facts["cause"] or "no cause is known", MAX_CAUSE)
        return joined("failed: ", named(cause))
    if state == COMPLETED:
        counted = f"{len(facts['contributors']):,} of {pluralize(facts['expected'], 'client')}"
        sentence = f"averaged the updates of {counted}"
    elif state == AGGREGATING:
        done = f"{facts['tasks_done']:,} of {pluralize(facts['tasks_planned'], 'task')}"
        sentence = f"aggregates: {done} done"
    else:
        arrived = f"{len(facts['uploads']):,} of {pluralize(facts['expected'], 'update')}"
        sentence = f"waits for updates: {arrived} arrived"
    return joined(sentence, "; ", missed) if missed else joined(sentence)


def absent(facts: Facts) -> Markup:
    """Return whose updates are not in the average, such as ``bob and carol missing``."""
    groups = (
        ([entry["client"] for entry in facts["rejected"]], "rejected"),
        ([entry["client"] for entry in facts["late"]], "late"),
        (facts["missing"], "missing"),
    )
    return separated("; ", (_group(clients, word) for clients, word in groups if clients))


def _group(clients: Sequence[str], word: str) -> Markup:
    return joined(listed([*_names(clients)]), f" {word}")


def _names(clients: Sequence[str]) -> Iterable[Markup]:
    shown = clients if len(clients) <= MAX_NAMES + 1 else clients[:MAX_NAMES]
    yield from (named(client) for client in shown)
    if len(shown) < len(clients):
        yield joined(pluralize(len(clients) - len(shown), "other"))
