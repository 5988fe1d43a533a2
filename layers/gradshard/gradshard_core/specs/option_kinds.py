"""Kinds of options: the values that an option of a round takes, and their checks.

:class:`gradshard_core.specs.round_spec.RoundSpec` declares each option once, as a field with an
:class:`Option`. The client library, the command line, JSON and the tables in docs/ read it there.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from gradshard_core.errors import SpecError

REQUIRED: Final = "required"
"""The default, in words, of an option that must be given."""

METADATA_KEY: Final = "option"
"""The key of an :class:`Option` in the metadata of its field."""


class Kind(Protocol):
    """A kind of value."""

    @property
    def values(self) -> str:
        """The values in JSON, for the documentation."""

    def parse(self, name: str, value: Any) -> Any:
        """Check a value as JSON holds it; raise :class:`SpecError` if it is not of this kind."""

    def to_json(self, value: Any) -> Any:
        """Return a parsed value as JSON holds it."""


class _SameInJson:
    def to_json(self, value: Any) -> Any:
        return value


@dataclass(frozen=True)
class WholeNumber(_SameInJson):
    """A whole number from ``low`` to ``high``."""

    low: int
    high: int

    @property
    def values(self) -> str:
        """The values in JSON, for the documentation."""
        return f"whole number from {self.low:,} to {self.high:,}"

    def parse(self, name: str, value: Any) -> int:
        """Check a number."""
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or not self.low <= value <= self.high
        ):
            raise SpecError(
                f"{name} is {value!r}, not a whole number from {self.low} to {self.high}"
            )
        return value


@dataclass(frozen=True)
class Duration(_SameInJson):
    """Seconds above zero.

    Parameters
    ----------
    high
        The most seconds.
    high_text
        The same as a person writes it, such as ``7d``.
    is_whole
        Whether it is a whole number.
    """

    high: int
    high_text: str = ""
    is_whole: bool = False

    @property
    def values(self) -> str:
        """The values in JSON, for the documentation."""
        number = "whole number of seconds" if self.is_whole else "seconds"
        return f"{number}, at most {self.high:,}"

    def parse(self, name: str, value: Any) -> float:
        """Check a number of seconds."""
        types = int if self.is_whole else int | float
        low = 1 if self.is_whole else 0
        is_number = isinstance(value, types) and not isinstance(value, bool)
        if not is_number or not low <= value <= self.high or value == 0:
            kind = "a whole number of seconds from 1" if self.is_whole else "seconds above 0"
            most = f" ({self.high_text})" if self.high_text else ""
            raise SpecError(f"{name} is {value!r}, not {kind} to {self.high}{most}")
        return value  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Choice(_SameInJson):
    """One of a few names."""

    choices: Sequence[str]

    @property
    def values(self) -> str:
        """The values in JSON, for the documentation."""
        return ", ".join(f"`{choice}`" for choice in self.choices)

    def parse(self, name: str, value: Any) -> str:
        """Check a name."""
        if not isinstance(value, str) or value not in self.choices:
            raise SpecError(f"{name} is {value!r}, not one of {', '.join(self.choices)}")
        return value


@dataclass(frozen=True)
class Flag(_SameInJson):
    """True or false."""

    @property
    def values(self) -> str:
        """The values in JSON, for the documentation."""
        return "`true` or `false`"

    def parse(self, name: str, value: Any) -> bool:
        """Check a truth value."""
        if not isinstance(value, bool):
            raise SpecError(f"{name} is {value!r}, not true or false")
        return value


@dataclass(frozen=True)
class Parsed:
    """A value with a parser of its own.

    Parameters
    ----------
    parser
        Takes the value as JSON holds it; raises :class:`SpecError`.
    values
        The values in JSON, for the documentation.
    metavar
        The name of the value on the command line.
    is_json
        Whether the command line reads a value that begins with a bracket as JSON.
    is_number
        Whether the command line reads the value as a number.
    encoder
        Makes JSON of the parsed value.
    """

    parser: Callable[[Any], Any]
    values: str
    metavar: str = "NAME"
    is_json: bool = False
    is_number: bool = False
    encoder: Callable[[Any], Any] = lambda value: value

    def parse(self, name: str, value: Any) -> Any:
        """Check a value."""
        del name
        return self.parser(value)

    def to_json(self, value: Any) -> Any:
        """Return a parsed value as JSON holds it."""
        return self.encoder(value)


@dataclass(frozen=True)
class Option:
    """An option of a round.

    Parameters
    ----------
    kind
        The values that it takes.
    help
        One sentence: what the option does.
    default
        The default in words, if it is no value; for the documentation.
    is_always_stated
        Whether a spec has it in its JSON even where it has its default.
    """

    kind: Kind
    help: str
    default: str = ""
    is_always_stated: bool = False


def option(
    kind: Kind,
    help: str,  # noqa: A002 - click's name for it
    *,
    value: Any = dataclasses.MISSING,
    default: str = "",
    is_always_stated: bool = False,
) -> Any:
    """Return a dataclass's field for an option.

    Parameters
    ----------
    kind, help, default, is_always_stated
        The fields of :class:`Option`.
    value
        The field's value without the option; a field without one has to be given.
    """
    declared = Option(kind, help, default, is_always_stated)
    return dataclasses.field(default=value, metadata={METADATA_KEY: declared})


def options_of(spec: type) -> dict[str, Option]:
    """Return the options that a spec's dataclass declares, by name and in its order."""
    return {field.name: field.metadata[METADATA_KEY] for field in dataclasses.fields(spec)}


def defaults_of(spec: type) -> dict[str, Any]:
    """Return the values of the options that may be left out, by name."""
    return {
        field.name: field.default
        for field in dataclasses.fields(spec)
        if field.default is not dataclasses.MISSING
    }


def stated_options(spec: Any) -> dict[str, Any]:
    """Return a spec as JSON, without the options that have their defaults."""
    stated = {}
    for field in dataclasses.fields(spec):
        declared: Option = field.metadata[METADATA_KEY]
        value = getattr(spec, field.name)
        if declared.is_always_stated or value != field.default:
            stated[field.name] = declared.kind.to_json(value)
    return stated


def check_names(fields: Any, options: Mapping[str, Option], what: str) -> None:
    """Check that a spec of JSON is an object with known fields; ``what`` names its owner.

    Raises
    ------
    SpecError
        It is not.
    """
    if not isinstance(fields, Mapping):
        raise SpecError(f"a {what}'s spec is a JSON object, not {type(fields).__name__}")
    unknown = sorted(fields.keys() - options.keys())
    if unknown:
        raise SpecError(f"unknown field {unknown[0]!r}; a spec has {', '.join(sorted(options))}")


def is_finite(value: Any) -> bool:
    """Return whether a value of JSON is a finite number that float64 holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False
