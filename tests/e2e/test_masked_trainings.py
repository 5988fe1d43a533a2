"""Trainings with masked rounds, for clients with credentials and with tickets."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradshard import Federation, Keeper
from gradshard.client.training_by_ticket import TicketTraining
from gradshard_core.errors import UpdateError
from gradshard_core.records.training_state import Invitation
from tests import masked
from tests.e2e.masking import identities, terms_of
from tests.e2e.test_trainings import FIRST, SECONDS, train_as

pytestmark = pytest.mark.e2e

CLIENTS = ["mia", "ned"]


def expected(terms: dict[str, Any], rounds: int) -> dict[str, Any]:
    """The model after the rounds, from the definitions of FedAvg and of masked rounds."""
    model: dict[str, Any] = {name: tensor.copy() for name, tensor in FIRST.items()}
    for number in range(1, rounds + 1):
        invitation = Invitation("", number, 0, False, tuple(CLIENTS), len(CLIENTS), 1, {})
        sent = [train_as(c)({n: t.copy() for n, t in model.items()}, invitation) for c in CLIENTS]
        changes = [{n: trained[n] - model[n] for n in model} for trained, *_ in sent]
        mean = masked.average(terms, changes, [samples for _, samples, _ in sent])
        model = {name: tensor + np.float32(1) * mean[name] for name, tensor in model.items()}
    return model


def test_clients_with_credentials_and_with_tickets_train_with_masks(
    federation: Federation, tmp_path: Path
) -> None:
    keeper, name = Keeper(), "masked-training"
    terms, masks = terms_of(keeper), identities(keeper, CLIENTS, CLIENTS)
    federation.model(name).put(FIRST)
    training = federation.train(
        name,
        rounds=2,
        clients=CLIENTS,
        server_optimizer={"optimizer": "fedavg", "model": name},
        masked=terms,
        poll_interval=0.2,
        timeout=120,
    )
    training.ticket("ned").save(tmp_path / "ned")
    with ThreadPoolExecutor() as pool:
        mia = pool.submit(
            federation.participate, "mia", train_as("mia"), training=name, mask=masks["mia"]
        )
        ned = pool.submit(
            TicketTraining.load(tmp_path / "ned").participate, train_as("ned"), mask=masks["ned"]
        )
        for loop in (mia, ned):
            done = loop.result(SECONDS)
            assert done.trained == (1, 2)
            assert done.state.cause == "all 2 rounds have completed"
    model = federation.model(name).fetch()
    for tensor, value in expected(terms, 2).items():
        assert model[tensor].tobytes() == value.tobytes(), tensor
    for record in training.records():
        assert keeper.answer(record["round_id"])["summed"].keys() == set(CLIENTS)
        assert record["metrics"] == {}


def test_a_client_sends_nothing_to_a_training_of_other_terms(
    federation: Federation, tmp_path: Path
) -> None:
    keeper, name = Keeper(), "unmasked-training"
    masks = identities(keeper, CLIENTS, CLIENTS)
    federation.model(name).put(FIRST)
    training = federation.train(
        name,
        rounds=1,
        clients=CLIENTS,
        server_optimizer={"optimizer": "fedavg", "model": name},
        poll_interval=0.2,
        timeout=120,
    )
    training.ticket("ned").save(tmp_path / "ned")
    with pytest.raises(UpdateError, match="is not masked"):
        federation.participate("mia", train_as("mia"), training=name, mask=masks["mia"])
    with pytest.raises(UpdateError, match="is not masked"):
        TicketTraining.load(tmp_path / "ned").participate(train_as("ned"), mask=masks["ned"])
    assert list(federation.stack.store.list_objects("rounds/unmasked-training-00001/updates")) == []
    training.stop("nothing was sent", now=True)
