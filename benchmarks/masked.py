"""The cost of masks: sums in a ring beside the weighted sum, keeper, client, and SecAgg+.

CPU-seconds are per GB of updates in F32, and memory is what is taken beyond the inputs. Updates are
in memory, and the kernel is that of the functions, so the figures are of the arithmetic alone: what
a task spends on receiving and sending is the same with and without masks. Flower's SecAgg+ does the
same round in a Python that has Flower, named in FLOWER_PYTHON, without messages
(:mod:`benchmarks.rows.secagg_plus`).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from benchmarks import runs
from gradshard.updates.mask import Mask, MaskedContent, masked
from gradshard.updates.upload_source import TensorContent
from gradshard_core.aggregation import kernel
from gradshard_core.aggregation.kernel import Addition, Reduction, Source, WeightedRange
from gradshard_core.aggregation.masked_sum import ADDED, SUBTRACTED, Decoding, RingSum, ring_spans
from gradshard_core.formats.tensor_layout import Layout, Span
from gradshard_core.masking import sealing
from gradshard_core.masking.key_stream import KeyStream
from gradshard_core.observability.memory import peak_memory_mb, reset_peak_memory
from gradshard_core.privacy.masked_noise import RingNoise
from gradshard_core.specs.masking_options import Agreement, parse_masking

CLIENTS: Final = 20
MIB: Final = 43
"""ResNet-18 in F32."""
SAMPLES: Final = 100
PART_BYTES: Final = 8 * 1024**2
"""A client's update is read in such pieces, as it is uploaded."""
KEY: Final = bytes(range(1, 33))
LOST: Final = 6
"""Clients that are lost before they upload, in the rows that have any: 30 %."""

Json = dict[str, Any]


class Sharing(NamedTuple):
    """How SecAgg+ shares keys: among a client and its neighbours, and how many recover one."""

    shares: int
    threshold: int
    lost: int = 0


SECAGG_PLUS: Final = {
    # Flower's example: a client shares keys with two others, the fewest there are.
    "SecAgg+": Sharing(3, 2),
    # At least half of each lost client's ten neighbours are left.
    "SecAgg+, 10 neighbours": Sharing(11, 5),
    f"SecAgg+, 10 neighbours, {LOST} lost": Sharing(11, 5, LOST),
}


class Cost(NamedTuple):
    """CPU-seconds per GB of updates, and MiB beyond the inputs."""

    cpu: float
    mib: float


class InMemory:
    """An input whose bytes are in memory."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def read_into(self, buffer: memoryview) -> None:
        """Fill ``buffer`` with the next bytes."""
        buffer[:] = self._data[self._at : self._at + len(buffer)]
        self._at += len(buffer)


def cost(work: Callable[[], object], nbytes: int) -> Cost:
    """Measure some work on so many bytes of updates."""
    reset_peak_memory()
    before, begun = resident_mib(), time.process_time()
    work()
    seconds = time.process_time() - begun
    return Cost(seconds / nbytes * 1e9, peak_memory_mb() - before)


def resident_mib() -> float:
    """Return the memory that the process has now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def add(
    sources: Sequence[Source], last: float, reduction: Reduction, spans: Sequence[Span]
) -> Cost:
    """Run the kernel over all inputs, of which the last one has another weight."""
    weights: list[float | None] = [ADDED] * (len(sources) - 1)
    nbytes = spans[-1].end
    weighted_ranges = [WeightedRange(0, nbytes, [*weights, last])]
    return cost(
        lambda: kernel.aggregate(sources, weighted_ranges, reduction, spans, lambda _: None),
        CLIENTS * nbytes,
    )


def client_content(floats: np.ndarray[Any, Any], **dp: Any) -> MaskedContent:
    """Return a client's masked update, as the library uploads it."""
    layout = Layout.pack([("w", "F32", list(floats.shape))])
    keeper = sealing.public_key(KEY).hex()
    terms = {"keeper": keeper, **(dp or {"bound": 8.0, "max_samples": 1000})}
    agreement = Agreement(parse_masking(terms), CLIENTS, "0" * 64, 11)
    mask = Mask(KEY, sealing.fingerprint(bytes.fromhex(keeper)))
    return masked(TensorContent({"w": floats}, SAMPLES), agreement, layout, mask, "a", "r")


def send(floats: np.ndarray[Any, Any], **dp: Any) -> None:
    """Mask an update, and read all of it."""
    content = client_content(floats, **dp)
    for start in range(0, content.nbytes, PART_BYTES):
        content.read(start, min(start + PART_BYTES, content.nbytes))


def rows(nbytes: int) -> dict[str, Callable[[], Cost]]:
    """Return the measurements by name, of updates of so many bytes."""
    spans = [Span("F32", 0, nbytes)]
    ring = ring_spans(spans, 32)
    floats = np.random.default_rng(0).standard_normal(nbytes // 4, np.float32)
    words = np.random.default_rng(1).integers(0, 2**32, nbytes // 4, np.uint32)
    fixed = parse_masking({"keeper": "0" * 64, "bound": 8.0, "max_samples": 1000})
    decoding = Decoding(fixed.fixed(CLIENTS, nbytes // 4), CLIENTS * SAMPLES)
    fewer = Decoding(decoding.fixed, (CLIENTS - LOST) * SAMPLES)
    dp = {"clip": 4000.0, "noise_multiplier": 1.0, "delta": 1e-5}

    def stored(data: np.ndarray[Any, Any], count: int) -> list[Source]:
        return [InMemory(memoryview(data.view(np.uint8))) for _ in range(count)]

    def streams() -> list[Source]:
        return [KeyStream(bytes([seed]) * 32, 0, nbytes) for seed in range(CLIENTS)]

    def noise() -> RingNoise:
        return RingNoise(KEY, 2, 0, nbytes // 4 + 1, 32)

    return {
        "weighted sum": lambda: add(stored(floats, CLIENTS), 1.0, Addition(), spans),
        "masked sum": lambda: add(stored(words, CLIENTS + 1), SUBTRACTED, RingSum(decoding), ring),
        f"masked sum, {LOST} lost": lambda: add(
            stored(words, CLIENTS - LOST + 1), SUBTRACTED, RingSum(fewer), ring
        ),
        "keeper": lambda: add(streams(), ADDED, RingSum(), ring),
        f"keeper, {LOST} lost": lambda: add(streams()[LOST:], ADDED, RingSum(), ring),
        "keeper with noise": lambda: add([*streams(), noise()], ADDED, RingSum(), ring),
        "client": lambda: cost(lambda: send(floats), nbytes),
        "client with noise": lambda: cost(lambda: send(floats, dp=dp), nbytes),
    }


def secagg_plus(python: str, sharing: Sharing, nbytes: int) -> Json:
    """Run a round of Flower's SecAgg+ in a process of its own."""
    program = Path(__file__).parent / "rows" / "secagg_plus.py"
    asked = map(str, (CLIENTS, nbytes // 4, *sharing))
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, str(program), *asked], check=True, capture_output=True, env=environment
    )
    found: Json = json.loads(done.stdout)
    return found


def measure(times: int, *, notes: list[str], say: Callable[[str], None], mib: float = MIB) -> Json:
    """Measure all rows in turns; return medians, and ratios within turns."""
    python, nbytes = runs.flower_python(), round(mib * 1024**2) // 4 * 4
    if python is None:
        notes.append("SecAgg+: flwr is not installed; set FLOWER_PYTHON")
    found: dict[str, list[Cost]] = {}
    uploaded = {"client": client_content(np.zeros(nbytes // 4, np.float32)).nbytes}
    traffic: dict[str, Json] = {}
    for turn in range(times):
        for name, row in rows(nbytes).items():
            say(f"masked: {name}, {turn + 1} of {times}")
            found.setdefault(name, []).append(row())
        for name, sharing in SECAGG_PLUS.items() if python is not None else ():
            say(f"masked: {name}, {turn + 1} of {times}")
            sides = secagg_plus(str(python), sharing, nbytes)
            uploaded[f"{name}: client"] = sides["client"].pop("uploaded")
            traffic[f"{name}: client"] = sides["traffic"]
            for side, clients in (("client", 1), ("server", CLIENTS)):
                seconds = sides[side]["seconds"]
                spent = Cost(seconds / (clients * nbytes) * 1e9, sides[side]["mib"])
                found.setdefault(f"{name}: {side}", []).append(spent)
    return {
        name: {
            "cpu": statistics.median(c.cpu for c in costs),
            "to_plain": statistics.median(
                c.cpu / plain.cpu for c, plain in zip(costs, found["weighted sum"], strict=True)
            ),
            "mib": max(c.mib for c in costs),
            "uploaded": uploaded.get(name),
            "traffic": traffic.get(name),
        }
        for name, costs in found.items()
    }


def main() -> None:
    """Measure in turns, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--mib", type=float, default=MIB, help="of each update")
    asked, notes = parser.parse_args(), list[str]()

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    found = measure(asked.runs, notes=notes, say=say, mib=asked.mib)
    print(f"{CLIENTS} clients x {asked.mib:g} MiB of F32, {asked.runs} turns")
    for name, row in found.items():
        sent = "" if row["uploaded"] is None else f", uploads {row['uploaded'] / 1024**2:.1f} MiB"
        print(
            f"{name:39} {row['cpu']:7.3f} CPU-s/GB, {row['to_plain']:6.2f} x the weighted sum, "
            f"{row['mib']:6.1f} MiB{sent}"
        )
        if row["traffic"] is not None:
            print(f"{'':39} all clients: {row['traffic']}")
    print(*notes, sep="\n")


if __name__ == "__main__":
    main()
