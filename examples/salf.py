"""Train with clients that are cut off before back-propagation has reached the first layers.

The program compares full participation with SALF and other ways to average the updates of
stragglers, by the accuracy of the model after each round, on scikit-learn's digits. It writes
salf.svg and salf.json.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from gradshard_core.stragglers.layer_reach import ClientReach
from gradshard_core.stragglers.salf import PartialRule
from stragglers import network, program, splits
from stragglers.backends import Backend, chosen
from stragglers.curves import Curve, Floats, Panel
from stragglers.splits import IID, NON_IID, Digits

SIZES: Final = (64, 32, 16, 10)
LAYERS: Final = len(SIZES) - 1
LEARNING_RATE: Final = 0.1
MOMENTUM: Final = 0.5
BATCH_SIZE: Final = 16

FULL: Final = "full participation"
SALF: Final = "SALF"
BALANCED: Final = "SALF, balanced"
UNCORRECTED: Final = "uncorrected"
FILL: Final = "fill and divide"
DROP: Final = "drop stragglers"
RULES: Final = (FULL, SALF, BALANCED, UNCORRECTED, FILL, DROP)

FEW: Final = 3
"""Clients of the setting in which often nobody reaches the first layer."""


@dataclass(frozen=True)
class Setting:
    """The clients of a training.

    Parameters
    ----------
    split
        The name of the split of the digits.
    clients
        The number of clients.
    stragglers
        How many of them are cut off, after a depth drawn anew each round: 1, 2, … or all layers,
        each as likely. The others always finish.
    """

    split: str
    clients: int
    stragglers: int

    @property
    def title(self) -> str:
        """The title of the plot."""
        return f"{self.clients} clients, {self.stragglers} of them stragglers, {self.split}"

    def depths(self, rng: np.random.Generator) -> list[int]:
        """Draw how many layers each client gets through; stragglers come first."""
        finished = [LAYERS] * (self.clients - self.stragglers)
        return [*rng.integers(1, LAYERS + 1, self.stragglers).tolist(), *finished]

    def reach(self) -> ClientReach:
        """Return how likely each client is to reach each layer."""
        names = splits.names(self.clients)
        straggling = {f"layer{index}": (index + 1) / LAYERS for index in range(LAYERS)}
        return ClientReach(
            {name: straggling if n < self.stragglers else 1.0 for n, name in enumerate(names)}
        )


class Clients:
    """The clients' side: one step of gradient descent each round, on a batch of their own images.

    Parameters
    ----------
    digits
        The images.
    seed
        Decides the batches, whatever the rule.
    """

    def __init__(self, digits: Digits, seed: int) -> None:
        self._digits = digits
        self._rng = np.random.default_rng(seed)
        self._velocity: dict[str, network.Parameters] = {client: {} for client in digits.clients}

    def train(
        self, model: network.Parameters, depths: Sequence[int]
    ) -> dict[str, network.Parameters]:
        """Return each client's update: how the last layers, as many as it got through, change.

        A client keeps its momentum from round to round.
        """
        return {
            client: self._step(client, model, depth)
            for client, depth in zip(self._digits.clients, depths, strict=True)
        }

    def _step(self, client: str, model: network.Parameters, depth: int) -> network.Parameters:
        images, labels = self._digits.clients[client]
        batch = self._rng.permutation(len(labels))[:BATCH_SIZE]
        update: network.Parameters = {}
        for name, gradient in network.backpropagate(model, images[batch], labels[batch]):
            # What comes next is of a layer the client does not reach.
            if len(update) == 2 * depth:
                break
            before: network.Array = self._velocity[client].get(name, np.zeros_like(gradient))
            update[name] = MOMENTUM * before - LEARNING_RATE * gradient
        self._velocity[client] |= update
        return update


def train(rule: str, setting: Setting, rounds: int, seed: int, backend: Backend) -> Floats:
    """Return the accuracy after each round; a seed has its own model, batches and depths."""
    digits = splits.load(setting.split, setting.clients, seed)
    clients = Clients(digits, seed)
    model = network.initialise(SIZES, seed)
    average = averager(rule, setting, list(digits.clients), model, backend)
    rng = np.random.default_rng([seed, 1])
    accuracies = np.empty(rounds)
    for number in range(rounds):
        depths = setting.depths(rng)
        updates = clients.train(model, [LAYERS] * len(depths) if rule == FULL else depths)
        change = average(updates)
        model = {name: array + change[name] for name, array in model.items()}
        accuracies[number] = network.accuracy(model, *digits.test)
    return accuracies


def averager(
    rule: str,
    setting: Setting,
    clients: Sequence[str],
    model: network.Parameters,
    backend: Backend,
) -> Callable[[Mapping[str, network.Parameters]], network.Parameters]:
    """Return what averages a round's updates, all clients counting alike."""
    alike = dict.fromkeys(clients, 1)
    if rule == FULL:
        return lambda updates: backend.average(updates, alike)
    partial = {
        SALF: PartialRule("salf", setting.reach()),
        BALANCED: PartialRule("salf", setting.reach(), balanced=True),
        UNCORRECTED: PartialRule("fedavg"),
        FILL: PartialRule("fill"),
        DROP: PartialRule("drop"),
    }[rule]
    return lambda updates: backend.average_partial(updates, alike, partial, clients, model)


def run(settings: Sequence[Setting], rounds: int, seeds: int, backend: Backend) -> list[Panel]:
    """Train in every setting by every rule with every seed."""
    panels = []
    with program.ticker(len(settings) * len(RULES) * seeds) as ticker:
        for setting in settings:
            curves = []
            for rule in RULES:
                runs = []
                for seed in range(seeds):
                    runs.append(train(rule, setting, rounds, seed, backend))
                    ticker.done(f"{setting.title}: {rule}")
                curves.append(Curve.of(rule, np.arange(1.0, rounds + 1), runs, figures(runs)))
            panels.append(Panel(setting.title, "round", curves))
    return panels


def figures(runs: Sequence[Floats]) -> dict[str, Any]:
    """Return each seed's last accuracy, and its mean over all rounds, which tells speed."""
    return {
        "last": [round(float(run[-1]), 5) for run in runs],
        "mean_over_rounds": [round(float(run.mean()), 5) for run in runs],
    }


def main() -> int:
    """Run the program and return the process's exit code."""
    options = program.parser(__doc__, clients=30, rounds=100, seeds=5)
    options.add_argument(
        "--stragglers",
        type=float,
        default=0.9,
        metavar="SHARE",
        help="share of stragglers among the clients, from 0 to 1",
    )
    program.add_engine(options)
    given = options.parse_args()
    if not 0 <= given.stragglers <= 1:
        options.error(f"--stragglers is {given.stragglers}, not a share from 0 to 1")
    stragglers = round(given.stragglers * given.clients)
    settings = [
        Setting(IID, given.clients, stragglers),
        Setting(NON_IID, given.clients, stragglers),
        Setting(IID, FEW, FEW),
    ]
    with chosen(given.engine) as backend:
        panels = run(settings, given.rounds, given.seeds, backend)
    for panel in panels:
        program.table(
            panel.title,
            ("rule", "last round", "mean of rounds"),
            [
                (
                    curve.label,
                    *(program.percent(curve.figures[key]) for key in ("last", "mean_over_rounds")),
                )
                for curve in panel.curves
            ],
        )
    program.write(
        given.output,
        "salf",
        "Accuracy by round, mean and standard deviation over seeds",
        {
            "rounds": given.rounds,
            "seeds": given.seeds,
            "network": SIZES,
            "learning_rate": LEARNING_RATE,
            "momentum": MOMENTUM,
            "batch_size": BATCH_SIZE,
            "alpha": splits.ALPHA,
        },
        panels,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
