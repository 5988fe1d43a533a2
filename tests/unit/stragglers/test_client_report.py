"""A client's report of its training, against implausible figures."""

import pytest

from gradshard_core.stragglers.client_report import Report, parse_report

SETTINGS = {"batch_size": "16", "epochs": "2", "steps": "14"}


def test_a_report_is_read_from_an_updates_metadata() -> None:
    assert parse_report(100, SETTINGS | {"train_seconds": "1.5", "num_samples": "100"}) == Report(
        100, 1.5, 16, 2, 14
    )


def test_work_is_known_from_steps_where_epochs_are_missing() -> None:
    known = parse_report(100, {"train_seconds": "8", "batch_size": "16", "steps": "5"})
    unknown = parse_report(100, {"train_seconds": "8", "steps": "5"})

    assert (known.processed, known.train_seconds) == (80, 8.0)
    assert unknown.train_seconds is None
    assert "its speed is not known" in unknown.notes[0]


@pytest.mark.parametrize(
    "text",
    [
        "0" * 19 + "1" + "9" * 5000,
        "0" * 19 + "1" + "9" * 400,
        "0",
        "-1",
        "1.5",
        "x",
        "",
        "9" * 400,
        "²",
    ],
)
def test_counts_that_are_none_are_not_believed(text: str) -> None:
    found = parse_report(100, {"train_seconds": "8", "epochs": text})

    assert found.epochs is None
    assert found.notes[0].startswith("epochs is ")
