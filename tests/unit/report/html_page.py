"""Reads a page of `gradshard report` as a strict browser would."""

import itertools
from html.parser import HTMLParser
from typing import Final

from gradshard.report.page import page
from gradshard.report.round_facts import Facts

MADE_AT: Final = "2026-03-01 13:00 UTC"

VOID: Final = {"br", "link", "meta"}


class Page(HTMLParser):
    """A page that was read strictly: every element is closed, in order, and ids are unique."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []
        ids = [a["id"] for _, a in self.elements if "id" in a]
        assert len(ids) == len(set(ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data + " "

    def count_rows_without_heading(self) -> int:
        names = [name for name, _ in self.elements]
        return sum(n == "tr" and after != "th" for n, after in itertools.pairwise(names))

    @property
    def words(self) -> str:
        """The text with single spaces."""
        return " ".join(self.text.split())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def read(*rounds: Facts) -> Page:
    return Page(page(rounds, made_at=MADE_AT))
