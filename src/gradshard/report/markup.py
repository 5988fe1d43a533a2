"""HTML elements, in which text is text whoever wrote it."""

import html
from typing import Final

from gradshard.utils.text import escape_terminal

_VOID: Final = {"br", "link", "meta"}


class Markup(str):
    """HTML that was made here, and so is not escaped again."""

    __slots__ = ()


def text(content: object) -> Markup:
    """Return text as HTML; what is already HTML stays.

    Nothing of it can become an element, leave an attribute or change the direction of what follows:
    characters that are not printed are shown by their escapes.
    """
    return content if isinstance(content, Markup) else Markup(html.escape(escape_terminal(content)))


def tag(element: str, /, *children: object, **attributes: object) -> Markup:
    """Return an element.

    Parameters
    ----------
    element
        Its name.
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
    """Return what somebody else named: its direction is its own, and it may break anywhere."""
    return tag("bdi", content)
