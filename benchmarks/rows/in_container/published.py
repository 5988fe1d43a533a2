"""The published reading pattern as a function: see ``benchmarks/rows/published.py``."""

import io
from typing import Any

import boto3
import numpy as np

client = boto3.client("s3")


def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Average one shard of all clients."""
    total: Any = None
    for key in event["keys"]:
        body = client.get_object(Bucket=event["bucket"], Key=key)["Body"].read()
        gradient = np.load(io.BytesIO(body))
        total = gradient if total is None else total + gradient
    out = io.BytesIO()
    np.save(out, total / len(event["keys"]))
    client.put_object(Bucket=event["bucket"], Key=event["mean"], Body=out.getvalue())
    return {"clients": len(event["keys"])}
