"""Rules of a training: schedules of settings, when it stops early, and its budget."""

import math
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from gradshard_core.errors import SpecError
from gradshard_core.formats.client_metrics import is_metric_name

Setting = float | str

MAX_SETTINGS: Final = 32
MAX_SETTING_CHARACTERS: Final = 256
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


class Schedule(NamedTuple):
    """A setting of the clients by round.

    Parameters
    ----------
    stated
        As the training's options have it.
    steps
        Values from rounds on, in the order of the rounds.
    decay
        By which the value is multiplied after each round.
    """

    stated: Any
    steps: tuple[tuple[int, Setting], ...]
    decay: float = 1.0

    def at(self, number: int) -> Setting:
        """Return the value in a round, counted from 1."""
        _, value = next(step for step in reversed(self.steps) if step[0] <= number)
        if self.decay == 1 or isinstance(value, str):
            return value
        return float(value * self.decay ** (number - 1))


def parse_schedules(settings: Any) -> Mapping[str, Schedule]:
    """Check the settings of clients, which may change by round."""
    if not isinstance(settings, Mapping):
        raise SpecError(f"settings is {settings!r}, not an object of settings by name")
    if len(settings) > MAX_SETTINGS:
        raise SpecError(f"settings has {len(settings)} entries, over {MAX_SETTINGS}")
    return {_name(name): _parse_schedule(name, stated) for name, stated in settings.items()}


def _name(name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SpecError(
            f"setting {name!r} is not 1 to 64 letters, digits, dots, underscores and hyphens that "
            "begin with a letter"
        )
    return name


def _parse_schedule(name: str, stated: Any) -> Schedule:
    if not isinstance(stated, Mapping):
        return Schedule(stated, ((1, _setting(name, stated)),))
    if stated.keys() == {"start", "decay"}:
        start, decay = _setting(name, stated["start"]), _setting(name, stated["decay"])
        if isinstance(start, str) or isinstance(decay, str) or not 0 < decay <= 1:
            raise SpecError(f"setting {name!r}: start is a number, and decay one up to 1")
        return Schedule(dict(stated), ((1, start),), float(decay))
    steps = sorted((_round(name, at), _setting(name, value)) for at, value in stated.items())
    if not steps or steps[0][0] != 1:
        raise SpecError(
            f"setting {name!r} has no value for the first round: write "
            '{"1": 0.1, "30": 0.01}, or {"start": 0.1, "decay": 0.98}'
        )
    return Schedule(dict(stated), tuple(steps))


def _round(name: str, at: Any) -> int:
    if isinstance(at, str) and at.isascii() and at.isdigit() and 0 < len(at) <= 5 and int(at) > 0:
        return int(at)
    raise SpecError(
        f"setting {name!r}: {at!r} is not the number of a round: write "
        '{"1": 0.1, "30": 0.01}, or {"start": 0.1, "decay": 0.98}'
    )


def _setting(name: str, value: Any) -> Setting:
    if isinstance(value, str) and len(value) <= MAX_SETTING_CHARACTERS:
        return value
    if is_finite(value):
        return value  # type: ignore[no-any-return]
    raise SpecError(
        f"setting {name!r} is {value!r}, neither a finite number nor a text of at most "
        f"{MAX_SETTING_CHARACTERS} characters"
    )


def is_finite(value: Any) -> bool:
    """Return whether a value of JSON is a finite number that float64 holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


class StopRule(NamedTuple):
    """The rule by which a training ends before all its rounds.

    Parameters
    ----------
    metric
        The metric that decides, and by which versions are compared.
    at_least, at_most
        The target; the better values are the larger or the smaller ones. One is None.
    patience
        End when so many values in a row are no better than the best; None for never.
    maximize
        Whether larger values are better.
    """

    metric: str
    at_least: float | None
    at_most: float | None
    patience: int | None
    maximize: bool

    def is_better(self, value: float, best: float | None) -> bool:
        """Return whether a value is better than the best one so far."""
        return best is None or (value > best if self.maximize else value < best)

    def is_reached(self, value: float) -> bool:
        """Return whether a value reaches the target."""
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is not None and value <= self.at_most

    def to_json(self) -> dict[str, Any]:
        """Return the rule as the JSON that :func:`parse_stop_rule` reads."""
        stated = {name: value for name, value in self._asdict().items() if value is not None}
        if self.at_least is not None or self.at_most is not None:
            del stated["maximize"]
        return stated


def parse_stop_rule(rule: Any) -> StopRule:
    """Check when a training stops early."""
    fields = {"metric", "at_least", "at_most", "patience", "maximize"}
    if not isinstance(rule, Mapping) or not {"metric"} <= rule.keys() <= fields:
        raise SpecError(
            f"stop is {rule!r}, not an object with metric, and at_least or at_most, patience and "
            "maximize"
        )
    metric = rule["metric"]
    if not is_metric_name(metric):
        raise SpecError(f"stop: {metric!r} cannot be the name of a metric")
    for name in ("at_least", "at_most"):
        if rule.get(name) is not None and not is_finite(rule[name]):
            raise SpecError(f"stop: {name} is {rule[name]!r}, not a finite number")
    at_least, at_most = rule.get("at_least"), rule.get("at_most")
    if at_least is not None and at_most is not None:
        raise SpecError("stop has at_least and at_most: give the one that is the target")
    maximize = rule.get("maximize")
    if at_least is not None or at_most is not None:
        maximize = at_least is not None
    if not isinstance(maximize, bool):
        raise SpecError(
            f"stop: give at_least or at_most, or maximize as true or false, so that it is known "
            f"which values of {metric!r} are better"
        )
    patience = rule.get("patience")
    if patience is not None and not (
        isinstance(patience, int) and not isinstance(patience, bool) and 1 <= patience <= 100_000
    ):
        raise SpecError(f"stop: patience is {patience!r}, not a whole number from 1")
    if patience is None and at_least is None and at_most is None:
        raise SpecError("stop has no target and no patience: give one of them")
    return StopRule(metric, at_least, at_most, patience, maximize)


class Budget(NamedTuple):
    """The most dollars of a training, and the seconds after which it begins no round; None: any."""

    dollars: float | None
    seconds: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the budget as the JSON that :func:`parse_budget` reads."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def parse_budget(budget: Any) -> Budget:
    """Check the budget of a training."""
    if not isinstance(budget, Mapping) or not {*()} < budget.keys() <= {"dollars", "seconds"}:
        raise SpecError(f"budget is {budget!r}, not an object with dollars, or seconds, or both")
    for name, value in budget.items():
        if not is_finite(value) or value <= 0:
            raise SpecError(f"budget: {name} is {value!r}, not a finite number above 0")
    return Budget(budget.get("dollars"), budget.get("seconds"))
