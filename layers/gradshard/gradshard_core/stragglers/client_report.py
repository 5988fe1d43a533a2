"""A client's report of its training: read from its update's metadata, and checked."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from gradshard_core.errors import UpdateError
from gradshard_core.formats.tensor_layout import shorten
from gradshard_core.stragglers.assignment_settings import MAX_COUNT

REPORTED: Final = ("train_seconds", "batch_size", "epochs", "steps")
"""The metadata of an update that describes its training."""

MAX_TRAIN_SECONDS: Final = 7 * 24 * 3600.0
"""The longest training that is believed: as long as a round may be open."""

MIN_SECONDS_PER_SAMPLE: Final = 1e-9
"""The fastest training that is believed; no device is so fast."""


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
