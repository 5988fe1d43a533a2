"""Names of trainings that were used before."""

from typing import Any

import pytest

from gradshard.client.executions import Execution
from gradshard.client.training_start import start_training
from gradshard_core.errors import TrainingExistsError, TrainingFailed
from tests.unit.fakes import MemoryStack, MemoryStore

OPTIONS: dict[str, Any] = {"rounds": 1, "clients": ["a"], "server_optimizer": "fedavg"}
TIMES = {"started": "2026-01-01T00:00:00+00:00", "stopped": "2026-01-02T00:00:00+00:00"}


@pytest.mark.parametrize(
    "execution",
    [
        Execution("SUCCEEDED", {}, "", "", **TIMES),
        # It paused, and was stopped then.
        Execution("FAILED", {}, "TrainingPaused", "paused: lunch", **TIMES),
    ],
    ids=["ended", "paused"],
)
def test_the_name_of_a_removed_training_is_said_to_be_taken(execution: Execution) -> None:
    stack = MemoryStack(MemoryStore())
    stack.trainings.executions["t"] = execution
    removed = (
        r"'t' was started before, and removed; choose another name: it ran from 2026-01-01T.* to "
        r"2026-01-02T.*, and Step Functions keeps a name for 90 days"
    )
    with pytest.raises(TrainingExistsError, match=removed):
        start_training(stack, "t", **OPTIONS)


def test_the_name_of_a_training_that_could_not_be_started_is_taken() -> None:
    stack = MemoryStack(MemoryStore())
    cause = "there is no model 'model'"
    stack.trainings.executions["t"] = Execution("FAILED", {}, "ModelNotFoundError", cause, **TIMES)
    with pytest.raises(TrainingFailed, match=f"when its name was first used; .*: {cause}"):
        start_training(stack, "t", **OPTIONS)
