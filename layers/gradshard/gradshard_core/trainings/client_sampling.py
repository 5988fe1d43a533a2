"""How many clients are invited to a round, and which: drawn by a seed, so that it can be repeated.

Weighted sampling without replacement after Efraimidis and Spirakis (2006,
https://doi.org/10.1016/j.ipl.2005.11.003): of each client's uniform number u and weight w, those
with the largest u^(1/w) are taken. The numbers are a hash of seed, round and client, so a draw does
not depend on Python's generator, on other clients or on their order.
"""

import hashlib
import math
import os
import struct
from collections.abc import Iterable, Mapping
from typing import Final

from gradshard_core.limits.own_limits import MAX_CLIENTS
from gradshard_core.specs.training_spec import TrainingSpec

_BITS: Final = 53
MOST_SILENT: Final = 9
"""A client is sampled a tenth as often at least, however many invitations it has missed."""


def count_invited(spec: TrainingSpec, members: int) -> tuple[int, int]:
    """Return how many of the members are invited to a round, and how many are awaited.

    In buffered mode these are rounds of evaluation: as many are awaited as make a version.

    Parameters
    ----------
    spec
        The training's options.
    members
        The number of clients that can be invited.
    """
    most = min(members, MAX_CLIENTS)
    if spec.updates_per_version is not None:
        return most, min(most, spec.updates_per_version)
    wanted = members if spec.sample is None else spec.sample
    if wanted < 1:
        wanted = max(1, round(wanted * members))
    most = min(most, spec.terms.capacity)
    awaited = min(max(int(wanted), spec.needed()), most)
    more = math.ceil(awaited * (1 + spec.over_selection))
    return min(more, most), awaited


def draw(
    members: Iterable[str], number: int, *, seed: str, silent: Mapping[str, int]
) -> tuple[str, ...]:
    """Draw clients, and return them sorted.

    Parameters
    ----------
    members
        The clients that can be drawn.
    number
        The number of clients to draw.
    seed
        The seed of the draw: with the same one, the draw is the same.
    silent
        The number n of invitations in a row that a client has not answered; its weight is
        1 / (1 + n).
    """
    ranked = sorted((-_score(client, seed, silent.get(client, 0)), client) for client in members)
    return tuple(sorted(client for _, client in ranked[:number]))


def draw_in_secret(members: Iterable[str], probability: float) -> tuple[str, ...]:
    """Draw each client with a probability, by random bits that are kept nowhere; at least one.

    Parameters
    ----------
    members
        The clients that can be drawn, at least ``SecretSample.fewest``.
    probability
        Rounded down to a multiple of 2⁻⁶⁴, if it is none.
    """
    bound, clients = int(probability * 2**64), sorted(members)
    while True:
        bits = struct.unpack(f">{len(clients)}Q", os.urandom(8 * len(clients)))
        drawn = tuple(c for c, number in zip(clients, bits, strict=True) if number < bound)
        if drawn:
            return drawn


def _score(client: str, seed: str, missed: int) -> float:
    """Return log(u) / w, which is in the order of u^(1/w)."""
    digest = hashlib.sha256(f"{seed}\n{client}".encode()).digest()
    uniform = (int.from_bytes(digest[:8]) >> (64 - _BITS)) + 0.5
    return math.log(uniform / 2**_BITS) * (1 + min(missed, MOST_SILENT))
