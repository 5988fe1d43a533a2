"""examples/compression.py: a short run, and what its updates become."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import compression
from gradshard.updates.residual import Residual


def update(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"weight": rng.standard_normal((40, 50)).astype("f4"), "bias": np.zeros(40, "f4")}


@pytest.mark.parametrize("codec", compression.CODECS)
def test_what_arrives_is_near_what_was_sent_and_smaller(codec: str) -> None:
    sent = update()
    arrived, nbytes = compression.sent(sent, codec, None, 0)
    error = np.linalg.norm(arrived["weight"] - sent["weight"]) / np.linalg.norm(sent["weight"])
    most = {"F32": 0.0, "int8": 0.01, "fp8": 0.03, "int4": 0.12, "topk": 0.99}[codec]
    assert error <= most
    assert nbytes < {"F32": 9000, "int4": 2000, "topk": 1200}.get(codec, 3000)


@pytest.mark.parametrize("codec", ["int4", "topk"])
def test_with_error_feedback_the_sums_of_sent_and_arrived_meet(codec: str) -> None:
    residual = Residual()
    sent = arrived = np.zeros((40, 50))
    for number in range(200):
        tensors = update()
        sent = sent + tensors["weight"]
        arrived = arrived + compression.sent(tensors, codec, residual, number)[0]["weight"]
    assert np.linalg.norm(arrived - sent) / np.linalg.norm(sent) < 0.4
    assert residual.norm == pytest.approx(np.linalg.norm(arrived - sent), rel=1e-3)


def test_short_run_writes_every_split_and_codec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["compression.py", "--rounds", "1", "--seeds", "1", "--clients", "3"]
    monkeypatch.setattr(sys, "argv", [*words, "-o", str(tmp_path)])
    assert compression.main() == 0
    panels = json.loads((tmp_path / "compression.json").read_text())["panels"]
    assert list(panels) == [
        f"{split}, {how}"
        for split in ("IID", "non-IID")
        for how in ("without error feedback", "with error feedback")
    ]
    assert all(list(panel) == list(compression.CODECS) for panel in panels.values())
    assert (tmp_path / "compression.svg").read_text().startswith("<svg")
