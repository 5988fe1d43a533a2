"""Verifying masked rounds: what follows from the masked updates and the keeper's answer."""

import json
from typing import Any

import numpy as np
import pytest

from gradshard.client.round import Round
from gradshard.verification.round_verification import Verification, VerificationError
from gradshard_core.errors import ChangedObjectError, UpdateError
from tests import reference
from tests.unit.fakes import MemoryStack
from tests.unit.in_memory import Machine
from tests.unit.keeper_in_memory import Keeper, MaskedRound
from tests.unit.rounds.test_masked_rounds import KINDS, samples_of, updates_of

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")


def verify(machine: Machine) -> Verification:
    return Round(MemoryStack(machine.store), machine.name).verify(sample=1.0, seed="s")


def found_wrong(machine: Machine) -> Verification:
    with pytest.raises(VerificationError) as raised:
        verify(machine)
    return raised.value.verification


def flip(machine: Machine, key: str, at: int = -9) -> None:
    """Flip a bit of an object, whose ETag stays the same."""
    body = bytearray(machine.store.objects[key])
    body[at] ^= 0x10
    machine.store.objects[key] = bytes(body)


def change(machine: Machine, **fields: Any) -> None:
    manifest = json.loads(machine.store.objects[machine.keys.manifest])
    machine.store.objects[machine.keys.manifest] = json.dumps({**manifest, **fields}).encode()


@pytest.fixture
def round_(machine: Machine, keeper: Keeper) -> MaskedRound:
    found = MaskedRound(machine, keeper)
    updates = updates_of(4)
    found.run(updates, samples_of(updates))
    return found


@pytest.mark.parametrize("ring_bits", [32, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_masked_rounds_of_every_kind_are_verified(
    machine: Machine, keeper: Keeper, kind: dict[str, Any], ring_bits: int
) -> None:
    updates = updates_of(7)
    MaskedRound(machine, keeper, ring_bits=ring_bits).run(
        updates, samples_of(updates), ["c0003"], min_clients=2, **kind
    )
    found = verify(machine)
    assert (found.is_correct, found.contributors) == (True, 6)
    assert found.sampled_nbytes == found.nbytes == sum(t.nbytes for t in updates["c0000"].values())
    assert [note for note in found.notes if "only the keeper can recompute" in note] != []


@pytest.mark.usefixtures("round_")
def test_a_wrong_bit_of_the_result_is_found(machine: Machine) -> None:
    assert verify(machine).is_correct
    flip(machine, machine.keys.result)
    found = found_wrong(machine)
    assert found.wrong_ranges == 1
    assert found.differences[0].tensor == "wide"


@pytest.mark.usefixtures("round_")
@pytest.mark.parametrize("of", ["update", "masks"])
def test_another_update_or_answer_than_was_used_is_found(machine: Machine, of: str) -> None:
    key = machine.keys.masks if of == "masks" else machine.keys.update("c0002")
    flip(machine, key, -17)
    assert found_wrong(machine).wrong_ranges == 1


@pytest.mark.usefixtures("round_")
def test_what_the_manifest_says_of_counts_and_clients_is_checked(machine: Machine) -> None:
    manifest = json.loads(machine.store.objects[machine.keys.manifest])
    change(machine, samples=manifest["samples"] + 1)
    [said] = found_wrong(machine).contradictions
    assert (
        said == f"samples is {manifest['samples'] + 1} in the manifest, not {manifest['samples']}"
    )
    change(machine, samples=manifest["samples"], contributors=manifest["contributors"][1:])
    # The masks of the client that is left out are still in the answer.
    with pytest.raises((VerificationError, UpdateError)):
        verify(machine)


@pytest.mark.usefixtures("round_")
def test_an_answer_that_is_gone_or_of_another_size_is_named(machine: Machine) -> None:
    manifest = json.loads(machine.store.objects[machine.keys.manifest])
    short = manifest["masks"] | {"nbytes": manifest["masks"]["nbytes"] - 4}
    change(machine, masks=short)
    with pytest.raises(UpdateError, match=r"keeper/masks has \d+ bytes, not \d+"):
        verify(machine)
    change(machine, masks=manifest["masks"])
    machine.store.delete(machine.keys.masks)
    with pytest.raises(ChangedObjectError, match="keeper/masks"):
        verify(machine)


@pytest.mark.usefixtures("round_")
def test_a_verifier_sees_no_update(machine: Machine) -> None:
    """What a contributor may read to verify is what the aggregator has, and looks as uniform."""
    masked = reference.decode(machine.store.objects[machine.keys.update("c0001")])["masked"]
    plain = updates_of(4)["c0001"]["w"]
    assert plain.tobytes() not in masked.tobytes()
    assert np.unique(masked).size == masked.size
