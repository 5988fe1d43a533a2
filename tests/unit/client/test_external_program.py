"""Programs that train for a client: what they are told."""

import json
import sys
from pathlib import Path

import numpy as np

from gradshard.client.external_program import Program
from gradshard.client.rejection_watch import RejectedUpdate
from gradshard_core.records.training_state import Invitation

KEEPS = """
import json, pathlib, sys
told = json.load(open("invitation.json"))
with open(sys.argv[1], "a") as file:
    print(json.dumps(told["rejected"]), file=file)
json.dump({"samples": 1, "metrics": {"n": told["number"]}}, open("result.json", "w"))
"""


def test_a_program_is_told_once_why_its_last_update_did_not_count(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    program = Program([sys.executable, "-c", KEEPS, str(kept)])
    invitation = Invitation("t-00002-eval", 2, 0, True, ("ann",), 1, 3, {})
    model = {"w": np.zeros(2, "f4")}
    assert program.evaluate(model, invitation) == ({"n": 2}, 1)
    program.rejected(RejectedUpdate("t-00001", 1, False, "too bad"))
    program.evaluate(model, invitation)
    program.evaluate(model, invitation)
    first, second, third = map(json.loads, kept.read_text().splitlines())
    assert (first, third) == (None, None)
    assert second == {
        "round_id": "t-00001",
        "number": 1,
        "is_evaluation": False,
        "reason": "too bad",
    }
