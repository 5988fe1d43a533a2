"""The budget of a training, in dollars and seconds."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from gradshard_core.errors import SpecError
from gradshard_core.specs.option_kinds import is_finite


class Budget(NamedTuple):
    """The most dollars of a training, and the seconds after which it begins no round; None: any."""

    dollars: float | None
    seconds: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the budget as the JSON that :func:`parse_budget` reads."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def parse_budget(budget: Any) -> Budget:
    """Check the budget of a training."""
    if not isinstance(budget, Mapping) or not set() < budget.keys() <= {"dollars", "seconds"}:
        raise SpecError(f"budget is {budget!r}, not an object with dollars, or seconds, or both")
    for name, value in budget.items():
        if not is_finite(value) or value <= 0:
            raise SpecError(f"budget: {name} is {value!r}, not a finite number above 0")
    return Budget(budget.get("dollars"), budget.get("seconds"))
