"""HTML elements that escape every text, because clients chose some of it."""

import html
from collections.abc import Iterable, Sequence
from typing import Final

from gradshard.utils.text import escape_terminal

_VOID: Final = {"br", "link", "meta"}


class Markup(str):
    """HTML that this package made. It is not escaped again."""

    __slots__ = ()


def text(content: object) -> Markup:
    r"""Return a text as HTML; return HTML unchanged.

    The text cannot open an element, end an attribute or change the writing direction of its
    neighbours: unprintable characters become escapes such as ``\u202e``.
    """
    return content if isinstance(content, Markup) else Markup(html.escape(escape_terminal(content)))


def tag(element: str, /, *children: object, **attributes: object) -> Markup:
    """Return an element.

    Parameters
    ----------
    element
        The name of the element.
    children
        Elements and texts.
    attributes
        ``class_`` and ``aria_label`` stand for ``class`` and ``aria-label``. None leaves an
        attribute out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if element in _VOID:
        return Markup(f"<{element}{written}>")
    return Markup(f"<{element}{written}>{joined(*children)}</{element}>")


def joined(*children: object) -> Markup:
    """Return elements and texts one after the other."""
    return Markup("".join(text(child) for child in children))


def named(content: object) -> Markup:
    """Return a name that a user chose. It has its own direction, and may break anywhere."""
    return tag("bdi", content)


def separated(separator: str, items: Iterable[Markup]) -> Markup:
    """Return elements with a text between them."""
    return Markup(text(separator).join(items))


def listed(items: Sequence[Markup]) -> Markup:
    """Return ``a``, ``a and b`` or ``a, b and c``."""
    if len(items) < 2:
        return joined(*items)
    return joined(separated(", ", items[:-1]), " and ", items[-1])
