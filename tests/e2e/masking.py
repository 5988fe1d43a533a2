"""Masked rounds of the deployed application and its keeper."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradshard import Federation, Keeper, Mask
from gradshard.updates.mask_identity import make_identity
from tests import reference

SECONDS = 120


def terms_of(keeper: Keeper) -> dict[str, Any]:
    return {
        "bound": 4.0,
        "bits": 16,
        "ring_bits": 32,
        "max_samples": 1000,
        "keeper": keeper.public_key(),
    }


def update_of(client: str, size: int = 50) -> dict[str, reference.Array]:
    rng = np.random.default_rng(list(client.encode()))
    return {"w": rng.normal(0, 2, size).astype("f4"), "b": rng.normal(0, 2, 3).astype("f4")}


def samples_of(client: str) -> int:
    return sum(client.encode()) % 1000 + 1


def identities(keeper: Keeper, clients: Sequence[str], enrolled: Sequence[str]) -> dict[str, Mask]:
    """Make a key for each client, and enrol some."""
    folder = Path(tempfile.mkdtemp())
    masks = {}
    for client in clients:
        key = make_identity(folder / client)
        if client in enrolled:
            keeper.enrol(client, key)
        else:
            keeper.expel(client)
        masks[client] = Mask(folder / client, keeper.fingerprint())
    return masks


def masked_round(
    federation: Federation, name: str, clients: Sequence[str], *, enrolled: Sequence[str]
) -> dict[str, Any]:
    """Run a masked round; return its manifest."""
    keeper = Keeper()
    masks = identities(keeper, clients, enrolled)
    round_ = federation.open_round(
        name, clients, layout=update_of("a"), masked=terms_of(keeper), min_clients=2, timeout=600
    )
    for client in clients:
        round_.submit(client, update_of(client), samples_of(client), mask=masks[client])
    return round_.wait(SECONDS)
