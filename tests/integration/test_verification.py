"""Verifying rounds of every kind, and what is wrong with them, over real HTTP."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gradshard.client import round as client_round
from gradshard.client.stack import Stack
from gradshard.client.verification import Verification, VerificationError
from gradshard_core.errors import ChangedObjectError, RoundStateError
from gradshard_core.formats.keys import RoundKeys
from gradshard_core.s3.store import S3Store
from tests import reference
from tests.integration import test_partial
from tests.integration.by_hand import Round, Update, put_model, small
from tests.integration.machine import APPLIED, EAGER, UPDATES, Machine, in_this_process

CLIENTS = [f"c{number:02}" for number in range(13)]
SAMPLES = [5, 1, 900, 17, 3, 64, 2, 250, 31, 8, 77, 410, 6]


def verify(store: S3Store, name: str, sample: float = 1.0, seed: str = "s") -> Verification:
    stack = Stack("none", bucket=store.bucket, state_machine=None, endpoint_url=None, port=None)
    return client_round.Round(stack, name).verify(sample=sample, seed=seed)


def submit_all(round_: Round) -> None:
    for number, client in enumerate(CLIENTS):
        update = small(number)
        order = list(update) if number % 2 else list(reversed(update))
        round_.submit(client, update, SAMPLES[number], order=order)


@pytest.mark.parametrize(
    "terms",
    [
        {},
        {"order": "tree:4,4"},
        {"weights": "counts"},
        {"topology": "lambda_fl"},
        {"topology": "lambda_fl", "fan_in": 9, "order": "tree:3,3,2"},
        {"topology": "lifl", "weights": "counts"},
        {"topology": "grid", "fan_in": 2},
    ],
    ids=json.dumps,
)
def test_every_topology_order_and_weight_is_verified(
    open_round: Callable[..., Round], terms: dict[str, Any]
) -> None:
    round_ = open_round(clients=CLIENTS, **terms)
    submit_all(round_)
    assert round_.go() == {"status": "completed"}
    found = verify(round_.store, round_.name)
    assert (found.is_correct, found.contributors) == (True, 13)
    assert found.sampled_nbytes == found.nbytes
    assert found.objects == (round_.keys.result,)
    assert (found.contradictions, found.notes) == ((), ())
