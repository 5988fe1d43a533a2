"""The worst headers that clients may send fit into the memory of the functions that read them."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gradshard_core.formats.headers import MAX_HEADER_BYTES, MAX_HEADER_VALUES
from gradshard_core.formats.object_keys import ObjectVersion
from tests.unit.formats.test_hostile_updates import tensors

# Of plan_round and collect_update: what is left beside the interpreter and numpy.
ROOM_MB = 472 - 60
ARRIVAL_ROOM_MB = 256 - 60
REPEATED = {"keys, as many as are read": "17"}
"""Of the worst, more than there are threads that read: each may keep what one header took."""
CHECK_ARRIVAL = """
import sys
from gradshard_core.rounds import arrivals
from tests.fuzz.targets import KEYS, SPEC, _Memory
from tests.integration.test_header_memory import WORST, peak_mb
fill = arrivals.ARRIVAL_HEADER_BYTES - 64
blob = WORST[sys.argv[1]](fill)
blob = len(blob).to_bytes(8, "little") + blob
store = _Memory(blob, len(blob) + 4 * (fill // 160))
before = peak_mb()
found = arrivals.check_update(store, KEYS, "c", SPEC)
print(round(peak_mb() - before), type(found).__name__)
"""
CHECK_ARRIVALS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from gradshard_core.rounds import arrivals
from gradshard_core.rounds.buffered_round import Address
from gradshard_core.rounds.seen_layouts import SeenLayouts
from tests.fuzz.targets import KEYS, SPEC, _Memory
from tests.integration.test_header_memory import FILL, WORST, peak_mb
blob = WORST[sys.argv[1]](FILL)
blob = len(blob).to_bytes(8, "little") + blob
store = _Memory(blob, len(blob) + 400_000)
before = peak_mb()
clients = [f"c{i}" for i in range(int(sys.argv[2]))]
layouts = SeenLayouts(store)
with ThreadPoolExecutor(1) as thread:
    found = arrivals.check_updates(
        store,
        lambda _: Address(KEYS),
        clients,
        SPEC,
        look=lambda update: layouts.note(update.header, update.source),
        large_headers=thread,
    )
print(round(peak_mb() - before), {type(update).__name__ for update in found})
"""
FILL = MAX_HEADER_BYTES - 64

CLIENTS = {"names": 5, "names of fewer than half": 7, "metadata": 40}
"""All headers of the last would take more than a function's memory, all layouts of the others more
than ``MOST_MB``."""

MOST_MB = {"names": 170, "names of fewer than half": 170, "metadata": ROOM_MB}

CHECK_ADMISSION = """
import sys
from gradshard_core.errors import PlanError
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.specs.round_spec_checks import parse_spec
from gradshard_core.rounds import contributors
from tests.integration.test_header_memory import CLIENTS, Bucket, peak_mb
bucket = Bucket(sys.argv[1])
clients = [f"c{number:04}" for number in range(CLIENTS[sys.argv[1]])]
spec = parse_spec({"clients": clients, "min_clients": 1})
before = peak_mb()
try:
    admitted = contributors.admit(bucket, RoundKeys("r"), spec, clients, settled=None, whose="")
    outcome = f"{len(admitted.contributors)} contributors, {len(admitted.rejected)} rejections"
except PlanError as error:
    outcome = str(error)
print(round(peak_mb() - before), outcome)
"""


def peak_mb() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


WORST: dict[str, Callable[[int], bytes]] = {
    "lists": lambda fill: b'{"a":[%s[]]}' % (b"[]," * (fill // 3)),
    "lists, as many as are read": lambda fill: (
        b'{"a":[%s[]]}' % (b"[]," * min(fill // 3, MAX_HEADER_VALUES // 2 - 9))
    ),
    "keys, as many as are read": lambda fill: (
        b'{"a":{%s}}'
        % b",".join(b'"%06x":0' % i for i in range(min(fill // 11, MAX_HEADER_VALUES // 2 - 9)))
    ),
    "texts": lambda fill: b'{"a":[%s"bc"]}' % (b'"bc",' * min(fill // 5, MAX_HEADER_VALUES - 9)),
    "wide characters": lambda fill: b'{"a":"%s%s"}' % ("\U0001f600".encode(), b"x" * fill),
    "100,000 tensors": lambda fill: tensors(min(fill // 160, 100_000)),
}
"""Headers of at most so many bytes, and a few more."""


class Bucket:
    """Updates as large as may be, made when they are read; ``kind`` says how they differ."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        text, data = tensors(100_000), 400_000
        if kind == "metadata":
            text = (
                b'{"__metadata__":{"num_samples":"1","note":"%s"},'
                b'"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' % (b"x" * 15_000_000)
            )
            data = 4
        self._blob = len(text).to_bytes(8, "little") + text
        self._nbytes = len(self._blob) + data

    def _of(self, key: str, start: int, end: int) -> bytes:
        part, number = self._blob[start:end], int(Path(key).stem.removeprefix("c"))
        if self._kind == "names" or (self._kind == "names of fewer than half" and number % 3 == 0):
            return part.replace(b'"layer.', b'"%05d.' % number)
        return part

    def get_head(self, key: str, nbytes: int) -> tuple[bytes, ObjectVersion]:
        return self._of(key, 0, nbytes), ObjectVersion(key, "v", '"etag"', self._nbytes)

    def get_range(self, source: ObjectVersion, start: int, end: int) -> bytes:
        return self._of(source.key, start, end)


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("names", "no layout is that of more than half of the 5 updates"),
        ("names of fewer than half", "4 contributors, 3 rejections"),
        ("metadata", "40 contributors, 0 rejections"),
    ],
)
def test_headers_that_all_differ_fit_into_a_function(kind: str, outcome: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK_ADMISSION, kind], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peak, text = done.stdout.split(maxsplit=1)
    print(f"{kind}: {peak} MB")
    assert outcome in text
    assert int(peak) < MOST_MB[kind] <= ROOM_MB


@pytest.mark.parametrize("what", WORST)
def test_the_worst_headers_of_several_clients_fit_into_a_function(what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK_ARRIVALS, what, REPEATED.get(what, "4")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peak, kinds = done.stdout.split(maxsplit=1)
    print(f"{what}: {peak} MB, {kinds}")
    assert int(peak) < ROOM_MB
    assert ("SeenLayout" in kinds) == (what == "100,000 tensors")


@pytest.mark.parametrize("what", WORST)
def test_the_worst_header_that_is_checked_on_arrival_fits_into_the_function(what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK_ARRIVAL, what], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peak, kind = done.stdout.split()
    print(f"{what}: {peak} MB, {kind}")
    assert int(peak) < ARRIVAL_ROOM_MB
    assert kind == ("Update" if "tensors" in what else "Rejection")
