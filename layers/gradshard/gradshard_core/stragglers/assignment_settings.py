"""The base settings of assignments, and their bounds."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from gradshard_core.errors import SpecError

MAX_COUNT: Final = 2**53

MOST: Final = {"batch_size": 2, "epochs": 8, "learning_rate": 2}
"""The highest settings, as multiples of the base, where none are given. A learning rate that suits
the base does not survive being scaled by 8 (benchmarks/stragglers.md), so the batch ends early."""


@dataclass(frozen=True)
class AssignmentSettings:
    """The base settings, and the bounds of assignments.

    Parameters
    ----------
    batch_size, epochs, learning_rate
        The base settings, which the slowest client and new ones have.
    min_batch_size, max_batch_size, min_epochs, max_epochs, min_learning_rate, max_learning_rate
        Bounds. By default the lowest are the base settings, and the highest are the base settings
        times :data:`MOST`. A client that cannot meet the operator's target does less only if
        ``min_epochs`` allows it.
    target_seconds
        The seconds that a training should take; None for those of the slowest client.
    smoothing
        The weight of the last report in a client's speed, over 0 and at most 1.
    """

    batch_size: int
    epochs: int
    learning_rate: float
    min_batch_size: int | None = None
    max_batch_size: int | None = None
    min_epochs: int | None = None
    max_epochs: int | None = None
    min_learning_rate: float | None = None
    max_learning_rate: float | None = None
    target_seconds: float | None = None
    smoothing: float = 0.5

    def bounds(self, name: str) -> tuple[float, float]:
        """Return the lowest and highest of ``batch_size``, ``epochs`` or ``learning_rate``."""
        base = getattr(self, name)
        low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
        return (base if low is None else low, MOST[name] * base if high is None else high)

    def to_json(self) -> dict[str, Any]:
        """Return what :func:`parse_assignment_settings` reads."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def parse_assignment_settings(stated: Mapping[str, Any]) -> AssignmentSettings:
    """Check the settings of assignments.

    Parameters
    ----------
    stated
        The fields of :class:`AssignmentSettings`; None stands for the default.

    Raises
    ------
    SpecError
        A field is unknown, missing or out of its bounds.
    """
    names = [entry.name for entry in fields(AssignmentSettings)]
    unknown = sorted(stated.keys() - set(names))
    if unknown:
        raise SpecError(f"unknown field {unknown[0]!r}; assignments have {', '.join(names)}")
    given = {name: value for name, value in stated.items() if value is not None}
    required = ("batch_size", "epochs", "learning_rate")
    missing = next((name for name in required if name not in given), None)
    if missing is not None:
        raise SpecError(f"{missing} of the base settings is missing")
    for name, value in given.items():
        _check_number(name, value, whole=name.endswith(("batch_size", "epochs")))
    settings = AssignmentSettings(**given)
    if settings.smoothing > 1:
        raise SpecError(f"smoothing is {settings.smoothing!r}, not over 0 and at most 1")
    for name in required:
        low, high = settings.bounds(name)
        if not low <= getattr(settings, name) <= high:
            raise SpecError(
                f"{name} is {getattr(settings, name)!r} in the base settings, out of its bounds "
                f"{low!r} to {high!r}"
            )
    return settings


def _check_number(name: str, value: Any, *, whole: bool) -> None:
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value <= MAX_COUNT:
        kind = "whole number" if whole else "number"
        raise SpecError(f"{name} is {value!r}, not a {kind} above zero")
