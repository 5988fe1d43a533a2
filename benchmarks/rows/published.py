"""The reading pattern of GradsSharding's published code, written from its description.

Per client, one after another: the whole pre-cut ``.npy`` object is read, loaded and added; the sum
is divided by the number of clients and put.
"""

import io
from typing import Any

import numpy as np

from benchmarks.rows.boto3_client import client
from benchmarks.rows.measure import Requests, Work, measure


def setup(job: dict[str, Any]) -> Work:
    """Aggregate one shard after another."""

    def work() -> Requests:
        for shard in job["shards"]:
            total: Any = None
            for key in shard["npy"]:
                body = client.get_object(Bucket=job["bucket"], Key=key)["Body"].read()
                gradient = np.load(io.BytesIO(body))
                total = gradient if total is None else total + gradient
            mean = total / len(shard["npy"])
            out = io.BytesIO()
            np.save(out, mean)
            client.put_object(Bucket=job["bucket"], Key=shard["mean"], Body=out.getvalue())
        return Requests(
            sum(len(shard["npy"]) for shard in job["shards"]),
            len(job["shards"]),
        )

    return work


if __name__ == "__main__":
    measure(setup)
