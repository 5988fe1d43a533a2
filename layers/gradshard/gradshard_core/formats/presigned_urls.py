"""Tables of presigned URLs that differ in a number and a signature only.

A ticket has up to a thousand URLs for one upload. Each is stored as its end, the signature, under
the beginning that it shares with the others.
"""

from collections.abc import Iterator, Mapping
from typing import Final

UrlTable = Mapping[str, Mapping[str, str]]
"""Beginnings of URLs, and for each the ends by number."""

_SIGNATURE: Final = "&X-Amz-Signature="


def add_url(table: dict[str, dict[str, str]], number: int, url: str) -> None:
    """Store a URL under its number."""
    # URLs that were signed in the same second have the same beginning.
    beginning, mark, end = url.partition(_SIGNATURE)
    table.setdefault(beginning + mark, {})[str(number)] = end


def find_url(table: UrlTable, number: int) -> tuple[str, str]:
    """Return the beginning and the end of a number's URL."""
    wanted = str(number)
    return next((beginning, ends[wanted]) for beginning, ends in table.items() if wanted in ends)


def numbers_of(table: UrlTable) -> set[int]:
    """Return the numbers for which there are URLs."""
    return {int(number) for ends in table.values() for number in ends}


def urls_of(table: UrlTable) -> Iterator[str]:
    """Yield every URL."""
    return (beginning + end for beginning, ends in table.items() for end in ends.values())
