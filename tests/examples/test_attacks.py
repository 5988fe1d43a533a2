"""examples/attacks.py: a short run, and what its attacks send."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import attacks
from tests import reference


def test_combining_in_memory_is_what_a_round_does() -> None:
    rng = np.random.default_rng(0)
    updates, samples = rng.standard_normal((7, 300)).astype("f4"), [3, 1, 4, 1, 5, 9, 2]
    named = [{"u": row} for row in updates]
    found = attacks.combine(updates, samples, None)
    assert found.tobytes() == reference.average(named, samples)["u"].tobytes()
    found = attacks.combine(updates, samples, {"name": "median"})
    assert found.tobytes() == np.median(updates, axis=0).tobytes()
    updates[2] *= 1e6
    found = attacks.combine(updates, samples, {"name": "multi_krum", "f": 2, "m": 5})
    assert np.abs(found).max() < 10


def test_attacks_change_bad_updates_only() -> None:
    updates = np.random.default_rng(0).standard_normal((5, 40))
    lengths = np.linalg.norm(updates[2:], axis=1)
    assert np.array_equal(attacks.flip_signs(updates, 2), -updates)
    assert np.array_equal(attacks.scale(updates, 2), -10 * updates)
    hidden = attacks.hide_in_the_spread(updates, 2)
    assert np.allclose(hidden[0], updates[2:].mean(axis=0) - 1.5 * updates[2:].std(axis=0))
    copies = attacks.collude(updates, 2)
    assert np.array_equal(copies[0], copies[1])
    assert np.linalg.norm(copies[0]) == pytest.approx(np.median(lengths))
    mean = updates[2:].mean(axis=0)
    assert np.allclose(attacks.turn_inner_product(updates, 2)[1], -0.5 * mean)
    far = attacks.stay_within_distances(updates, 2)[0]
    between = [np.linalg.norm(a - b) for a in updates[2:] for b in updates[2:]]
    reached = np.linalg.norm(updates[2:] - far, axis=1).max()
    assert reached == pytest.approx(max(between))
    assert np.cross(far[:3] - mean[:3], mean[:3]) == pytest.approx(np.zeros(3), abs=1e-9)


def test_short_run_writes_every_attack_and_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["attacks.py", "--rounds", "1", "--seeds", "1", "--clients", "7", "--bad", "1"]
    monkeypatch.setattr(sys, "argv", [*words, "-o", str(tmp_path)])
    assert attacks.main() == 0
    panels = json.loads((tmp_path / "attacks.json").read_text())["panels"]
    assert list(panels) == list(attacks.ATTACKS)
    assert all(list(panel) == list(attacks.rules(1)) for panel in panels.values())
    assert (tmp_path / "attacks.svg").read_text().startswith("<svg")
