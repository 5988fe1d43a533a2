"""What the pages of the cost model share."""

import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from gradshard.papers import claims, published_figures
from gradshard.papers.estimate import PUBLISHED, Setting

PAPER: Final = Setting(bandwidth=PUBLISHED, architecture=published_figures.ARCHITECTURE)


def document(*sections: str) -> str:
    """Join sections, with their lines filled."""
    return "\n\n".join(_filled(section) for section in sections) + "\n"


def _filled(section: str) -> str:
    """Wrap paragraphs again, now that numbers stand in them; leave tables, lists and headings."""
    blocks = re.split(r"\n{2,}", section.strip("\n"))
    return "\n\n".join(
        block if block.startswith(("#", "|", "<", "!", "  ")) else "\n".join(_items(block))
        for block in blocks
    )


def _items(block: str) -> Iterator[str]:
    for item in re.split(r"\n(?=(?:  )?- )", block):
        indent = re.match(r" *(?:- )?", item)
        assert indent is not None
        yield textwrap.fill(
            indent.group() + " ".join(item[indent.end() :].split()),
            120,
            drop_whitespace=True,
            subsequent_indent=" " * indent.end(),
            break_long_words=False,
            break_on_hyphens=False,
        )


def mark_of(verdict: claims.Verdict) -> str:
    """Return whether a claim holds, as a character."""
    return "✓" if verdict.holds else "✗"


def money(verdict: claims.Verdict) -> str:
    """Return the dollars of a verdict for 1,000 rounds, and its mark."""
    if math.isinf(verdict.value):
        return f"– {mark_of(verdict)}"
    return f"${1000 * verdict.value:.2f} {mark_of(verdict)}"


def format_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
