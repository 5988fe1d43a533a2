"""Trainings with masked rounds: what their start refuses, what failures do, what tickets say."""

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gradshard.client.round_by_ticket import TicketRound
from gradshard.tickets.round_ticket import ticket_of
from gradshard.updates.mask import Mask
from gradshard.updates.mask_identity import make_identity
from gradshard.updates.upload_source import PaddedContent, content_of
from gradshard_core.errors import SpecError, UpdateError
from gradshard_core.formats.object_keys import RoundKeys, TrainingKeys
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.masking import sealing
from gradshard_core.records.ticket_urls import build_ticket, max_update_bytes, sent_layout
from gradshard_core.records.training_state import PAUSED, RUNNING, Invitation, TrainingState
from gradshard_core.specs.masking_options import Agreement
from gradshard_core.specs.training_spec_checks import parse_training_spec
from gradshard_core.trainings.record_round import record_ended_round
from gradshard_core.trainings.round_outcome import Outcome
from gradshard_core.trainings.start_training import start_training
from tests import masked, reference
from tests.integration.by_hand import put_model
from tests.unit.fakes import MemoryStore
from tests.unit.trainings.test_write_notices import Signer

PUBLIC = sealing.public_key(sealing.new_key())
TERMS = {"bound": 4.0, "bits": 16, "ring_bits": 32, "max_samples": 100, "keeper": PUBLIC.hex()}
ROUND = {"server_optimizer": {"optimizer": "fedavg", "model": "m"}, "masked": TERMS}
FIELDS: dict[str, Any] = {"rounds": 2, "clients": ["ann", "bo"], "round": ROUND}
STARTED = "2026-11-27T00:00:00+00:00"


def begin(model: dict[str, Any], *, has_keeper: bool) -> MemoryStore:
    store = MemoryStore()
    put_model(store, "m", model)
    start_training(store, "t", FIELDS, started=STARTED, has_keeper=has_keeper)
    return store


def test_a_training_is_refused_at_its_start_without_a_keeper_or_a_maskable_model() -> None:
    with pytest.raises(SpecError, match="masked: this stack has no mask keeper"):
        begin({"w": np.ones(3, "f4")}, has_keeper=False)
    with pytest.raises(SpecError, match="tensor 'n' is I64: masked rounds average"):
        begin({"n": np.ones(3, "i8")}, has_keeper=True)
    store = begin({"w": np.ones(3, "f4")}, has_keeper=True)
    assert store.get_json(TrainingKeys("t").state)["status"] == RUNNING


@pytest.mark.parametrize(("is_planned", "status"), [(False, RUNNING), (True, PAUSED)])
def test_a_round_that_has_asked_its_keeper_is_not_repeated_by_itself(
    is_planned: bool, status: str
) -> None:
    invitation = Invitation("t-00001", 1, 0, False, ("ann", "bo"), 2, 1, {})
    state = TrainingState(RUNNING, 1, 1, 1, STARTED, STARTED, invitation=invitation)
    outcome = Outcome(
        False, error="KeeperError", cause="the mask keeper is away", is_planned=is_planned
    )
    after = record_ended_round(
        MemoryStore(),
        TrainingKeys("t"),
        parse_training_spec(FIELDS),
        state,
        outcome,
        datetime.fromisoformat(STARTED),
    )
    assert after.status == status
    assert ("Resume the training" in (after.cause or "")) == is_planned


# ----------------------------------------------------------------------------- tickets


LAYOUT = Layout.pack([("w", "F32", [50_000]), ("b", "BF16", [3])])
CLIENTS = ("ann", "bo", "cy")
ROSTER = hashlib.sha256(masked.framed(*CLIENTS)).hexdigest()
AGREEMENT = Agreement.from_json({"terms": TERMS, "clients": 3, "roster": ROSTER, "min_clients": 2})


def held(**changes: Any) -> TicketRound:
    record = build_ticket(
        Signer(),
        RoundKeys("r"),
        "ann",
        seconds=60,
        expires_at=datetime.now(UTC) + timedelta(seconds=60),
        max_bytes=max_update_bytes(sent_layout(LAYOUT, AGREEMENT)),
        layout=LAYOUT,
        agreement=AGREEMENT,
    )
    return TicketRound(ticket_of({**record, **changes}))


def mask_of(folder: Path, **options: Any) -> Mask:
    make_identity(folder / "key")
    return Mask(folder / "key", sealing.fingerprint(PUBLIC), **options)


def test_a_ticket_says_what_the_seed_is_sealed_for_and_names_nobody(tmp_path: Path) -> None:
    round_ = held()
    round_.check_mask(mask_of(tmp_path))
    text = round_.ticket.dumps()
    assert '"bo"' not in text
    assert '"cy"' not in text
    assert type(round_.ticket).loads(text) == round_.ticket
    info = masked.info("r", "ann", CLIENTS, 2, "encoded")
    context = sealing.SealContext("r", "ann", AGREEMENT.roster, 2, "encoded")
    assert context.encode() == info


def test_the_holder_of_a_ticket_sends_nothing_to_other_terms(tmp_path: Path) -> None:
    update = {"w": np.zeros(50_000, "f4"), "b": np.zeros(3, "f4")}
    mask = mask_of(tmp_path)
    with pytest.raises(UpdateError, match="has a keeper with the fingerprint"):
        held().check_mask(Mask(tmp_path / "key", "00" * 32))
    with pytest.raises(UpdateError, match="is to be hidden among 3 at least"):
        held().check_mask(mask_of(tmp_path, least_clients=3))
    with pytest.raises(UpdateError, match="is not masked"):
        held(masked=None).check_mask(mask)
    with pytest.raises(UpdateError, match="tell nothing of their training"):
        held().submit(update, 5, mask=mask, metrics={"loss": 1.0})
    with pytest.raises(UpdateError, match="not compressed"):
        held().submit(update, 5, mask=mask, codec="int8")


def test_a_ticket_sends_the_same_bytes_again_so_that_an_upload_goes_on(tmp_path: Path) -> None:
    update = {"w": np.linspace(-1, 1, 50_000, dtype="f4"), "b": np.zeros(3, ml_dtypes.bfloat16)}
    round_, mask = held(), mask_of(tmp_path)
    bodies = []
    for _ in range(2):
        with content_of(update, 5) as content:
            sent = round_._as_sent(content, None, mask)
            padded = PaddedContent(sent, round_.ticket.padded_length(sent.nbytes))
            # In parts, as a large one is sent.
            parts = [padded.read(n, n + 7000) for n in range(0, padded.nbytes, 7000)]
            bodies.append(b"".join(parts))
    assert bodies[0] == bodies[1]
    found = reference.decode(bodies[0])["masked"]
    assert found.size == 50_003
    assert len(bodies[0]) in round_.ticket.upload_lengths


@pytest.mark.parametrize(
    "changes",
    [
        {"roster": "ann, bo"},
        {"clients": "3"},
        {"clients": 10**9},
        {"min_clients": None},
        {"terms": TERMS | {"keeper": "ab"}},
        {"terms": {}},
    ],
)
def test_a_ticket_whose_terms_make_no_sense_is_none(changes: dict[str, Any]) -> None:
    with pytest.raises((SpecError, TypeError, ValueError, KeyError)):
        held(masked=AGREEMENT.to_json() | changes)
