"""Train with devices of different speed, and give each device as much work as it can do.

The program compares FedAvg, where fast devices wait for the slowest, with assignments in the manner
of AMBLE, by the accuracy of the model after virtual seconds, on scikit-learn's digits. It writes
amble.svg and amble.json.
"""

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np

from gradshard_core.stragglers.assignment_settings import AssignmentSettings
from gradshard_core.stragglers.assignments import Assignment, Assignments, assign, find_target
from gradshard_core.stragglers.client_report import Report
from gradshard_core.stragglers.fednova import normalised_weights, plain_steps
from stragglers import clock, network, program, splits
from stragglers.backends import Backend, InMemory, chosen
from stragglers.curves import Curve, Floats, Panel

SIZES: Final = (64, 32, 16, 10)
BASE: Final = AssignmentSettings(batch_size=16, epochs=1, learning_rate=0.05)
LEARNING_RATES: Final = (0.05, 0.2)
"""One that suits clients with larger steps, and one that suits those without."""

FEDAVG: Final = "FedAvg"
AMBLE: Final = "AMBLE"
EPOCHS: Final = "AMBLE, epochs only"
NORMALISED: Final = "AMBLE, normalised"
WAYS: Final = (FEDAVG, AMBLE, EPOCHS, NORMALISED)

GRID_POINTS: Final = 200
GOAL: Final = 0.9
"""The accuracy whose time is compared."""


class Run(NamedTuple):
    """One training: when each round ended, how good the model was then, and who waited."""

    seconds: Floats
    accuracies: Floats
    idle_share: float
    epochs: float

    def seconds_to(self, goal: float) -> float | None:
        """Return when the accuracy was reached; None if it never was."""
        reached = np.flatnonzero(self.accuracies >= goal)
        return float(self.seconds[reached[0]]) if reached.size else None

    def at(self, times: Floats) -> Floats:
        """Return the accuracy of the last round that had ended; 0 before the first."""
        last = np.searchsorted(self.seconds, times, side="right")
        found: Floats = np.concatenate([[0.0], self.accuracies])[last]
        return found


def train(
    way: str,
    base: AssignmentSettings,
    split: str,
    clients: int,
    fastest: float,
    rounds: int,
    seed: int,
    backend: Backend,
) -> Run:
    """Train for so many rounds; a seed has its own model, images, devices and batches."""
    terms = replace(base, max_batch_size=base.batch_size) if way == EPOCHS else base
    digits = splits.load(split, clients, seed)
    devices = clock.devices(list(digits.clients), fastest, seed)
    samples = {client: len(images.labels) for client, images in digits.clients.items()}
    model = network.initialise(SIZES, seed)
    time = clock.Clock()
    assignments = Assignments(terms)
    seconds, accuracies, epochs = np.empty(rounds), np.empty(rounds), 0
    for number in range(rounds):
        work = {client: assignments.of(client) for client in digits.clients}
        updates = {}
        took = {}
        for index, (client, images) in enumerate(digits.clients.items()):
            settings = work[client]
            # Every client, round and seed shuffles otherwise, every run the same.
            shuffle = (seed * rounds + number) * clients + index
            trained = network.train(model, *images, local(settings), shuffle)
            updates[client] = {name: array - model[name] for name, array in trained.items()}
            took[client] = devices[client].seconds(
                samples[client], settings.batch_size, settings.epochs
            )
        if way == NORMALISED:
            change = InMemory().weighted(updates, normalised(work, samples, base))
        else:
            change = backend.average(updates, samples)
        model = {name: array + change[name] for name, array in model.items()}
        time.round(took)
        seconds[number], accuracies[number] = time.now, network.accuracy(model, *digits.test)
        epochs += sum(settings.epochs for settings in work.values())
        if way != FEDAVG:
            found, before = sorted(reports(work, samples, took).items()), assignments.clients
            target = find_target(terms, found, before)
            assignments = Assignments(terms, list(assign(terms, target, found, before)))
    return Run(seconds, accuracies, time.idle_share, epochs / rounds / clients)


def local(settings: Assignment) -> network.Training:
    """Return how a client trains: plain gradient descent, so that steps can be told apart."""
    return network.Training(
        settings.epochs, settings.batch_size, settings.learning_rate, momentum=0.0
    )


def reports(
    work: Mapping[str, Assignment], samples: Mapping[str, int], took: Mapping[str, float]
) -> dict[str, Report]:
    """Return what clients report of a round."""
    return {
        client: Report(samples[client], took[client], settings.batch_size, settings.epochs)
        for client, settings in work.items()
    }


def normalised(
    work: Mapping[str, Assignment], samples: Mapping[str, int], base: AssignmentSettings
) -> dict[str, float]:
    """Return weights that make up for how far each client went."""
    went = [
        plain_steps(
            settings.epochs * clock.steps_per_epoch(samples[client], settings.batch_size),
            settings.learning_rate / base.learning_rate,
        )
        for client, settings in work.items()
    ]
    weights = normalised_weights([samples[client] for client in work], went)
    return dict(zip(work, weights, strict=True))


def run(
    ways: Sequence[str],
    learning_rates: Sequence[float],
    clients: int,
    fastest: float,
    rounds: int,
    seeds: int,
    backend: Backend,
) -> list[Panel]:
    """Train in every way with every learning rate, split and seed."""
    panels = []
    cases = list(itertools.product(splits.SPLITS, learning_rates))
    with program.ticker(len(cases) * len(ways) * seeds) as ticker:
        for split, rate in cases:
            title = f"{clients} clients, speeds 1 to {fastest:g}, {split}, learning rate {rate:g}"
            base = replace(BASE, learning_rate=rate)
            runs: dict[str, list[Run]] = {way: [] for way in ways}
            for way, seed in itertools.product(ways, range(seeds)):
                runs[way].append(train(way, base, split, clients, fastest, rounds, seed, backend))
                ticker.done(f"{split}, {rate:g}: {way}")
            # As far as every training has come.
            end = min(run.seconds[-1] for way in ways for run in runs[way])
            times = np.linspace(0.0, end, GRID_POINTS)
            curves = [
                Curve.of(way, times, [run.at(times) for run in runs[way]], figures(runs[way], end))
                for way in ways
            ]
            panels.append(Panel(title, "virtual seconds", curves))
    return panels


def figures(runs: Sequence[Run], end: float) -> dict[str, Any]:
    """Return what is compared, by seed."""
    return {
        "last": [round(float(run.at(np.array([end]))[0]), 5) for run in runs],
        "seconds_to_goal": [run.seconds_to(GOAL) for run in runs],
        "idle_share": [round(run.idle_share, 5) for run in runs],
        "epochs_per_round": [run.epochs for run in runs],
    }


def main() -> int:
    """Run the program and return the process's exit code."""
    options = program.parser(__doc__, clients=10, rounds=40, seeds=5)
    options.add_argument(
        "--fastest",
        type=float,
        default=8.0,
        help="speed of the fastest device; that of the slowest is 1",
    )
    options.add_argument(
        "--learning-rates",
        type=float,
        nargs="+",
        default=LEARNING_RATES,
        metavar="RATE",
        help="learning rates of the base settings to compare",
    )
    program.add_engine(options, "; weights are not normalised there")
    given = options.parse_args()
    if not given.fastest >= 1:
        options.error(f"--fastest is {given.fastest}, under the slowest's 1")
    if not min(given.learning_rates) > 0:
        options.error(f"--learning-rates has {min(given.learning_rates)}, not above 0")
    ways = [way for way in WAYS if given.engine is None or way != NORMALISED]
    with chosen(given.engine) as backend:
        panels = run(
            ways,
            given.learning_rates,
            given.clients,
            given.fastest,
            given.rounds,
            given.seeds,
            backend,
        )
    for panel in panels:
        program.table(
            panel.title,
            ("", "at the end", f"seconds to {GOAL:.0%}", "idle", "epochs a round"),
            [(curve.label, *cells(curve.figures)) for curve in panel.curves],
        )
    program.write(
        given.output,
        "amble",
        "Accuracy by virtual seconds, mean and standard deviation over seeds",
        {
            "rounds": given.rounds,
            "seeds": given.seeds,
            "network": SIZES,
            "base": BASE.to_json(),
            "alpha": splits.ALPHA,
            "sample_seconds": clock.SAMPLE_SECONDS,
            "step_seconds": clock.STEP_SECONDS,
        },
        panels,
    )
    return 0


def cells(found: Mapping[str, Any]) -> list[str]:
    """Return the figures of a way to train as text."""
    reached = [seconds for seconds in found["seconds_to_goal"] if seconds is not None]
    never = len(found["seconds_to_goal"]) - len(reached)
    time = f"{np.mean(reached):.2f}" if reached else "never"
    return [
        program.percent(found["last"]),
        time + (f" ({never} never)" if reached and never else ""),
        program.percent(found["idle_share"]),
        f"{np.mean(found['epochs_per_round']):.1f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
