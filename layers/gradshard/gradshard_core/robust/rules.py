"""Robust rules: ways to combine updates so that a few bad ones have little effect.

Element-wise rules (:mod:`gradshard_core.robust.elementwise_rules`) take one pass. The others
*measure* first: the inner products of all pairs of updates, their Gram matrix, say how long updates
are and how far from each other. A rule makes weights of them, and the weighted sum is the second
pass. Bulyan does both: it combines each element of the updates that its first pass has selected. A
further rule is one function (:mod:`gradshard_core.robust.whole_update_rules`) and its line in
:data:`ROBUST_RULES`.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from gradshard_core.aggregation.kernel import Reduction
from gradshard_core.errors import SpecError
from gradshard_core.robust import whole_update_rules
from gradshard_core.robust.elementwise_rules import (
    MajoritySign,
    MeanAroundMedian,
    TrimmedMean,
    cut_of,
)
from gradshard_core.robust.whole_update_rules import Decision, Gram, Settings


class _Setting(NamedTuple):
    """A setting of a rule: its default, whether a value is allowed, and how that is said.

    A setting without a default is left out of the settings if it is not given.
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
        The settings that the rule has.
    least
        (settings) → the fewest updates that it takes.
    decide
        Makes weights of a Gram matrix; None for a rule that measures nothing.
    elementwise
        (settings, is_disordered) → the reduction of an element-wise rule; None for a weighted sum.
    score
        The name of the scores by which ``decide`` decides, as reports show it.
    is_of_changes
        Whether it goes by lengths or directions, which only changes of a model have.
    pairs
        Whether it needs products of different updates; otherwise only norms are measured. Partial
        updates are then decided on as a whole, which needs ``full`` weights of the decision.
    counts_samples
        Whether an update counts by its client's number of samples.
    """

    settings: Mapping[str, _Setting]
    least: Callable[[Settings], int]
    decide: whole_update_rules.Rule | None = None
    elementwise: Callable[[Settings, bool], Reduction] | None = None
    score: str = ""
    is_of_changes: bool = False
    pairs: bool = True
    counts_samples: bool = False


def _one(_settings: Settings) -> int:
    return 1


def _three(_settings: Settings) -> int:
    """Fewer updates have no majority."""
    return 3


def _trimmed_least(settings: Settings) -> int:
    """Of fewer updates none is left out at either end, so that one bad update could do anything."""
    beta = settings["beta"]
    least = math.ceil(min(1 / beta, 1e9))
    # 1 / β is rounded, and so is β times a number.
    return max(3, next(n for n in (least - 1, least, least + 1) if cut_of(beta, n) or n > least))


def _krum_least(settings: Settings) -> int:
    """2f + 2 < N (Blanchard et al. 2017, proposition 1)."""
    return 2 * int(settings["f"]) + 3


def _multi_krum_least(settings: Settings) -> int:
    """No more updates are chosen than are good."""
    return max(_krum_least(settings), int(settings.get("m", 1)) + int(settings["f"]))


def _bulyan_least(settings: Settings) -> int:
    """4f + 3 (El Mhamdi et al. 2018, section 4)."""
    return int(4 * settings["f"] + 3)


def _median(_settings: Settings, _is_disordered: bool) -> Reduction:
    return TrimmedMean()


def _trimmed_mean(settings: Settings, _is_disordered: bool) -> Reduction:
    return TrimmedMean(settings["beta"])


def _sign(_settings: Settings, is_disordered: bool) -> Reduction:
    return MajoritySign(is_disordered=is_disordered)


def _around_median(settings: Settings, _is_disordered: bool) -> Reduction:
    return MeanAroundMedian(int(2 * settings["f"]))


def _is_count(value: float) -> bool:
    return value >= 1 and float(value).is_integer()


MEDIAN: Final = "median"
TRIMMED_MEAN: Final = "trimmed_mean"
SIGN: Final = "sign"
LAYER_QUORUM: Final = "layer_quorum"

_KRUM: Final = "Krum score"
_BETA: Final = _Setting(0.2, lambda beta: 0 < beta < 0.5, "a number above 0 and under 0.5")
_F: Final = _Setting(None, _is_count, "a whole number from 1, how many updates may be bad", True)
_M: Final = _Setting(None, _is_count, "a whole number from 1")
_BOUND: Final = _Setting(None, lambda bound: bound > 0, "a number above 0")
_QUANTILE: Final = _Setting(None, lambda q: 0 < q <= 1, "a number above 0 and at most 1")
_CLIP: Final = {"bound": _BOUND, "quantile": _QUANTILE}
_LEAST: Final = _Setting(0.0, lambda cosine: -1 <= cosine < 1, "a number from -1 and under 1")
_LAYER_QUORUM: Final = _Setting(None, _is_count, "a whole number from 3")
_BY_LAYER: Final = {LAYER_QUORUM: _LAYER_QUORUM}
_ITERATIONS: Final = _Setting(
    3, lambda n: _is_count(n) and n <= 100, "a whole number from 1 to 100"
)

ROBUST_RULES: Final[Mapping[str, _Rule]] = {
    MEDIAN: _Rule(_BY_LAYER, _three, elementwise=_median),
    TRIMMED_MEAN: _Rule({"beta": _BETA, **_BY_LAYER}, _trimmed_least, elementwise=_trimmed_mean),
    SIGN: _Rule(_BY_LAYER, _one, elementwise=_sign, is_of_changes=True),
    "norm_clip": _Rule(
        {**_CLIP, **_BY_LAYER},
        _one,
        whole_update_rules.norm_clip,
        score="norm",
        is_of_changes=True,
        pairs=False,
        counts_samples=True,
    ),
    "krum": _Rule({"f": _F, **_BY_LAYER}, _krum_least, whole_update_rules.krum, score=_KRUM),
    "multi_krum": _Rule(
        {"f": _F, "m": _M, **_BY_LAYER},
        _multi_krum_least,
        whole_update_rules.multi_krum,
        score=_KRUM,
        counts_samples=True,
    ),
    "bulyan": _Rule(
        {"f": _F, **_BY_LAYER},
        _bulyan_least,
        whole_update_rules.bulyan,
        _around_median,
        score=_KRUM,
    ),
    "geometric_median": _Rule(
        _BY_LAYER,
        _three,
        whole_update_rules.geometric_median,
        score="distance from the geometric median",
        counts_samples=True,
    ),
    "cosine_filter": _Rule(
        {"least": _LEAST, **_BY_LAYER},
        _three,
        whole_update_rules.cosine_filter,
        score="cosine with the geometric median",
        is_of_changes=True,
        counts_samples=True,
    ),
    "centered_clip": _Rule(
        {**_CLIP, "iterations": _ITERATIONS, **_BY_LAYER},
        _one,
        whole_update_rules.centered_clip,
        score="distance from the center",
        is_of_changes=True,
        counts_samples=True,
    ),
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
    def is_elementwise(self) -> bool:
        """Whether it combines each element on its own instead of adding with weights."""
        return ROBUST_RULES[self.name].elementwise is not None

    def count_left_out(self, updates: int) -> int:
        """Return how many updates it leaves out, as far as their number decides that."""
        bad = int(self.settings.get("f", 0))
        return {
            "krum": updates - 1,
            "multi_krum": updates - int(self.settings.get("m", updates - bad)),
            "bulyan": 2 * bad,
        }.get(self.name, 0)

    @property
    def counts_samples(self) -> bool:
        """Whether an update counts by its client's number of samples."""
        return ROBUST_RULES[self.name].counts_samples

    @property
    def is_of_changes(self) -> bool:
        """Whether it goes by lengths or directions, which only changes of a model have."""
        return ROBUST_RULES[self.name].is_of_changes

    @property
    def pairs(self) -> bool:
        """Whether it needs products of different updates; otherwise only norms are measured."""
        return ROBUST_RULES[self.name].pairs

    @property
    def compares(self) -> bool:
        """Whether a task needs all updates at once; otherwise groups of them can be added first."""
        return self.is_elementwise or self.pairs

    @property
    def layer_quorum(self) -> int | None:
        """The fewest partial updates with a layer by which it changes; None for whole updates."""
        quorum = self.settings.get(LAYER_QUORUM)
        return None if quorum is None else int(quorum)

    @property
    def decides_by_layer(self) -> bool:
        """Whether it compares partial updates, which it does in each layer by itself."""
        return self.measures and self.pairs and self.layer_quorum is not None

    @property
    def score(self) -> str:
        """The name of the scores by which the rule decides, as reports show it."""
        return ROBUST_RULES[self.name].score

    def decide(self, gram: Gram, samples: Sequence[int]) -> Decision:
        """Make weights of measured updates."""
        decide = ROBUST_RULES[self.name].decide
        assert decide is not None  # noqa: S101 - for mypy: an element-wise rule measures nothing
        return decide(self.settings, gram, samples)

    @property
    def holds_all(self) -> bool:
        """Whether a task that writes the result holds a block of every input at once."""
        return self.is_elementwise and self.name != SIGN

    @property
    def least_clients(self) -> int:
        """The fewest updates that the rule takes: with fewer, no layer would have its quorum."""
        return max(self._least, self.layer_quorum or 0)

    @property
    def _least(self) -> int:
        """The fewest updates of which it combines an element."""
        return ROBUST_RULES[self.name].least(self.settings)

    @property
    def _stated(self) -> str:
        """The rule and its settings for people."""
        settings = ", ".join(f"{key}={value:g}" for key, value in self.settings.items())
        return f"{self.name} ({settings})" if settings else self.name

    def _advice(self, expected: int) -> str:
        """Say which β, which f, or which m, would do for so many updates."""
        if self.name == TRIMMED_MEAN and expected >= _three(self.settings):
            beta = math.ceil(1000 / expected) / 1000
            return (
                f", and it leaves out none of {expected} updates: give a beta of at least {beta:g},"
                " or no rule"
            )
        if "f" not in self.settings:
            return ""
        if f := self._largest_f(expected):
            return f"; give f of at most {f}"
        if "m" not in self.settings:
            return ""
        if self._least_with(m=1) <= expected:
            return f"; give m of at most {expected - int(self.settings['f'])}"
        f = self._largest_f(expected, m=1)
        return f"; give f of at most {f}, and m of at most {expected - f}" if f else ""

    def _largest_f(self, expected: int, **settings: float) -> int:
        """Return the largest f for so many updates; zero if there is none."""
        fitting = (f for f in range(1, expected) if self._least_with(f=f, **settings) <= expected)
        return max(fitting, default=0)

    def _least_with(self, **settings: float) -> int:
        return ROBUST_RULES[self.name].least({**self.settings, **settings})

    def check_clients(self, expected: int) -> None:
        """Check that the rule takes so many updates, and that it does something.

        Raises
        ------
        SpecError
            It does not; the text has the numbers.
        """
        if expected < self._least:
            raise SpecError(
                f"rule {self._stated} needs at least {self._least} updates, and "
                f"{expected} are expected{self._advice(expected)}"
            )
        if self.layer_quorum is None:
            return
        least = max(self._least, _three(self.settings))
        if expected < least:
            raise SpecError(
                f"rule {self._stated} needs at least {least} updates, of fewer of which it "
                f"tolerates no bad one, and {expected} are expected: leave out layer_quorum"
            )
        if not least <= self.layer_quorum <= expected:
            raise SpecError(
                f"rule {self._stated}: layer_quorum is not from {least} to {expected}: of fewer "
                f"updates the rule tolerates no bad one, and {expected} are expected"
            )

    @property
    def measures(self) -> bool:
        """Whether it measures all updates before it adds them."""
        return ROBUST_RULES[self.name].decide is not None

    def reduction(self, *, is_disordered: bool) -> Reduction:
        """Return the reduction of an element-wise rule."""
        elementwise = ROBUST_RULES[self.name].elementwise
        assert elementwise is not None  # noqa: S101 - for mypy: other rules add with weights
        return elementwise(self.settings, is_disordered)

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
        raise SpecError(f"rule {name} has no {unknown[0]!r}; its settings are {', '.join(known)}")
    settings: dict[str, float] = {}
    for key, setting in known.items():
        value = setting.default if stated.get(key) is None else stated[key]
        if value is None:
            if setting.is_required:
                raise SpecError(f"rule {name} needs {key}, {setting.wanted}")
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not abs(value) <= sys.float_info.max or not setting.holds(value):
            raise SpecError(f"rule {name}: {key} is {value!r}, not {setting.wanted}")
        settings[key] = value
    if "bound" in known and "bound" in settings and "quantile" in settings:
        raise SpecError(f"rule {name}: give bound or quantile, not both: one decides the other")
    if "bound" in known and not settings.keys() & _CLIP.keys():
        settings["quantile"] = 0.5
    return RobustRule(name, settings)
