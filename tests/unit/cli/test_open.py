"""``gradshard open``."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gradshard.client import round_opening
from tests.unit.cli.commands import Run, assert_one_line
from tests.unit.client.test_federation import OPENED, execution
from tests.unit.fakes import MemoryStack, MemoryStore


def test_open_prints_one_json_document(run: Run, opened: MemoryStore) -> None:
    result = run("open", "r1", "--client", "a", "--client", "b", "--timeout", 600, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "round": "r1",
        "bucket": "memory",
        "spec": OPENED["spec"],
    }
    assert result.stderr == ""


def test_a_round_that_is_opened_again_after_its_end_says_so(
    run: Run, finished: MemoryStore, stack: MemoryStack
) -> None:
    terms = ("open", "r1", "--client", "a", "--client", "b", "--timeout", 600)
    finished.put_json("rounds/r1/spec.json", OPENED)
    # As one does whose updates are there already.
    assert "r1 is open for 2 clients" in run(*terms).stdout, "it ended while it was opened"
    stack.executions["r1"] = execution("SUCCEEDED")
    assert "r1 was opened before, with these options, and has ended" in run(*terms).stdout


def test_a_round_with_the_layout_of_a_file(
    run: Run, stack: MemoryStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(round_opening, "OPENING_SECONDS", 0.0)
    # Not an update: it says nothing of samples.
    save_file({"w": np.zeros((3, 2), "f4"), "b": np.zeros(2, "i8")}, tmp_path / "model")
    run("open", "r1", "--clients", 2, "--layout", tmp_path / "model")
    assert json.loads(stack.started[0])["layout"] == {
        "w": {"dtype": "F32", "shape": [3, 2]},
        "b": {"dtype": "I64", "shape": [2]},
    }
    (tmp_path / "other").write_bytes(b"x")
    asked = ("open", "r1", "--clients", 2, "--layout", tmp_path / "other")
    assert_one_line(run(*asked), "other: not a safetensors object")
