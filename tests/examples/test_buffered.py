"""examples/buffered.py: a short run, and its clock."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import buffered

GIVEN = Namespace(
    data="digits", clients=6, buffer=2, max_staleness=3, staleness_exponent=0.5, hours=0.2
)


def test_a_version_is_the_discounted_sum_of_what_the_updates_change() -> None:
    federation = buffered.Federation(GIVEN, 0)
    for _ in buffered.Buffer(federation, 2).run():
        if len(federation.models) == 3:
            break
    first, second, _ = federation.models
    assert federation.counted == 4
    assert not np.array_equal(first, second)
    changes = [np.full_like(first, value) for value in (1.0, 3.0)]
    federation.apply(changes, [0.5, 0.25], 0.0)
    assert np.array_equal(federation.models[3], federation.models[2] + np.float32(1.25))


def test_the_time_to_a_target_is_that_of_the_first_version_whose_mean_reaches_it() -> None:
    history = [(3600.0 * number, 0.1 * number) for number in range(1, 10)]
    # Of five versions: 0.3 after the fifth one, 0.4 after the sixth.
    assert buffered.time_to(history, 0.35) == 6
    assert buffered.time_to(history, 0.9) is None


def test_short_run_writes_every_way_to_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["buffered.py", "--seeds", "1", "--clients", "6", "--buffer", "2", "--hours", "0.2"]
    monkeypatch.setattr(sys, "argv", [*words, "-o", str(tmp_path)])
    assert buffered.main() == 0
    [panel] = json.loads((tmp_path / "buffered.json").read_text())["panels"].values()
    assert list(panel) == ["buffered, 2", "rounds, 2 of 3", "rounds, 4 of 6", "rounds, all 6"]
    assert (tmp_path / "buffered.svg").read_text().startswith("<svg")
