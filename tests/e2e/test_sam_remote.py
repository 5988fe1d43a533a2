"""`sam remote invoke` finds what is deployed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gradshard.local_engine.lifecycle import Engine
from tests.e2e import example_round
from tests.e2e.deployed import Deployed

pytestmark = pytest.mark.e2e


@pytest.fixture(autouse=True)
def _quiet(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM_CLI_TELEMETRY", "0")


def invoked(*arguments: object) -> str:
    """Run the command; return what it printed of the answer."""
    sam = Path(sys.executable).with_name("sam")
    done = subprocess.run(
        [sam, "remote", "invoke", "--stack-name", "gradshard", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done
    return done.stdout + done.stderr


def test_a_function_takes_its_event(deployed: Deployed) -> None:
    example_round.remove(deployed)
    event = example_round.EVENTS / "open_round.json"
    assert '"status": "opened"' in invoked("OpenRoundFunction", "--event-file", event)
    example_round.remove(deployed)


def test_the_state_machine_opens_a_round_and_is_waited_for(deployed: Deployed) -> None:
    round_id = "invoked"
    terms = json.dumps({"clients": 1, "timeout": 1})
    said = invoked("RoundStateMachine", "--parameter", f"name={round_id}", "-e", terms)
    assert "0 good updates, but min_clients is 1" in said
    assert json.loads(deployed.read(f"rounds/{round_id}/manifest.json"))["status"] == "failed"
