"""A good first version: ranged GETs one after another into a shard-sized accumulator.

boto3, slices of 256 KiB read into one reused buffer and added at once; the shard is put whole.
"""

from typing import Any

import numpy as np

from benchmarks.rows.boto3_client import client
from benchmarks.rows.measure import Requests, Work, measure

SLICE = 64 * 1024  # elements


def setup(job: dict[str, Any]) -> Work:
    """Aggregate one shard after another."""
    raw = memoryview(bytearray(4 * SLICE))
    scratch = np.empty(SLICE, np.float32)

    def add(contributor: dict[str, Any], shard: dict[str, Any], accumulator: Any) -> None:
        first = contributor["data_offset"] + shard["start"]
        last = contributor["data_offset"] + shard["end"] - 1
        body: Any = client.get_object(
            Bucket=job["bucket"], Key=contributor["key"], Range=f"bytes={first}-{last}"
        )["Body"]
        weight = np.float32(contributor["weight"])
        for start in range(0, len(accumulator), SLICE):
            acc = accumulator[start : start + SLICE]
            buffer = raw[: acc.nbytes]
            filled = 0
            while filled < len(buffer):
                count = body.readinto(buffer[filled:])
                if not count:
                    raise RuntimeError("a body ended early")
                filled += count
            product = scratch[: len(acc)]
            np.multiply(np.frombuffer(buffer, np.float32), weight, out=product)
            np.add(acc, product, out=acc)
        body.close()

    def work() -> Requests:
        for shard in job["shards"]:
            accumulator = np.zeros((shard["end"] - shard["start"]) // 4, np.float32)
            for contributor in job["clients"]:
                add(contributor, shard, accumulator)
            client.put_object(Bucket=job["bucket"], Key=shard["sum"], Body=accumulator.tobytes())
        return Requests(len(job["shards"]) * len(job["clients"]), len(job["shards"]))

    return work


if __name__ == "__main__":
    measure(setup)
