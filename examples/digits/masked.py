"""Train a network twice, with plain and with masked rounds, and compare the accuracies.

The program starts the local engine with the application and a mask keeper, has five clients train
on handwritten digits in masked rounds, one of whom is lost in the last round, and averages the same
updates with a plain numpy loop. It exits with 1 if an average is off by more than the stated bound.
"""

import argparse
import sys
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

import network
import plain_numpy
from gradshard import Federation, Keeper, Mask
from gradshard.local_engine import lifecycle
from gradshard.updates.mask_identity import make_identity
from gradshard_core.specs.masking_options import parse_masking
from plain_numpy import Array, Update
from training import CLIENTS, FederatedTraining

ROUNDS: Final = 5
BOUND: Final = 2.0
MAX_SAMPLES: Final = 1000
WAIT_SECONDS: Final = 180
LAST_BITS: Final = 2.0**-22
"""Of numbers up to the bound in F32: what the two averages round, one after the other."""


def main() -> int:
    """Run the demo and return the process's exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port of the local engine")
    engine = lifecycle.up(parser.parse_args().port, ephemeral=True, keeper=True, progress=print)
    try:
        return train(engine.port)
    finally:
        lifecycle.down(engine.port)


def train(port: int) -> int:
    """Train with plain and with masked averages, side by side."""
    federation = Federation(local=True, port=port)
    keeper = Keeper(local=True, port=port)
    masks = enrolled(keeper)
    terms = {"bound": BOUND, "max_samples": MAX_SAMPLES, "keeper": keeper.public_key()}
    most = parse_masking(terms).fixed(len(CLIENTS), elements=1).max_error + LAST_BITS
    plain, masked, run = FederatedTraining(), FederatedTraining(), uuid.uuid4().hex[:8]
    is_off = False
    print("round  clients  plain   masked  largest difference of an element")
    for number in range(1, ROUNDS + 1):
        lost = CLIENTS[-1:] if number == ROUNDS else ()
        there = [client for client in CLIENTS if client not in lost]
        expected = plain_numpy.average(only(plain.train(), there))
        plain.apply(expected)
        updates = only(masked.train(), there)
        average = average_masked(federation, f"masked-{run}-{number}", updates, masks, terms)
        # The average of these very updates, without masks.
        exact = plain_numpy.average(updates)
        off = max(float(np.abs(average[name] - exact[name]).max()) for name in exact)
        is_off |= off > most
        masked.apply(average)
        scores = [network.accuracy(side.model, *side.test) for side in (plain, masked)]
        print(f"{number:5}  {len(there):7}  {scores[0]:.1%}   {scores[1]:.1%}   {off:.1e}")
    print(f"the stated bound of the error is {most:.1e}")
    show_record(keeper, f"masked-{run}-{ROUNDS}")
    return int(is_off)


def enrolled(keeper: Keeper) -> dict[str, Mask]:
    """Make a key for each client, and enrol it."""
    folder = Path(tempfile.mkdtemp(prefix="gradshard-keys-"))
    for client in CLIENTS:
        keeper.enrol(client, make_identity(folder / client))
    return {client: Mask(folder / client, keeper.fingerprint()) for client in CLIENTS}


def only(updates: Mapping[str, Update], clients: list[str]) -> dict[str, Update]:
    """Return the updates of some clients."""
    return {client: updates[client] for client in clients}


def average_masked(
    federation: Federation,
    name: str,
    updates: Mapping[str, Update],
    masks: Mapping[str, Mask],
    terms: Mapping[str, Any],
) -> dict[str, Array]:
    """Average updates in a masked round, in which nobody sees a single one."""
    layout = next(iter(updates.values())).tensors
    round_ = federation.open_round(name, CLIENTS, layout=layout, masked=terms, min_clients=3)
    for client, update in updates.items():
        round_.submit(client, update.tensors, update.samples, mask=masks[client])
    if len(updates) < len(CLIENTS):
        round_.close()
    round_.wait(timeout=WAIT_SECONDS)
    return round_.fetch()


def show_record(keeper: Keeper, name: str) -> None:
    """Print what the keeper can show of a round."""
    record = keeper.answer(name)
    print(f"the keeper's record of {name}: masks of {', '.join(record['summed'])}, summed once, at")
    print(f"{record['given_at']}")


if __name__ == "__main__":
    sys.exit(main())
