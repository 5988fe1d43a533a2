"""The limit, first half: receive the same ranges over as many connections, and throw them away."""

import contextlib
import http.client
import os
import ssl
from typing import Any
from urllib.parse import urlsplit

from benchmarks.rows.measure import Requests, Work, measure

SLICE_BYTES = 256 * 1024


def setup(job: dict[str, Any]) -> Work:
    """One connection per client, kept for all shards; a slice of each in turn."""
    url = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    buffer = memoryview(bytearray(SLICE_BYTES))

    def work() -> Requests:
        gets = 0
        with contextlib.ExitStack() as stack:
            context = ssl.create_default_context()
            connections = [_connect(url.scheme, url.netloc, context) for _ in job["clients"]]
            for connection in connections:
                stack.callback(connection.close)
            for shard in job["shards"]:
                answers = []
                for client, connection in zip(job["clients"], connections, strict=True):
                    first = client["data_offset"] + shard["start"]
                    last = client["data_offset"] + shard["end"] - 1
                    target = f"/{job['bucket']}/{client['key']}"
                    connection.request("GET", target, headers={"Range": f"bytes={first}-{last}"})
                    answers.append(connection.getresponse())
                gets += len(answers)
                left = shard["end"] - shard["start"]
                while left:
                    size = min(left, SLICE_BYTES)
                    for answer in answers:
                        if answer.readinto(buffer[:size]) != size:
                            raise RuntimeError("a body ended early")
                    left -= size
                for answer in answers:
                    answer.read()
        return Requests(gets)

    return work


def _connect(scheme: str, host: str, context: ssl.SSLContext) -> http.client.HTTPConnection:
    if scheme == "https":
        return http.client.HTTPSConnection(host, context=context)
    return http.client.HTTPConnection(host)


if __name__ == "__main__":
    measure(setup)
