"""Assign work to each client for the next round, so that fast clients do not wait (AMBLE).

This is a reconstruction. AMBLE (Park, Yoon, Yeo and Oh, Journal of Parallel and Distributed
Computing 170, 2022) gives every device a mini-batch and a number of local epochs by its speed
relative to the slowest, and scales the learning rate with the batch. Its formulas are not
known here. The formulas below are this project's own:

- *Time.* A round gives one number per client: seconds per sample, at the batch that the client had.
  It is smoothed over rounds, and predicts epochs × samples × seconds per sample. If a device is
  faster with a larger batch, the next report shows it.
- *Epochs.* A client gets as many epochs as fit the target: the predicted time of the slowest client
  of the last round in the base settings, or the operator's target.
- *Batch.* It grows with the epochs. Up to its bound, a client therefore makes as many local steps
  as in the base settings, each with less noise; beyond the bound it makes more steps.
- *Learning rate.* η = η₀ · batch / base batch.

The slowest client keeps the base settings, and so does a client whose speed is not known.
"""

import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, Self

from gradshard_core.formats.long_lists import StoredList
from gradshard_core.stragglers.assignment_settings import AssignmentSettings
from gradshard_core.stragglers.client_report import Report

FORGET_ROUNDS: Final = 20
"""A client that has been away for more rounds is new again."""

SLACK: Final = 1e-9
"""The relative tolerance for rounding, so that a client that meets the target exactly fits."""


@dataclass(frozen=True)
class Speed:
    """The history of a client.

    Parameters
    ----------
    seconds_per_sample
        Smoothed over rounds.
    samples
        The number of samples in its last report.
    unseen
        Rounds since it last took part.
    """

    seconds_per_sample: float
    samples: int
    unseen: int = 0

    def seconds(self, epochs: int) -> float:
        """Predict the seconds of a number of epochs."""
        return epochs * self.samples * self.seconds_per_sample


@dataclass(frozen=True)
class Assignment:
    """The work that a client should do.

    Parameters
    ----------
    batch_size, epochs, learning_rate
        The settings of the training.
    seconds
        The predicted seconds; None for a client whose speed is not known.
    """

    batch_size: int
    epochs: int
    learning_rate: float
    seconds: float | None = None


@dataclass(frozen=True)
class Assigned:
    """A client's assignment for the next round, and its measured speed.

    Parameters
    ----------
    client
        Its id.
    assignment
        The work that it should do next.
    speed
        Its measured speed; None while it is not known.
    notes
        The figures of its report that were ignored, and the target that it cannot meet.
    """

    client: str
    assignment: Assignment
    speed: Speed | None
    notes: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Self:
        """Read what :func:`dataclasses.asdict` made."""
        return cls(
            written["client"],
            Assignment(**written["assignment"]),
            written["speed"] and Speed(**written["speed"]),
            tuple(written["notes"]),
        )


@dataclass(frozen=True)
class Assignments:
    """The work of all clients, and the basis of the next round's assignments.

    Parameters
    ----------
    settings
        The settings from which the assignments were made.
    clients
        What is known of each client, sorted by client.
    """

    settings: AssignmentSettings
    clients: Sequence[Assigned] = ()

    def of(self, client: str) -> Assignment:
        """Return a client's assignment: the base settings if nothing is known of it."""
        clients = self.clients
        if isinstance(clients, StoredList):
            clients = clients.near(client)
        found = next((entry for entry in clients if entry.client == client), None)
        return base_assignment(self.settings) if found is None else found.assignment


def find_target(
    settings: AssignmentSettings,
    reports: Iterable[tuple[str, Report]],
    history: Iterable[Assigned] = (),
) -> float | None:
    """Return the seconds that training should take; None while no client's speed is known.

    Parameters
    ----------
    settings
        The base settings and bounds.
    reports
        The clients of the round that has ended, with their reports, sorted by client.
    history
        The assignments of the round before (:attr:`Assignments.clients`).
    """
    if settings.target_seconds is not None:
        return settings.target_seconds
    slowest: dict[bool, float] = {}
    for _, report, before in _joined(reports, history):
        speed = _speed(report, before, settings.smoothing)
        if speed is not None:
            seconds, is_away = speed.seconds(settings.epochs), speed.unseen > 0
            slowest[is_away] = max(seconds, slowest.get(is_away, seconds))
    # Those that are away do not hold up the others.
    return slowest.get(False, slowest.get(True))


def assign(
    settings: AssignmentSettings,
    target: float | None,
    reports: Iterable[tuple[str, Report]],
    history: Iterable[Assigned] = (),
) -> Iterator[Assigned]:
    """Compute the assignments of all clients for the next round, one after another.

    Parameters
    ----------
    settings, reports, history
        As in :func:`find_target`.
    target
        The seconds that training should take, from :func:`find_target`.
    """
    for client, report, before in _joined(reports, history):
        speed = _speed(report, before, settings.smoothing)
        notes = () if report is None else report.notes
        if speed is not None and target is not None:
            assignment = _fit(settings, speed, target)
            yield Assigned(client, assignment, speed, (*notes, *_over(assignment, target)))
        elif notes:
            yield Assigned(client, base_assignment(settings), None, notes)


def base_assignment(settings: AssignmentSettings) -> Assignment:
    """Return the assignment of clients whose speed is not known: the base settings."""
    return Assignment(settings.batch_size, settings.epochs, settings.learning_rate)


def _fit(settings: AssignmentSettings, speed: Speed, target: float) -> Assignment:
    """Return the epochs that fit a client's time, and the batch for them."""
    fitting = target * (1 + SLACK) / speed.seconds(1)
    low, high = settings.bounds("epochs")
    epochs = int(max(low, min(high, fitting)))
    low, high = settings.bounds("batch_size")
    # A batch beyond the client's samples would not be one; but the base stays what it is.
    high = min(high, max(settings.batch_size, speed.samples))
    batch_size = int(max(low, min(high, settings.batch_size * epochs // settings.epochs)))
    low, high = settings.bounds("learning_rate")
    rate = max(low, min(high, settings.learning_rate * batch_size / settings.batch_size))
    return Assignment(batch_size, epochs, rate, speed.seconds(epochs))


def _over(assignment: Assignment, target: float) -> Iterator[str]:
    """Yield a note if an assignment takes longer than the target."""
    if assignment.seconds is not None and assignment.seconds > target * (1 + SLACK):
        yield (
            f"predicted to take {assignment.seconds:.3g} s at the least it may do, over the target "
            f"of {target:.3g} s"
        )


def _joined(
    reports: Iterable[tuple[str, Report]], history: Iterable[Assigned]
) -> Iterator[tuple[str, Report | None, Speed | None]]:
    """Yield each client with its report and its speed so far, sorted by client."""
    merged: Iterator[tuple[str, int, Any]] = heapq.merge(
        ((client, 0, report) for client, report in reports),
        ((entry.client, 1, entry.speed) for entry in history),
        key=itemgetter(0, 1),
    )
    for client, entries in itertools.groupby(merged, key=itemgetter(0)):
        found = {kind: value for _, kind, value in entries}
        yield client, found.get(0), found.get(1)


def _speed(report: Report | None, before: Speed | None, smoothing: float) -> Speed | None:
    """Update the measured speed of a client."""
    if report is not None and report.train_seconds is not None and report.processed:
        latest = report.train_seconds / report.processed
        if before is not None:
            latest = smoothing * latest + (1 - smoothing) * before.seconds_per_sample
        return Speed(latest, report.samples)
    if before is None:
        return None
    if report is not None:
        return Speed(before.seconds_per_sample, report.samples)
    if before.unseen >= FORGET_ROUNDS:
        return None
    return Speed(before.seconds_per_sample, before.samples, before.unseen + 1)
