"""examples/privacy.py: a short run, and that it combines as functions do."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import privacy
from gradshard_core.privacy.privacy_mechanism import PrivacyMechanism, parse_privacy


def test_updates_are_clipped_and_averaged_with_noise() -> None:
    updates = np.random.default_rng(0).standard_normal((5, 40_000)).astype("f4")
    mechanism = PrivacyMechanism(3.0, 0.5, 1e-3)
    found, following, share = privacy.combine(updates, mechanism, bytes(32))
    lengths = np.linalg.norm(updates, axis=1, keepdims=True)
    clipped = (updates * 3.0 / lengths).mean(axis=0)
    assert (found - clipped).std() == pytest.approx(0.5 * 3.0 / 5, rel=0.02)
    assert np.array_equal(found, privacy.combine(updates, mechanism, bytes(32))[0])
    assert not np.array_equal(found, privacy.combine(updates, mechanism, bytes(31) + b"1")[0])
    assert (following, share) == (mechanism, 1.0)


def test_a_clip_adapts_to_the_lengths() -> None:
    updates = np.random.default_rng(0).standard_normal((50, 400)).astype("f4")
    updates *= np.linspace(0.5, 1.5, 50, dtype="f4")[:, None]
    mechanism = parse_privacy(
        {"clip": 3.0, "noise_multiplier": 0.01, "delta": 1e-3, "quantile": 0.5}
    )
    for number in range(40):
        key = number.to_bytes(32, "big")
        _, mechanism, share = privacy.combine(updates, mechanism, key)
    assert mechanism.clip == pytest.approx(np.median(np.linalg.norm(updates, axis=1)), rel=0.05)
    assert 0.3 < share < 0.7


def test_masked_updates_have_the_same_average_and_noise_of_the_same_size() -> None:
    updates = np.random.default_rng(0).standard_normal((5, 40_000)).astype("f4") / 4
    seeds = [bytes([client]) * 32 for client in range(5)]
    plain = privacy.combine_masked(updates, None, seeds)
    assert np.abs(plain - updates.mean(axis=0)).max() <= 2.0**-14 + 1e-7  # half a step
    mechanism = PrivacyMechanism(3.0, 0.5, 1e-3)
    found = privacy.combine_masked(updates, mechanism, seeds)
    lengths = np.linalg.norm(updates, axis=1, keepdims=True)
    clipped = (updates * 3.0 / lengths).mean(axis=0)
    assert (found - clipped).std() == pytest.approx(0.5 * 3.0 / 5, rel=0.02)
    other = privacy.combine_masked(updates, mechanism, [*seeds[:4], bytes(32)])
    assert not np.array_equal(found, other)


def test_short_run_writes_every_multiplier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(
        "dp_accounting", reason="dp-accounting is not installed: `make test-privacy`"
    )
    words = ["privacy.py", "--rounds", "1", "--seeds", "1", "--clients", "5"]
    monkeypatch.setattr(sys, "argv", [*words, "-o", str(tmp_path)])
    assert privacy.main() == 0
    panels = json.loads((tmp_path / "privacy.json").read_text())["panels"].values()
    noises = 1 + len(privacy.MULTIPLIERS)
    assert [len(panel) for panel in panels] == [noises, noises, 2 * len(privacy.CLIPS)]
    assert (tmp_path / "privacy.svg").read_text().startswith("<svg")
