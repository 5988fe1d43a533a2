"""Flower's SecAgg+ on updates in memory: its client's stages, and its workflow's arithmetic.

It runs in a Python that has Flower, and prints its figures as JSON. Clients run one after another
by the functions of Flower's ``secaggplus_mod``. The server's sum and unmasking are those of
``SecAggPlusWorkflow``, by the functions that it calls. No message is sent.
"""

import argparse
import importlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.common import ConfigRecord, bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_extract,
    get_parameters_shape,
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key

# The package has a function of the module's name.
mod: Any = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")

CLIPPING, QUANTIZATION, MODULUS, MAX_WEIGHT = 8.0, 2**22, 2**32, 1000.0
"""The defaults of ``SecAggPlusWorkflow``."""
SAMPLES = 100


class Clock:
    """Sums CPU-seconds, and notes the most memory beyond that at the beginning."""

    def __init__(self) -> None:
        self.seconds, self.peak_mib = 0.0, 0.0

    def __enter__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self._memory, self._begun = _memory("VmRSS"), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.process_time() - self._begun
        self.peak_mib = max(self.peak_mib, _memory("VmHWM") - self._memory)


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


class Traffic:
    """Counts what the clients get and send: messages, and bytes of what they have in them."""

    def __init__(self) -> None:
        self.messages = self.received = self.sent = 0

    def exchange(self, request: Any, reply: Any) -> None:
        """Count a request and its reply."""
        self.messages += 2
        self.received += sum(map(_nbytes, request.values()))
        self.sent += sum(map(_nbytes, reply.values()))


def _nbytes(value: Any) -> int:
    """Return the bytes of a value of a message: its text, 8 for a number, or those of a list."""
    if isinstance(value, list):
        return sum(map(_nbytes, value))
    return len(value) if isinstance(value, bytes | str) else 8


def main() -> None:
    """Run a round, and print CPU-seconds of all clients and of the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clients", type=int)
    parser.add_argument("elements", type=int)
    parser.add_argument("shares", type=int, help="a client and those that it shares keys with")
    parser.add_argument("threshold", type=int)
    parser.add_argument("lost", type=int, help="clients that are lost before they upload")
    asked = parser.parse_args()
    update = np.random.default_rng(0).standard_normal(asked.elements, np.float32)
    at_clients, at_server, traffic = Clock(), Clock(), Traffic()
    states = [_state(nid, asked) for nid in range(asked.clients)]
    # Evenly over the ring: so each one's neighbours are enough to recover its keys.
    lost = {number * asked.clients // asked.lost for number in range(asked.lost)}
    active = [state for state in states if state.nid not in lost]
    public, mailboxes = _exchange_keys(states, asked, at_clients, traffic)
    total: Any = None
    uploaded = 0
    for state in active:
        sources, texts = zip(*mailboxes[state.nid], strict=True)
        configs = ConfigRecord({Key.SOURCE_LIST: [*sources], Key.CIPHERTEXT_LIST: [*texts]})
        parameters = ndarrays_to_parameters([update])
        with at_clients:
            sent = mod._collect_masked_vectors(state, configs, SAMPLES, parameters)
        traffic.exchange(configs, sent)
        uploaded = sum(map(len, sent[Key.MASKED_PARAMETERS]))
        with at_server:
            vector = [bytes_to_ndarray(data) for data in sent[Key.MASKED_PARAMETERS]]
            total = vector if total is None else parameters_addition(total, vector)
    shares: list[list[bytes]] = [[] for _ in states]
    for state in active:
        around = {*_neighbours(state.nid, asked)}
        lists = {Key.ACTIVE_NODE_ID_LIST: around - lost, Key.DEAD_NODE_ID_LIST: around & lost}
        configs = ConfigRecord({name: sorted(found) for name, found in lists.items()})
        with at_clients:
            told = mod._unmask(state, configs)
        traffic.exchange(configs, told)
        for owner, share in zip(told[Key.NODE_ID_LIST], told[Key.SHARE_LIST], strict=True):
            shares[owner].append(share)
    with at_server:
        average = _unmasked(parameters_mod(total, MODULUS), shares, lost, public, asked)
    # Stochastic rounding of what a tenth of the largest weight is multiplied by.
    error = float(np.abs(average - update).max())
    if error > MAX_WEIGHT / SAMPLES * 2 * CLIPPING / QUANTIZATION:
        raise ValueError(f"the average is off by {error}")
    client = {"seconds": at_clients.seconds / asked.clients, "mib": at_clients.peak_mib}
    server = {"seconds": at_server.seconds, "mib": at_server.peak_mib}
    figures = {
        "client": client | {"uploaded": uploaded},
        "server": server,
        "traffic": vars(traffic),
    }
    print(json.dumps(figures))


def _exchange_keys(
    states: list[Any], asked: argparse.Namespace, clock: Clock, traffic: Traffic
) -> tuple[list[list[bytes]], list[list[tuple[int, bytes]]]]:
    """Do the first two stages; return all public keys, and the shares that each client gets."""
    public: list[list[bytes]] = []
    for state in states:
        with clock:
            keys = mod._setup(state, _terms(asked))
        traffic.exchange(_terms(asked), keys)
        public.append([keys[Key.PUBLIC_KEY_1], keys[Key.PUBLIC_KEY_2]])
    mailboxes: list[list[tuple[int, bytes]]] = [[] for _ in states]
    for state in states:
        around = ConfigRecord({str(n): public[n] for n in _neighbours(state.nid, asked)})
        with clock:
            shared = mod._share_keys(state, around)
        traffic.exchange(around, shared)
        pairs = zip(shared[Key.DESTINATION_LIST], shared[Key.CIPHERTEXT_LIST], strict=True)
        for destination, text in pairs:
            mailboxes[destination].append((state.nid, text))
    return public, mailboxes


def _neighbours(nid: int, asked: argparse.Namespace) -> list[int]:
    """Return a client and its neighbours on the ring, as many before as after."""
    half = asked.shares // 2
    return sorted((nid + step) % asked.clients for step in range(-half, half + 1))


def _terms(asked: argparse.Namespace) -> ConfigRecord:
    return ConfigRecord(
        {
            Key.SAMPLE_NUMBER: asked.clients,
            Key.SHARE_NUMBER: asked.shares,
            Key.THRESHOLD: asked.threshold,
            Key.CLIPPING_RANGE: CLIPPING,
            Key.TARGET_RANGE: QUANTIZATION,
            Key.MOD_RANGE: MODULUS,
            Key.MAX_WEIGHT: MAX_WEIGHT,
        }
    )


def _state(nid: int, asked: argparse.Namespace) -> Any:
    if asked.shares % 2 == 0:
        raise ValueError("shares must be odd: as many neighbours before as after")
    state = mod.SecAggPlusState()
    state.nid = nid
    return state


def _unmasked(
    masked: Any,
    shares: list[list[bytes]],
    lost: set[int],
    public: list[list[bytes]],
    asked: argparse.Namespace,
) -> Any:
    """Do what the workflow's last stage does."""
    shape = get_parameters_shape(masked)
    for owner, held in enumerate(shares):
        if len(held) < asked.threshold:
            raise ValueError(f"client {owner} has {len(held)} shares left: take more")
        secret = combine_shares(held)
        if owner not in lost:
            masked = parameters_subtraction(masked, pseudo_rand_gen(secret, MODULUS, shape))
            continue
        # Its neighbours added masks that they shared with it: make those again, and take them off.
        for neighbour in {*_neighbours(owner, asked)} - {owner}:
            key = generate_shared_key(
                bytes_to_private_key(secret), bytes_to_public_key(public[neighbour][0])
            )
            change = parameters_addition if owner > neighbour else parameters_subtraction
            masked = change(masked, pseudo_rand_gen(key, MODULUS, shape))
    ratio, summed = factor_extract(parameters_mod(masked, MODULUS))
    [average] = dequantize(summed, CLIPPING, QUANTIZATION)
    average += -(asked.clients - len(lost) - 1) * CLIPPING
    average *= QUANTIZATION / ratio
    return average


if __name__ == "__main__":
    main()
