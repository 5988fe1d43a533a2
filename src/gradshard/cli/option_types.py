"""Types of the values of options: durations, numbers, sizes, fractions, JSON."""

import json
import re
from decimal import Decimal
from typing import Any, Final

import click

_DURATION: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?) *(?P<unit>[smhd]?)")
_UNIT_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

_SIZE: Final = re.compile(
    r"(?P<number>\d+(?:\.\d*)?(?:e\+?\d+)?) *(?:(?P<prefix>[kmgt])?(?P<binary>i)?b)?", re.IGNORECASE
)
_FRACTION: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?) *(?P<percent>%?)")
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class DurationType(click.ParamType):
    """A duration such as 90s, 1.5m, 2h or 1d; a number alone is of seconds.

    Parameters
    ----------
    high
        The most seconds; None for no bound.
    """

    name = "duration"

    def __init__(self, high: int | None = None) -> None:
        self.high = high

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the seconds, as a whole number where they are one."""
        match = _DURATION.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a duration such as 90s, 30m or 2h.", param, ctx)
        seconds = float(match["number"]) * _UNIT_SECONDS[match["unit"]]
        if self.high is not None and seconds > self.high:
            self.fail(f"{value!r} is too long: at most {format_seconds(self.high)}.", param, ctx)
        return int(seconds) if seconds.is_integer() else seconds


def format_seconds(seconds: float) -> str:
    """Return seconds as :class:`DurationType` reads them, in the largest unit that fits."""
    for unit in "dhm":
        if seconds % _UNIT_SECONDS[unit] == 0:
            return f"{seconds / _UNIT_SECONDS[unit]:g}{unit}"
    return f"{seconds:g}s"


class WholeNumberType(click.IntRange):
    """A whole number from ``min`` to ``max``; help and errors give the bounds in words."""

    def _describe_range(self) -> str:
        return f"at least {self.min}" if self.max is None else f"{self.min} to {self.max}"


class SizeType(click.ParamType):
    """A number of bytes: 512MB, 1GiB, 43.5MB or 5e9."""

    name = "size"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        text = str(value).strip()
        if text.isdecimal():
            self.fail(f"{value!r} has no unit: write {text}MB, {text}MiB or {text}B.", param, ctx)
        match = _SIZE.fullmatch(text)
        if match is None or (match["binary"] and not match["prefix"]):
            self.fail(f"{value!r} is not a size such as 512MB, 1GiB or 5e9.", param, ctx)
        unit: int = (1024 if match["binary"] else 1000) ** _POWERS[(match["prefix"] or "").lower()]
        nbytes = float(match["number"]) * unit
        if not 1 <= nbytes <= 2**50:
            self.fail(f"{value!r} is not between 1 byte and 1 PiB.", param, ctx)
        return round(nbytes)


class FractionType(click.ParamType):
    """A part of something, such as 1% or 0.01."""

    name = "fraction"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the fraction, over 0 and at most 1."""
        text = str(value).strip()
        match = _FRACTION.fullmatch(text)
        if match is None:
            self.fail(f"{value!r} is not a part such as 1% or 0.01.", param, ctx)
        # Decimal, so that 7% is 0.07.
        fraction = float(Decimal(match["number"]) / (100 if match["percent"] else 1))
        if not 0 < fraction <= 1:
            self.fail(f"{value!r} is not over 0 and at most 100%.", param, ctx)
        return fraction


class JsonType(click.ParamType):
    """A name, or JSON if the value begins with a bracket."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the parsed JSON, or the text itself."""
        if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            self.fail(f"{value[:80]!r} is not JSON: {error}.", param, ctx)


class NumberType(click.ParamType):
    """A number, as an int where it is whole and written so."""

    name = "number"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number."""
        text = str(value).strip()
        try:
            return int(text) if text.isdecimal() else float(text)
        except ValueError:
            self.fail(f"{value!r} is not a number.", param, ctx)
