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
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from operator import itemgetter
from typing import Any, Final, Self

from gradshard_core.aggregation.arithmetic import shares_of
from gradshard_core.errors import SpecError, UpdateError
from gradshard_core.formats.layout import shorten
from gradshard_core.formats.pieces import StoredList

REPORTED: Final = ("train_seconds", "batch_size", "epochs", "steps")
"""The metadata of an update that describes its training."""

MAX_TRAIN_SECONDS: Final = 7 * 24 * 3600.0
"""The longest training that is believed: as long as a round may be open."""

MIN_SECONDS_PER_SAMPLE: Final = 1e-9
"""The fastest training that is believed; no device is so fast."""

MAX_COUNT: Final = 2**53

FORGET_ROUNDS: Final = 20
"""A client that has been away for more rounds is new again."""

MOST: Final = {"batch_size": 2, "epochs": 8, "learning_rate": 2}
"""The highest settings, as multiples of the base, where none are given. A learning rate that suits
the base does not survive being scaled by 8 (benchmarks/stragglers.md), so the batch ends early."""

STEPS_FACTOR: Final = 10
"""The factor around the median of a round's steps within which a client's steps count.

Assignments ask for at most 8 times the base's epochs (:data:`MOST`), which is within it."""

NOTED: Final = 20
"""Clients that a note names."""

SLACK: Final = 1e-9
"""The relative tolerance for rounding, so that a client that meets the target exactly fits."""


@dataclass(frozen=True)
class AssignmentSettings:
    """The base settings, and the bounds of assignments.

    Parameters
    ----------
    batch_size, epochs, learning_rate
        The base settings, which the slowest client and new ones have.
    min_batch_size, max_batch_size, min_epochs, max_epochs, min_learning_rate, max_learning_rate
        Bounds. By default the lowest are the base settings, and the highest are the base settings
        times :data:`MOST`. A client that cannot meet the operator's target does less only if
        ``min_epochs`` allows it.
    target_seconds
        The seconds that a training should take; None for those of the slowest client.
    smoothing
        The weight of the last report in a client's speed, over 0 and at most 1.
    """

    batch_size: int
    epochs: int
    learning_rate: float
    min_batch_size: int | None = None
    max_batch_size: int | None = None
    min_epochs: int | None = None
    max_epochs: int | None = None
    min_learning_rate: float | None = None
    max_learning_rate: float | None = None
    target_seconds: float | None = None
    smoothing: float = 0.5

    def bounds(self, name: str) -> tuple[float, float]:
        """Return the lowest and highest of ``batch_size``, ``epochs`` or ``learning_rate``."""
        base = getattr(self, name)
        low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
        return (base if low is None else low, MOST[name] * base if high is None else high)

    def to_json(self) -> dict[str, Any]:
        """Return what :func:`parse_assignment_settings` reads."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Report:
    """A client's description of its training, after the checks for plausibility.

    Parameters
    ----------
    samples
        The number of samples it has.
    train_seconds, batch_size, epochs, steps
        The figures of the training; None for a figure that is not known.
    notes
        The reported figures that were ignored, and why.
    """

    samples: int
    train_seconds: float | None = None
    batch_size: int | None = None
    epochs: int | None = None
    steps: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def processed(self) -> int | None:
        """Samples times epochs; None if one of them is not known."""
        if self.epochs is not None:
            return self.epochs * self.samples
        if self.steps is not None and self.batch_size is not None:
            return self.steps * self.batch_size
        return None

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Self:
        """Read what :func:`dataclasses.asdict` made."""
        return cls(**{**written, "notes": tuple(written["notes"])})


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
    """What a round leaves of a client.

    Parameters
    ----------
    client
        Its id.
    assignment
        What it should do next.
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


def parse_assignment_settings(stated: Mapping[str, Any]) -> AssignmentSettings:
    """Check the settings of assignments.

    Parameters
    ----------
    stated
        The fields of :class:`AssignmentSettings`; None stands for the default.

    Raises
    ------
    SpecError
        A field is unknown, missing or out of its bounds.
    """
    names = [entry.name for entry in fields(AssignmentSettings)]
    unknown = sorted(stated.keys() - set(names))
    if unknown:
        raise SpecError(f"unknown field {unknown[0]!r}; assignments have {', '.join(names)}")
    given = {name: value for name, value in stated.items() if value is not None}
    required = ("batch_size", "epochs", "learning_rate")
    missing = next((name for name in required if name not in given), None)
    if missing is not None:
        raise SpecError(f"{missing} of the base settings is missing")
    for name, value in given.items():
        _check_number(name, value, whole=name.endswith(("batch_size", "epochs")))
    settings = AssignmentSettings(**given)
    if settings.smoothing > 1:
        raise SpecError(f"smoothing is {settings.smoothing!r}, not over 0 and at most 1")
    for name in required:
        low, high = settings.bounds(name)
        if not low <= getattr(settings, name) <= high:
            raise SpecError(
                f"{name} is {getattr(settings, name)!r} in the base settings, out of its bounds "
                f"{low!r} to {high!r}"
            )
    return settings


def report_metadata(training: Mapping[str, float]) -> dict[str, str]:
    """Return a client's report of its training as the metadata of its update.

    Parameters
    ----------
    training
        Any of ``train_seconds``, ``batch_size``, ``epochs`` and ``steps``.

    Raises
    ------
    UpdateError
        The metadata has another value.
    """
    unknown = sorted(training.keys() - set(REPORTED))
    if unknown:
        raise UpdateError(f"training has {unknown[0]!r}; it may have {', '.join(REPORTED)}")
    for name, value in training.items():
        if not 0 < value < math.inf:
            raise UpdateError(f"{name} is {value}, not a number above zero")
    return {name: str(value) for name, value in training.items()}


def parse_report(samples: int, metadata: Mapping[str, str]) -> Report:
    """Read a client's report from the metadata of its update.

    A report makes no update bad: missing figures are unknown, and implausible ones are ignored with
    a note.

    Parameters
    ----------
    samples
        The update's number of samples.
    metadata
        ``train_seconds``, ``batch_size``, ``epochs`` and ``steps``, each as text.
    """
    notes: list[str] = []
    counts: dict[str, int] = {}
    for name in ("batch_size", "epochs", "steps"):
        text = metadata.get(name)
        if text is None:
            continue
        whole = text.isascii() and text.isdigit() and len(text) <= len(str(MAX_COUNT))
        if whole and 1 <= int(text) <= MAX_COUNT:
            counts[name] = int(text)
        else:
            notes.append(f"{name} is {shorten(text)!r}, not a whole number from 1 to 2**53")
    settings = counts.get("batch_size"), counts.get("epochs"), counts.get("steps")
    report = Report(samples, None, *settings)
    seconds = _train_seconds(metadata.get("train_seconds"), report.processed, notes)
    return Report(samples, seconds, *settings, tuple(notes))


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
        What the round before has left (:attr:`Assignments.clients`).
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


def progress(steps: int, learning_rate_ratio: float = 1.0, momentum: float = 0.0) -> float:
    """Convert a client's local steps to plain steps of the base learning rate.

    FedNova's ‖a‖₁ (Wang et al., NeurIPS 2020, section 4): with momentum m a gradient works on in
    the steps after it, so τ steps make (τ - m (1 - m^τ) / (1 - m)) / (1 - m).

    Parameters
    ----------
    steps
        τ, above zero.
    learning_rate_ratio
        The client's learning rate by the base one.
    momentum
        m, from 0 to under 1; the velocity being zero when the round begins.
    """
    rest = 1.0 - momentum
    return learning_rate_ratio * (steps - momentum * (1.0 - momentum**steps) / rest) / rest


def bounded_steps(steps: Sequence[float]) -> list[float]:
    """Clip local steps to a factor F of 10 around their median, below and above.

    Reported steps cannot be checked. Without clipping, a client that claims 2**53 steps would
    scale up all other updates (τ'), and one that claims a single step its own update (1 / τ). With
    clipped steps, a normalised weight is at most F² = 100 times its client's share, and all weights
    together are at most (F + 1/F)² / 4 = 25.5 (Kantorovich's inequality); if all clients but one
    made equally many steps, at most (F + 1)² / 4F = 3.025.

    The median is the lower one, and each client counts once: as long as over half of the clients
    are honest, it is within the range of their steps.

    Parameters
    ----------
    steps
        τ of each client, above zero.

    Returns
    -------
    list of float
        The clipped steps in the same order.
    """
    if not steps:
        return []
    median = sorted(steps)[(len(steps) - 1) // 2]
    low, high = median / STEPS_FACTOR, median * STEPS_FACTOR
    return [low if tau < low else min(tau, high) for tau in steps]


def note_bounded_steps(steps: Mapping[str, int]) -> list[str]:
    """Return a note that names the clients whose steps are out of the bounds, if there are any."""
    bounded = bounded_steps(list(steps.values()))
    clipped = [
        f"{client} {stated} as {counted:g}"
        for (client, stated), counted in zip(steps.items(), bounded, strict=True)
        if counted != stated
    ]
    if not clipped:
        return []
    more = f" and {len(clipped) - NOTED} more" if len(clipped) > NOTED else ""
    shown = ", ".join(clipped[:NOTED]) + more
    return [f"steps count within a factor of {STEPS_FACTOR} of their median: {shown}"]


def normalised_weights(samples: Sequence[int], steps: Sequence[float]) -> list[float]:
    """Weigh updates of clients that have made unequal numbers of local steps.

    A plain mean favours clients with more steps: it minimises the sum of losses weighted by steps
    instead of the intended sum (objective inconsistency; Wang et al., NeurIPS 2020). FedNova
    averages updates per step, Δ / τ, and multiplies by the mean number of steps. The weights of Δ
    are therefore p · (τ' / τ) with p = n / Σn and τ' = Σ p τ, each operation rounded in float64 and
    the sum rounded once. The weights add up to one only if all steps are equal.

    Parameters
    ----------
    samples
        n of each client.
    steps
        τ of each client, above zero: its local steps, or the result of :func:`progress`.

    Raises
    ------
    SpecError
        A client's steps are not a number above zero.
    """
    for index, tau in enumerate(steps):
        if not (math.isfinite(tau) and tau > 0):
            raise SpecError(
                f"contributor {index} made {tau!r} local steps; weights can be normalised only "
                "where all report theirs, a number above zero"
            )
    shares = shares_of(list(samples))
    mean = math.fsum(share * tau for share, tau in zip(shares, steps, strict=True))
    return [share * (mean / tau) for share, tau in zip(shares, steps, strict=True)]


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


def _train_seconds(text: str | None, processed: int | None, notes: list[str]) -> float | None:
    if text is None:
        notes.append("train_seconds is missing")
        return None
    try:
        seconds = float(text)
    except ValueError:
        notes.append(f"train_seconds is {shorten(text)!r}, not a number")
        return None
    if not 0 < seconds <= MAX_TRAIN_SECONDS:
        notes.append(
            f"train_seconds is {shorten(text)!r}, not over 0 and at most {MAX_TRAIN_SECONDS:.0f}"
        )
        return None
    if processed is None:
        notes.append("epochs are missing, or else steps and batch_size: its speed is not known")
        return None
    if seconds / processed < MIN_SECONDS_PER_SAMPLE:
        notes.append(
            f"train_seconds is {shorten(text)!r} for {processed} samples, under a nanosecond each"
        )
        return None
    return seconds


def _check_number(name: str, value: Any, *, whole: bool) -> None:
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value <= MAX_COUNT:
        kind = "whole number" if whole else "number"
        raise SpecError(f"{name} is {value!r}, not a {kind} above zero")
