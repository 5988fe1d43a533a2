"""Flower's current strategies' aggregation of the same updates, all of them in memory already."""

from typing import Any

import numpy as np
from flwr.common import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from benchmarks.rows.measure import Requests, Work, measure


def setup(job: dict[str, Any]) -> Work:
    """Bring every client's bytes of every shard into memory, as Flower's messages would."""
    replies = [
        [
            RecordDict(
                {
                    "arrays": ArrayRecord({"w": Array(_read(client, shard))}),
                    "metrics": MetricRecord({"num-examples": client["samples"]}),
                }
            )
            for client in job["clients"]
        ]
        for shard in job["shards"]
    ]

    def work() -> Requests:
        for records in replies:
            aggregate_arrayrecords(records, "num-examples")
        return Requests()

    return work


def _read(client: dict[str, Any], shard: dict[str, Any]) -> Any:
    return np.fromfile(
        client["path"],
        "<f4",
        (shard["end"] - shard["start"]) // 4,
        offset=client["data_offset"] + shard["start"],
    )


if __name__ == "__main__":
    measure(setup)
