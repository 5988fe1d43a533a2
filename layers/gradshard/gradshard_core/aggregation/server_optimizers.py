"""Server optimizers: formulas by which a round's average changes the federation's model.

FedAvgM is Hsu et al. 2019 (https://arxiv.org/abs/1909.06335); FedAdagrad, FedYogi and FedAdam are
algorithm 2 of Reddi et al. 2021 (https://arxiv.org/abs/2003.00295). Operations and their order are
those of Flower's strategies of the same names, so that elements are equal. Every operation is
elementwise: a shard of the model is all that a task needs.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np

from gradshard_core.aggregation.arithmetic import Array
from gradshard_core.aggregation.batchnorm_buffers import check_patterns
from gradshard_core.errors import SpecError
from gradshard_core.formats.object_keys import DEFAULT_MODEL, check_id

FEDAVG: Final = "fedavg"
LINEAR: Final = (FEDAVG, "fedavgm")
"""Those whose models depend linearly on the averages of all rounds."""

DELTAS: Final = "deltas"
MODELS: Final = "models"
UPDATES: Final = (DELTAS, MODELS)
"""The contents of updates: the change of the model by training, or the trained model itself."""

MOMENTUM: Final = "momentum"
VARIANCE: Final = "variance"

Settings = Mapping[str, float]
State = Sequence[Array]
"""One array for each name of the optimizer's state, in that order."""


class _Optimizer(NamedTuple):
    """One server optimizer.

    Parameters
    ----------
    state
        The names of its state, each as large as the model in accumulators.
    defaults
        The settings and their defaults.
    step
        (settings, t, model, delta, state before; zeros at the first step) → model, state.
    """

    state: tuple[str, ...]
    defaults: Settings
    step: Callable[[Settings, int, Array, Array, State], tuple[Array, State]]


def _fedavg(
    settings: Settings, _t: int, model: Array, delta: Array, _state: State
) -> tuple[Array, State]:
    return model + settings["learning_rate"] * delta, ()


def _fedavgm(
    settings: Settings, _t: int, model: Array, delta: Array, state: State
) -> tuple[Array, State]:
    momentum = settings["momentum"] * state[0] + delta
    return model + settings["learning_rate"] * momentum, (momentum,)


def _fedadagrad(
    settings: Settings, _t: int, model: Array, delta: Array, state: State
) -> tuple[Array, State]:
    variance = state[0] + delta**2
    step = settings["learning_rate"] * delta / (np.sqrt(variance) + settings["tau"])
    return model + step, (variance,)


def _fedyogi(
    settings: Settings, _t: int, model: Array, delta: Array, state: State
) -> tuple[Array, State]:
    momentum, variance = _moving_average(settings["beta_1"], state[0], delta), state[1]
    square = delta**2
    variance = variance - (1.0 - settings["beta_2"]) * square * np.sign(variance - square)
    step = settings["learning_rate"] * momentum / (np.sqrt(variance) + settings["tau"])
    return model + step, (momentum, variance)


def _fedadam(
    settings: Settings, t: int, model: Array, delta: Array, state: State
) -> tuple[Array, State]:
    beta_1, beta_2 = settings["beta_1"], settings["beta_2"]
    momentum = _moving_average(beta_1, state[0], delta)
    variance = _moving_average(beta_2, state[1], delta**2)
    # Flower's bias correction, whose exponent is t + 1. As there, the rate is a float64 and so is
    # the step that it makes; the model is rounded once, in the end.
    rate = (
        settings["learning_rate"]
        * np.sqrt(1 - np.power(beta_2, t + 1.0))
        / (1 - np.power(beta_1, t + 1.0))
    )
    return model + rate * momentum / (np.sqrt(variance) + settings["tau"]), (momentum, variance)


def _moving_average(beta: float, before: Array, now: Array) -> Array:
    average: Array = beta * before + (1 - beta) * now
    return average


_ADAPTIVE: Final = {"learning_rate": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}

OPTIMIZERS: Final[Mapping[str, _Optimizer]] = MappingProxyType(
    {
        FEDAVG: _Optimizer((), {"learning_rate": 1.0}, _fedavg),
        "fedavgm": _Optimizer((MOMENTUM,), {"learning_rate": 1.0, "momentum": 0.9}, _fedavgm),
        "fedadagrad": _Optimizer((VARIANCE,), {"learning_rate": 0.1, "tau": 1e-3}, _fedadagrad),
        "fedyogi": _Optimizer((MOMENTUM, VARIANCE), _ADAPTIVE | {"learning_rate": 0.01}, _fedyogi),
        "fedadam": _Optimizer((MOMENTUM, VARIANCE), _ADAPTIVE, _fedadam),
    }
)

_BOUNDS: Final[Mapping[str, tuple[str, Callable[[float], bool]]]] = MappingProxyType(
    {
        "learning_rate": ("a number above zero", lambda value: value > 0),
        "momentum": ("a number from 0 to below 1", lambda value: 0 <= value < 1),
        "beta_1": ("a number from 0 to below 1", lambda value: 0 <= value < 1),
        "beta_2": ("a number from 0 to below 1", lambda value: 0 <= value < 1),
        "tau": ("a number above zero", lambda value: value > 0),
    }
)


@dataclass(frozen=True)
class ServerOptimizer:
    """The optimizer, with its settings, that applies a round's average to the model.

    Parameters
    ----------
    optimizer
        ``fedavg``, ``fedavgm``, ``fedadagrad``, ``fedyogi`` or ``fedadam``.
    settings
        Its numbers: ``learning_rate`` and, as it has them, ``momentum``, ``beta_1``, ``beta_2``
        and ``tau``.
    updates
        ``deltas`` or ``models``: what clients send.
    model
        The model's name.
    buffers
        Names of tensors that are averaged and not stepped, or patterns of names; None: those of
        the model's version. Integers always are.
    """

    optimizer: str
    settings: Settings
    updates: str = DELTAS
    model: str = DEFAULT_MODEL
    buffers: tuple[str, ...] | None = None

    @property
    def state(self) -> tuple[str, ...]:
        """Names of what the optimizer keeps from step to step."""
        return OPTIMIZERS[self.optimizer].state

    def step(
        self, number: int, model: Array, average: Array, state: State
    ) -> tuple[Array, list[Array]]:
        """Make one step.

        Parameters
        ----------
        number
            t, from 1: how many steps this makes.
        model
            Some of the model's elements, in their accumulator's type.
        average
            The same elements of the averaged update.
        state
            The same of the state before, in the order of its names.

        Returns
        -------
        Array
            The next model, in the accumulator's type.
        list of Array
            The state after.
        """
        known = OPTIMIZERS[self.optimizer]
        if self.updates == MODELS:
            if self.optimizer == FEDAVG and self.settings["learning_rate"] == 1:
                return average, []
            average = average - model
        stepped, after = known.step(self.settings, number, model, average, state)
        return stepped.astype(model.dtype, copy=False), list(after)

    def average(self, model: Array, average: Array) -> tuple[Array, list[Array]]:
        """Average some elements of a buffer: what :meth:`step` is for those of a parameter.

        Returns
        -------
        Array
            The next model: the average of what clients have.
        list of Array
            Zeros: the optimizer keeps nothing of a buffer.
        """
        averaged = average if self.updates == MODELS else model + average
        return averaged, [np.zeros_like(model) for _ in self.state]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "optimizer": self.optimizer,
            **self.settings,
            "updates": self.updates,
            "model": self.model,
            **({} if self.buffers is None else {"buffers": list(self.buffers)}),
        }


def parse_server_optimizer(stated: Any) -> ServerOptimizer:
    """Read how an update is to be applied.

    Parameters
    ----------
    stated
        An optimizer's name, or ``{"optimizer": …}`` with settings, ``updates``, ``model`` and
        ``buffers``; settings that are left out have Flower's default values, FedAvgM's momentum
        0.9.

    Raises
    ------
    SpecError
        The settings are unknown or out of their bounds.
    """
    if isinstance(stated, str):
        stated = {"optimizer": stated}
    if not isinstance(stated, Mapping):
        raise SpecError(
            f"server_optimizer is {stated!r}, neither {', '.join(OPTIMIZERS)} "
            "nor {optimizer: …, …}"
        )
    fields = dict(stated)
    name = fields.pop("optimizer", FEDAVG)
    if not isinstance(name, str) or name not in OPTIMIZERS:
        raise SpecError(
            f"server_optimizer: optimizer is {name!r}, not one of {', '.join(OPTIMIZERS)}"
        )
    updates = fields.pop("updates", DELTAS)
    if updates not in UPDATES:
        raise SpecError(
            f"server_optimizer: updates is {updates!r}, not one of {', '.join(UPDATES)}"
        )
    model = check_id("model", fields.pop("model", DEFAULT_MODEL))
    patterns = fields.pop("buffers", None)
    buffers = None if patterns is None else check_patterns(patterns)
    defaults = OPTIMIZERS[name].defaults
    unknown = sorted(fields.keys() - defaults.keys())
    if unknown:
        raise SpecError(
            f"server_optimizer: {name} has no {unknown[0]!r}; "
            f"its settings are {', '.join(defaults)}"
        )
    settings = {key: _number(key, fields.get(key, value)) for key, value in defaults.items()}
    return ServerOptimizer(name, settings, updates, model, buffers)


def _number(name: str, value: Any) -> float:
    wanted, holds = _BOUNDS[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) <= sys.float_info.max or not holds(value):
        raise SpecError(f"server_optimizer: {name} is {value!r}, not {wanted}")
    return float(value)
