"""Clients that each send another large header fill no memory and decide on nothing."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gradshard_core.formats.keys import ObjectVersion
from tests.unit.formats.test_hostile_updates import ROOM_MB, tensors

CLIENTS = {"names": 11, "names of fewer than half": 12, "metadata": 40}
"""Of the first and the last all headers together would take more than a function's memory."""

CHECK = """
import sys
from gradshard_core.errors import PlanError
from gradshard_core.formats.keys import RoundKeys
from gradshard_core.planning.spec import parse_spec
from gradshard_core.rounds import admission
from tests.unit.formats.test_hostile_updates import peak_mb
from tests.unit.rounds.test_hostile_layouts import CLIENTS, Bucket
bucket = Bucket(sys.argv[1])
clients = [f"c{number:04}" for number in range(CLIENTS[sys.argv[1]])]
spec = parse_spec({"clients": clients, "min_clients": 1})
before = peak_mb()
try:
    admitted = admission.admit(bucket, RoundKeys("r"), spec, clients, settled=None, whose="")
    outcome = f"{len(admitted.contributors)} contributors, {len(bucket.rejections)} rejections"
except PlanError as error:
    outcome = str(error)
print(round(peak_mb() - before), outcome)
"""


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
        self.rejections: list[str] = []

    def _of(self, key: str, start: int, end: int) -> bytes:
        part, number = self._blob[start:end], int(Path(key).stem.removeprefix("c"))
        if self._kind == "names" or (self._kind == "names of fewer than half" and number % 3 == 0):
            return part.replace(b'"layer.', b'"%05d.' % number)
        return part

    def get_head(self, key: str, nbytes: int) -> tuple[bytes, ObjectVersion]:
        return self._of(key, 0, nbytes), ObjectVersion(key, "v", '"etag"', self._nbytes)

    def get_range(self, source: ObjectVersion, start: int, end: int) -> bytes:
        return self._of(source.key, start, end)

    def put_json(self, key: str, _value: Any) -> None:
        self.rejections.append(key)


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("names", "no layout is that of more than half of the 11 updates"),
        ("names of fewer than half", "8 contributors, 4 rejections"),
        ("metadata", "40 contributors, 0 rejections"),
    ],
)
def test_headers_that_all_differ_fit_into_a_function(kind: str, outcome: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK, kind], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peak, text = done.stdout.split(maxsplit=1)
    print(f"{kind}: {peak} MB")
    assert outcome in text
    assert int(peak) < ROOM_MB
