"""The limit, second half: the function's arithmetic on arrays that are in memory already."""

from typing import Any

import numpy as np

from benchmarks.rows.measure import Requests, Work, measure

SLICE = 64 * 1024  # elements


def setup(job: dict[str, Any]) -> Work:
    """Workload the distinct updates of all shards; clients share them as they share their files."""
    weights = [np.float32(client["weight"]) for client in job["clients"]]
    shards = []
    for shard in job["shards"]:
        count = (shard["end"] - shard["start"]) // 4
        distinct = {
            client["path"]: np.fromfile(
                client["path"], "<f4", count, offset=client["data_offset"] + shard["start"]
            )
            for client in job["clients"]
        }
        shards.append([distinct[client["path"]] for client in job["clients"]])
    scratch = np.empty(SLICE, np.float32)
    accumulator = np.empty(SLICE, np.float32)

    def work() -> Requests:
        for updates in shards:
            out = np.empty_like(updates[0])
            for start in range(0, len(out), SLICE):
                acc = accumulator[: min(SLICE, len(out) - start)]
                product = scratch[: len(acc)]
                np.multiply(updates[0][start : start + SLICE], weights[0], out=acc)
                for update, weight in zip(updates[1:], weights[1:], strict=True):
                    np.multiply(update[start : start + SLICE], weight, out=product)
                    np.add(acc, product, out=acc)
                if not np.isfinite(acc).all():
                    raise RuntimeError("not finite")
                out[start : start + SLICE] = acc
        return Requests()

    return work


if __name__ == "__main__":
    measure(setup)
