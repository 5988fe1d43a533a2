"""Robust rules: how updates are combined so that a few bad ones have little effect.

Rules over columns (:mod:`gradshard_core.aggregation.columns`) take one pass. The others *measure*
first: the inner products of all pairs of updates, their Gram matrix, say how long updates are and
how far from each other. A rule makes weights of them, and today's weighted sum is the second pass.
A further rule is one function from Gram matrix and shares to weights, and its line in
:data:`ROBUST_RULES`.

Functions use Python's floats and :func:`math.fsum`, whose results are the same on every processor.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from gradshard_core.aggregation.columns import MajoritySign, TrimmedMean
from gradshard_core.aggregation.kernel import Reduction
from gradshard_core.errors import SpecError

Settings = Mapping[str, float]


class _Setting(NamedTuple):
    """A setting of a rule: its default, whether a value is allowed, and how that is said.

    Without a default of its own, a setting that is not given is left out of the settings.
    """

    default: float | None
    holds: Callable[[float], bool]
    wanted: str
    is_required: bool = False


class _Rule(NamedTuple):
    """A robust rule.

    Parameters
    ----------
    settings
        What can be set.
    least
        (settings) → the fewest updates that it takes.
    """

    settings: Mapping[str, _Setting]
    least: Callable[[Settings], int]


def _one(_settings: Settings) -> int:
    return 1


def _three(_settings: Settings) -> int:
    """Fewer updates have no majority."""
    return 3


_BETA: Final = _Setting(0.2, lambda beta: 0 < beta < 0.5, "a number above 0 and under 0.5")

ROBUST_RULES: Final[Mapping[str, _Rule]] = {
    "median": _Rule({}, _three),
    "trimmed_mean": _Rule({"beta": _BETA}, _three),
    "sign": _Rule({}, _one),
}
"""The rules by name."""


@dataclass(frozen=True)
class RobustRule:
    """A robust rule with its settings.

    Parameters
    ----------
    name
        One of :data:`ROBUST_RULES`.
    settings
        All that apply.
    """

    name: str
    settings: Settings

    @property
    def is_columns(self) -> bool:
        """Whether it combines columns, in one pass; otherwise it measures first."""
        return self.name in ("median", "trimmed_mean", "sign")

    @property
    def holds_all(self) -> bool:
        """Whether a task holds a block of every input at once."""
        return self.name != "sign"

    @property
    def least_clients(self) -> int:
        """The fewest updates that the rule takes."""
        return ROBUST_RULES[self.name].least(self.settings)

    @property
    def _stated(self) -> str:
        """The rule and its settings for people."""
        settings = ", ".join(f"{key}={value:g}" for key, value in self.settings.items())
        return f"{self.name} ({settings})" if settings else self.name

    def check_clients(self, expected: int) -> None:
        """Check that the rule takes so many updates, and that it does something.

        Raises
        ------
        SpecError
            It does not; the text has the numbers.
        """
        if expected < self.least_clients:
            raise SpecError(
                f"rule {self._stated} needs at least {self.least_clients} updates, and "
                f"{expected} are expected"
            )
        if self.name == "trimmed_mean" and not _cut(self.settings["beta"], expected):
            raise SpecError(
                f"rule trimmed_mean with beta {self.settings['beta']:g} leaves out none of "
                f"{expected} updates: give a beta of at least "
                f"{math.ceil(1000 / expected) / 1000:g}, or no rule"
            )

    def reduction(self, inputs: int, *, gathers: bool) -> Reduction:
        """Return the reduction of a rule over columns."""
        if self.name == "sign":
            return MajoritySign(gathers=gathers)
        cut = None if self.name == "median" else _cut(self.settings["beta"], inputs)
        return TrimmedMean(cut, gathers=gathers)

    def to_json(self) -> dict[str, Any]:
        """Return what :func:`parse_robust_rule` reads."""
        return {"name": self.name, **self.settings}


def parse_robust_rule(fields: Mapping[str, Any]) -> RobustRule:
    """Read a robust rule from JSON: ``name``, and settings where their defaults are not meant.

    Raises
    ------
    SpecError
        A setting is unknown, missing or out of its bounds.
    """
    stated = dict(fields)
    name = stated.pop("name")
    known = ROBUST_RULES[name].settings
    unknown = sorted(stated.keys() - known.keys())
    if unknown:
        have = f"its settings are {', '.join(known)}" if known else "it has no settings"
        raise SpecError(f"rule {name} has no {unknown[0]!r}; {have}")
    settings: dict[str, float] = {}
    for key, setting in known.items():
        value = stated.get(key, setting.default)
        if value is None:
            if setting.is_required:
                raise SpecError(f"rule {name} needs {key}, {setting.wanted}")
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not setting.holds(value):
            raise SpecError(f"rule {name}: {key} is {value!r}, not {setting.wanted}")
        settings[key] = value
    return RobustRule(name, settings)


def _cut(beta: float, inputs: int) -> int:
    """Return how many of the smallest, and of the largest, a trimmed mean leaves out."""
    return int(beta * inputs)
