"""Text and numbers in the form that people read, on a terminal and on a page."""

from collections.abc import Sequence


def escape_terminal(text: object) -> str:
    """Return text with what could steer a terminal escaped; clients' ids and reasons may."""
    whole = str(text)
    if whole.isprintable():
        return whole
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in whole
    )


def format_size(nbytes: float) -> str:
    """Return a size as people read it."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes:.0f} B"


def pluralize(number: int, thing: str) -> str:
    """Return ``1 tensor`` or ``2 tensors``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def shortened(text: str, most: int) -> str:
    """Return the beginning of a long text, with an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def listed(names: Sequence[str], most: int) -> str:
    """Return ``a``, ``a and b``, or ``a, b and 7 more``: at most so many names."""
    shown = list(names[:most])
    if len(names) > most:
        shown.append(f"{len(names) - most:,} more")
    return " and ".join(part for part in (", ".join(shown[:-1]), *shown[-1:]) if part)


def format_duration(seconds: float) -> str:
    """Return a time as people read it."""
    if 0 < seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min" + (f" {rest:02} s" if rest else "")
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h" + (f" {minutes:02} min" if minutes else "")
