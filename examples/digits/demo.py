"""Train a network over gradshard on this machine, then average updates of ResNet-18's size.

The program starts the local engine, deploys the application to it with `sam`, compares every
averaged update bit for bit with a plain numpy loop, and stops the engine. It exits with 1 if
anything is off.
"""

import argparse
import signal
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, NoReturn

import plain_numpy
import resnet18
from gradshard import Federation, GradshardError
from gradshard.local_engine import lifecycle
from plain_numpy import Array, Update
from screen import Outcome, Screen, Steps, size
from training import CLIENTS, FederatedTraining

ROUNDS: Final = 5
ADVANTAGE: Final = 0.10
"""Accuracy by which the common model has to exceed the best client alone."""

LARGE_CLIENTS: Final = 8
LARGE_SHARDS: Final = 4

TIMEOUT_SECONDS: Final = 120
WAIT_SECONDS: Final = 180
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED: Final = 130


def main() -> int:
    """Run the demo and return the process's exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--port", type=int, help="port of the local engine (default: any free port)"
    )
    port = parser.parse_args().port or free_port()
    for name in SIGNALS:
        signal.signal(name, interrupt)
    screen = Screen()
    try:
        outcomes = run(port, screen)
    except KeyboardInterrupt:
        screen.end("Interrupted.", "bold red")
        return INTERRUPTED
    except GradshardError as error:
        return fail(screen, [str(error)])
    screen.summary(outcomes)
    problems = [f"{o.title}: {problem}" for o in outcomes for problem in o.problems]
    if problems:
        return fail(screen, problems)
    screen.end("Every averaged update is the plain numpy loop's, bit for bit.", "bold green")
    return 0


def fail(screen: Screen, problems: list[str]) -> int:
    """Say what is off, and return the exit code that says so too."""
    screen.problems(problems)
    screen.end("The demo has failed.", "bold red")
    return 1


def run(port: int, screen: Screen) -> list[Outcome]:
    """Have all rounds on an engine of this run's own."""
    with engine(port, screen):
        federation = Federation(stack="gradshard", local=True, port=port)
        run_id = uuid.uuid4().hex[:8]
        outcomes = train_digits(federation, f"digits-{run_id}", screen)
        outcomes.append(average_large_updates(federation, f"resnet18-{run_id}", screen))
    return outcomes


@contextmanager
def engine(port: int, screen: Screen) -> Iterator[None]:
    """Have an engine with the application deployed to it; one that ran before is left running."""
    was_running = lifecycle.status(port).running
    screen.title("The application, deployed by `sam` to an engine on this machine")
    try:
        with screen.steps() as steps:
            lifecycle.up(port, progress=steps.begin)
        yield
    finally:
        if not was_running:
            # A second Ctrl-C must not leave the engine behind.
            for name in SIGNALS:
                signal.signal(name, signal.SIG_IGN)
            screen.title("Clean-up")
            with screen.steps() as steps:
                steps.begin("stopping the engine")
                lifecycle.down(port)


def train_digits(federation: Federation, name: str, screen: Screen) -> list[Outcome]:
    """Train a network on handwritten digits at five clients, and average their updates."""
    screen.title(f"Federated training: {len(CLIENTS)} clients, {ROUNDS} rounds, handwritten digits")
    screen.say(
        "  Each client trains on its own images and submits how its weights changed; gradshard\n"
        "  averages the changes. Shown: test images recognised, and those by clients who train\n"
        "  as long, but alone."
    )
    with screen.steps(kept=False) as steps:
        steps.begin("loading the images")
        training = FederatedTraining()
    screen.clients(training.images_by_digit())
    screen.round_heads()
    outcomes = []
    for number in range(1, ROUNDS + 1):
        started = time.monotonic()
        with screen.steps(kept=False) as steps:
            steps.begin(f"round {number}: training")
            updates = training.train()
            outcome, average = average_updates(federation, f"{name}-{number}", updates, steps)
            training.apply(average)
        accuracies = training.accuracies()
        seconds = time.monotonic() - started
        screen.round_line(number, accuracies, outcome.comparison, seconds)
        outcomes.append(outcome._replace(title=f"digits {number}"))
    if accuracies.together < accuracies.best_alone + ADVANTAGE:
        outcomes[-1].problems.append(
            f"accuracy {accuracies.together:.1%} is not {ADVANTAGE:.0%} above the best single "
            f"client's {accuracies.best_alone:.1%}"
        )
    return outcomes


def average_large_updates(federation: Federation, name: str, screen: Screen) -> Outcome:
    """Average updates with the tensors of ResNet-18, filled with random numbers."""
    screen.title(
        f"A round of ResNet-18's size: {resnet18.PARAMETERS:,} parameters, {LARGE_CLIENTS} clients"
    )
    with screen.steps() as steps:
        steps.begin("drawing random updates")
        updates = {
            f"client-{number}": Update(resnet18.random_update(number, 10 * number), 320 * number)
            for number in range(1, LARGE_CLIENTS + 1)
        }
        outcome, _ = average_updates(federation, name, updates, steps, LARGE_SHARDS)
    screen.comparison(outcome.comparison)
    outcome.problems.extend(memory_problems(outcome.manifest))
    return outcome._replace(title="ResNet-18")


def average_updates(
    federation: Federation,
    name: str,
    updates: Mapping[str, Update],
    steps: Steps,
    shards: int | None = None,
) -> tuple[Outcome, dict[str, Array]]:
    """Average updates in a round of gradshard, and hold the result against a plain numpy loop."""
    steps.begin("opening the round")
    round_ = federation.open_round(
        name,
        clients=list(updates),
        min_clients=len(updates),
        timeout=TIMEOUT_SECONDS,
        shards=shards,
    )
    steps.begin(f"uploading {size(sum(nbytes(update) for update in updates.values()))}")
    for client, update in updates.items():
        steps.detail(client)
        round_.submit(client, update.tensors, samples=update.samples)
    steps.begin("averaging" + (f" in {shards} shards" if shards else ""))
    manifest = round_.wait(timeout=WAIT_SECONDS)
    steps.begin("fetching the averaged update")
    average = round_.fetch()
    steps.begin("averaging with a plain numpy loop, and comparing")
    comparison = plain_numpy.compare(average, plain_numpy.average(updates))
    problems = manifest_problems(manifest, updates, shards)
    if comparison.differing:
        problems.append(f"not the plain numpy loop's bits: {', '.join(comparison.differing)}")
    return Outcome(name, manifest, comparison, problems), average


def manifest_problems(
    manifest: Mapping[str, Any], updates: Mapping[str, Update], shards: int | None
) -> list[str]:
    """Return what a manifest lacks, or has otherwise than it must be."""
    try:
        totals, projected = manifest["totals"], manifest["projected"]
        client_bytes = sum(nbytes(update) for update in updates.values())
        demands = {
            "status": manifest["status"] == "completed",
            "contributors": {c["client"]: c["samples"] for c in manifest["contributors"]}
            == {client: update.samples for client, update in updates.items()},
            "rejected, missing": not manifest["rejected"] and not manifest["missing"],
            "shards": manifest["shards"] == (shards or manifest["shards"]) >= 1,
            "totals.gets": totals["gets"] >= manifest["shards"] * len(updates),
            "totals.puts": totals["puts"] >= manifest["shards"],
            "totals.bytes_read": totals["bytes_read"] >= client_bytes,
            "totals.bytes_written": totals["bytes_written"] >= client_bytes / len(updates),
            "totals.peak_mb": totals["peak_mb"] > 0,
            "seconds": manifest["seconds"] > 0 and totals["seconds"] > 0,
            "projected.dollars.total": projected["dollars"]["total"] > 0,
        }
    except KeyError as error:
        return [f"the manifest has no {error}"]
    return [f"the manifest's {name} cannot be right" for name, met in demands.items() if not met]


def memory_problems(manifest: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the memory that a function took.

    Only for the largest round: a process reports the most it ever had.
    """
    peak, planned = manifest["totals"]["peak_mb"], manifest["projected"]["needed_mb"]
    return [f"a function took {peak} MB, over the planned {planned:.0f}"] if peak > planned else []


def nbytes(update: Update) -> int:
    """Return the size of an update's tensors."""
    return sum(array.nbytes for array in update.tensors.values())


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    """End as Ctrl-C does: orderly, with the engine stopped."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
