"""A part of a round's section, and what several parts write alike."""

from datetime import datetime
from typing import Final, NamedTuple

from gradshard.report.markup import Markup

ONE_BY_ONE: Final = 64
"""More uploads or tasks than this are drawn together."""

MAX_POINTS: Final = 240
"""Points of a line."""

MAX_REASON: Final = 1_000
"""Characters of a reason. One may list every client."""

COLORS: Final = ("c0", "c1", "c2", "c3")


class Part(NamedTuple):
    """A part that folds.

    Parameters
    ----------
    name
        The name in the part's address.
    heading
        The heading.
    summary
        The main facts, which stay visible when the part is folded.
    content
        The content that can be folded.
    """

    name: str
    heading: str
    summary: str
    content: Markup


def shorten(reason: str, most: int = MAX_REASON) -> str:
    """Cut a long reason off, and say how much is missing."""
    if len(reason) <= most:
        return reason
    return f"{reason[:most]}… ({len(reason) - most:,} more characters)"


def format_moment(written: str, *, since: str | None = None) -> str:
    """Return date and time, without the date if it is that of ``since``."""
    moment = datetime.fromisoformat(written)
    if since is not None and moment.date() == datetime.fromisoformat(since).date():
        return f"{moment:%H:%M:%S %Z}"
    return f"{moment:%Y-%m-%d %H:%M:%S %Z}"


def seconds_between(begin: str, end: str) -> float:
    """Return the seconds from one moment to another; negative if they are in the other order."""
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


def format_dollars(amount: float) -> str:
    """Return the price of 1,000 rounds, because that of one is less than a cent."""
    return f"${1000 * amount:.4f}" if amount < 1e-5 else f"${1000 * amount:.2f}"
