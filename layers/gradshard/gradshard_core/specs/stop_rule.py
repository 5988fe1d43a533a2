"""The rule by which a training stops before all its rounds: a target, and patience."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from gradshard_core.errors import SpecError
from gradshard_core.formats.client_metrics import is_metric_name
from gradshard_core.specs.option_kinds import is_finite


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
