"""Fixtures of the keeper's tests."""

import numpy as np
import pytest

from tests.unit.in_memory import Machine
from tests.unit.keeper_in_memory import Keeper, MaskedRound


@pytest.fixture
def asked(machine: Machine, keeper: Keeper) -> MaskedRound:
    """A round of four that has asked its keeper."""
    round_ = MaskedRound(machine, keeper)
    updates = {name: {"w": np.ones(5, "f4")} for name in "abcd"}
    keeper.enrol([*updates])
    round_.open([*updates], updates["a"], min_clients=2)
    for client, update in updates.items():
        round_.submit(client, update, 3, client.encode() * 32)
    round_.ask()
    return round_
