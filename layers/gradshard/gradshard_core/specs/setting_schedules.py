"""The settings that a training gives its clients, and their schedules by round."""

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from gradshard_core.errors import SpecError
from gradshard_core.specs.option_kinds import is_finite

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
