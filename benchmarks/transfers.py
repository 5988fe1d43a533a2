"""Send a file to S3 and fetch it over HTTPS, with gradshard's client and with others.

Run as a module, it prints CPU-seconds per GB of the client's process, GB/s, and peak memory.
They are medians of several turns, in each of which every client has one. The server is nginx with
S3's TLS, before :mod:`benchmarks.transfer_server`. The benchmark compares the bytes that
arrive with the file.
"""

import argparse
import contextlib
import hashlib
import http.client
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import nginx, runs
from benchmarks.nginx import Nginx
from benchmarks.rows import transfer
from benchmarks.runs import PYTHONPATH, ROOT, WrongBytesError
from benchmarks.servers import BUCKET
from gradshard_core.formats.tensor_layout import Layout, encode_header
from gradshard_core.units import MIB

PARALLEL: Final = "gradshard, parallel"
_CHUNK: Final = MIB

Job = dict[str, Any]


def jobs(path: Path, etag: str) -> dict[str, Job]:
    """Return the transfers to measure, by name."""
    names = [name for name in transfer.CLIENTS if name != "obstore" or _has_obstore()]
    found: dict[str, Job] = {}
    for direction in ("submit", "fetch"):
        for name in [*names, *([PARALLEL] if direction == "submit" else [])]:
            found[f"{direction}: {name}"] = {
                "client": name.partition(",")[0],
                "direction": direction,
                "parallel": name == PARALLEL,
                "path": str(path if direction == "submit" else path.with_suffix(".fetched")),
                "etag": etag,
                "nbytes": path.stat().st_size,
            }
    return found


def _has_obstore() -> bool:
    return importlib.util.find_spec("obstore") is not None


def make_update(path: Path, nbytes: int) -> str:
    """Write a safetensors file of just this size; return the ETag that S3 would give it."""
    metadata = {"num_samples": "1"}
    # The header's length depends on the number of elements only by its digits.
    overhead = len(encode_header(Layout.pack([("weights", "F32", (nbytes // 4,))]), metadata))
    elements = (nbytes - overhead) // 4
    header = encode_header(Layout.pack([("weights", "F32", (elements,))]), metadata)
    digest = hashlib.md5(header, usedforsecurity=False)
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(header)
        for start in range(0, elements, _CHUNK):
            data = rng.standard_normal(min(_CHUNK, elements - start), np.float32).tobytes()
            file.write(data)
            digest.update(data)
    return f'"{digest.hexdigest()}"'


@contextlib.contextmanager
def serve(path: Path, etag: str, rate: float) -> Iterator[tuple[Nginx, Path]]:
    """Serve the file; yield the server, and the socket behind it."""
    binary = nginx.find()
    if binary is None:
        raise RuntimeError("nginx is missing, and its package cannot be downloaded")
    listening = path.with_name("s3.sock")
    command = [sys.executable, "-m", "benchmarks.transfer_server"]
    process = subprocess.Popen(
        [*command, str(listening), str(path), etag, str(rate)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
    )
    try:
        while not listening.exists():
            if process.poll() is not None:
                raise RuntimeError("the server did not start")
            time.sleep(0.05)
        with nginx.serve(binary, listening) as server:
            yield server, listening
    finally:
        process.terminate()
        process.wait()


def run(job: Job, server: Nginx, listening: Path) -> dict[str, float]:
    """Run one client once, in a fresh process.

    Raises
    ------
    WrongBytesError
        Other bytes arrived than those of the file.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.rows.transfer"],
        input=json.dumps(job),
        cwd=ROOT,
        env=os.environ | server.environment | {"PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{job['client']} failed:\n{done.stderr[-2000:]}")
    source, path = Path(job["path"]).with_suffix(".safetensors"), Path(job["path"])
    is_right = _bodies_are(source, _bodies(listening))
    if job["direction"] == "fetch":
        is_right = _crc(path, 0, job["nbytes"]) == _crc(source, 0, job["nbytes"])
        path.unlink()
    if not is_right:
        raise WrongBytesError(f"{job['client']}: other bytes arrived than those of {source}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    gigabytes = job["nbytes"] / 1e9
    result["gb_per_second"] = gigabytes / result["seconds"]
    result["cpu_seconds_per_gb"] = result["cpu_seconds"] / gigabytes
    return result


class _Connection(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def _bodies(listening: Path) -> list[tuple[int, tuple[int, int]]]:
    """Return number, size and CRC-32 of each part that the server received since last asked."""
    with contextlib.closing(_Connection(listening)) as connection:
        connection.request("GET", "/bodies")
        found = json.loads(connection.getresponse().read())
    return [(int(number), (length, crc)) for number, (length, crc) in found]


def _bodies_are(path: Path, bodies: list[tuple[int, tuple[int, int]]]) -> bool:
    position = 0
    for _, (length, crc) in sorted(bodies):
        if _crc(path, position, length) != crc:
            return False
        position += length
    return position == path.stat().st_size


def _crc(path: Path, start: int, nbytes: int) -> int:
    checksum = 0
    with path.open("rb") as file:
        file.seek(start)
        while nbytes and (chunk := file.read(min(nbytes, _CHUNK))):
            checksum, nbytes = zlib.crc32(chunk, checksum), nbytes - len(chunk)
    return checksum


def main() -> None:
    """Measure in turns, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--mib", type=int, default=1024, help="size of the file")
    parser.add_argument("--rate", type=float, default=0, help="MB/s of each connection; 0: any")
    parser.add_argument("--only", nargs="+", default=[], help="parts of the names of rows")
    options = parser.parse_args()
    measured: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="gradshard-bench-") as folder:
        path = Path(folder, "update.safetensors")
        etag = make_update(path, options.mib * MIB)
        with serve(path, etag, options.rate * 1e6) as (server, listening):
            for _ in range(options.runs):
                for name, job in jobs(path, etag).items():
                    if not options.only or any(part in name for part in options.only):
                        measured.setdefault(name, []).append(run(job, server, listening))
    if not _has_obstore():
        print("without obstore: `make bench-transfers` installs it")
    print(f"{options.mib} MiB to and from bucket {BUCKET}, {options.runs} turns")
    for name, found in measured.items():
        shown = runs.summarise(found)
        cpu = shown["cpu_seconds_per_gb"]
        print(
            f"{name:28} {cpu['median']:5.2f} ({cpu['min']:.2f}-{cpu['max']:.2f}) CPU-s/GB"
            f"  {shown['gb_per_second']['median']:5.2f} GB/s"
            f"  {shown['peak_mib']['max']:6.1f} MiB above idle"
        )


if __name__ == "__main__":
    main()
