"""Round r1 of clients a, b and c, which `events/` is about.

`python -m tests.e2e.example_round` uploads its updates to the engine that AWS_ENDPOINT_URL names;
then every function can be called with its event, in the order of `ORDER`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests import reference
from tests.e2e.deployed import Deployed

NAME = "r1"
SAMPLES = {"a": 100, "b": 200, "c": 300}
ORDER = (
    "open_round",
    "collect_update",
    "plan_round",
    "aggregate_shard",
    "finalize_round",
    "abort_round",
)
EVENTS = Path(__file__).parents[2] / "events"


def event(function: str) -> dict[str, Any]:
    """Read a function's event."""
    read: dict[str, Any] = json.loads((EVENTS / f"{function}.json").read_text())
    return read


def update(client: str) -> dict[str, reference.Array]:
    """Make an update of 224 MiB, more than the memory of an aggregator."""
    # Whole numbers, so that every machine makes the same bytes.
    numbers = np.arange(56 * 2**20, dtype="i4") % (1000 + ord(client))
    return {
        "fc.weight": numbers.astype("f4").reshape(-1, 1024),
        "fc.bias": np.full(1024, ord(client), "f4"),
    }


def remove(deployed: Deployed) -> None:
    """Leave nothing of the round, however far it got."""
    prefix = f"rounds/{NAME}/"
    for upload in deployed.s3.list_multipart_uploads(Bucket=deployed.bucket).get("Uploads", []):
        if upload["Key"].startswith(prefix):
            deployed.s3.abort_multipart_upload(
                Bucket=deployed.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
            )
    for page in deployed.s3.get_paginator("list_object_versions").paginate(
        Bucket=deployed.bucket, Prefix=prefix
    ):
        for entry in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]:
            deployed.s3.delete_object(
                Bucket=deployed.bucket, Key=entry["Key"], VersionId=entry["VersionId"]
            )


def upload(deployed: Deployed) -> dict[str, str]:
    """Upload all updates; return their ETags."""
    return {
        client: deployed.put(
            NAME, client, reference.encode(update(client), {"num_samples": str(samples)})
        )
        for client, samples in SAMPLES.items()
    }


def main() -> None:
    deployed = Deployed.of_stack("gradshard")
    remove(deployed)
    upload(deployed)


if __name__ == "__main__":
    main()
