"""The whole page: summary, contents, comparison, and a section for each round."""

from collections.abc import Sequence
from typing import Final

from gradshard.report.comparison import comparison
from gradshard.report.markup import Markup, joined, named, tag
from gradshard.report.parts.part import Part
from gradshard.report.round_facts import Facts
from gradshard.report.round_section import parts_of, round_section
from gradshard.report.row_limits import Detail
from gradshard.report.style import STYLE
from gradshard.report.summary_sentence import explanations, headline
from gradshard.utils.text import pluralize

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""The page runs nothing and loads nothing, even if an escape were missing."""


def page(rounds: Sequence[Facts], *, made_at: str) -> str:
    """Return the page about rounds.

    Parameters
    ----------
    rounds
        The results of :func:`gradshard.report.round_facts.facts_of`.
    made_at
        The time at which the rounds were read.
    """
    detail = Detail.for_rounds(len(rounds))
    is_alone = len(rounds) == 1
    parts = [parts_of(facts, detail) for facts in rounds]
    title = f"Round {rounds[0]['round']}" if is_alone else pluralize(len(rounds), "round")
    return document(
        title,
        joined(tag("h1", headline(rounds)), explanations(rounds)),
        _contents(rounds, parts),
        joined(
            "" if is_alone else comparison(rounds),
            *(
                round_section(facts, parts[n], n + 1, is_alone=is_alone)
                for n, facts in enumerate(rounds)
            ),
        ),
        made_at,
    )


def document(
    title: str, heading: Markup, links: Sequence[Markup], content: Markup, made_at: str
) -> str:
    """Return a page: its heading, the list of contents, and its sections.

    Parameters
    ----------
    title
        The title in the browser's tab.
    heading, links, content
        The parts of the page.
    made_at
        The time at which its data were read.
    """
    body = tag(
        "body",
        tag("header", heading, tag("p", f"gradshard report, {made_at}", class_="dim small")),
        tag("nav", tag("ul", *(tag("li", link) for link in links)), aria_label="Contents"),
        tag("main", content),
    )
    return f"<!DOCTYPE html>\n{tag('html', _head(title), body, lang='en')}\n"


def _head(title: str) -> Markup:
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{title} · gradshard"),
        # A style sheet must not be escaped. It holds nothing that a client wrote.
        tag("style", Markup(STYLE)),
    )


def _contents(rounds: Sequence[Facts], parts: Sequence[Sequence[Part]]) -> list[Markup]:
    """Return the list of contents: rounds, or the parts of the only round."""
    if len(rounds) == 1:
        return [tag("a", part.heading, href=f"#round-1-{part.name}") for part in parts[0]]
    return [
        tag("a", "Comparison", href="#comparison"),
        *(
            tag("a", named(facts["round"]), href=f"#round-{number}")
            for number, facts in enumerate(rounds, 1)
        ),
    ]
