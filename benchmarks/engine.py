"""The local engine as object server: all of S3 that the functions use, over plain HTTP."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import boto3
from botocore.config import Config

from benchmarks.servers import BUCKET, REGION, aws_environment
from gradshard.local_engine import process_control
from gradshard.local_engine.access_gate import read_credentials
from gradshard_core.s3.sigv4 import Credentials

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_START_SECONDS: Final = 60.0


class Engine:
    """A running engine with one bucket.

    Attributes
    ----------
    port
        The port of the engine.
    s3
        A client of it.
    """

    transport = "HTTP, the local engine: slower than the rows"
    holds = 4 << 30  # it keeps objects in memory

    def __init__(self, folder: Path, port: int, credentials: Credentials) -> None:
        self._folder = folder
        self._uploads: dict[str, str] = {}
        self._known: set[str] = set()
        self.port = port
        self.environment = aws_environment(f"http://127.0.0.1:{port}", credentials)
        self.s3: S3Client = boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id=credentials.access_key,
            aws_secret_access_key=credentials.secret_key,
            region_name=REGION,
            config=Config(proxies={}),
        )
        self.s3.create_bucket(Bucket=BUCKET)

    def path(self, key: str) -> Path:
        """Return where an object's file is to be written."""
        path = self._folder / "objects" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def publish(self, key: str) -> None:
        """Put the file that was written."""
        self._known.add(key)
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=self.path(key).read_bytes())

    def etag(self, key: str) -> str:
        """Return an object's ETag."""
        return self.s3.head_object(Bucket=BUCKET, Key=key)["ETag"]

    def create_upload(self, key: str) -> str:
        """Start a multipart upload."""
        upload = self.s3.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
        self._uploads[key] = upload
        return upload

    def take_written(self) -> dict[str, str]:
        """Return the parts of every upload and the objects that were put, and delete the latter."""
        written = {}
        for key, upload in self._uploads.items():
            for page in self.s3.get_paginator("list_parts").paginate(
                Bucket=BUCKET, Key=key, UploadId=upload
            ):
                for part in page.get("Parts", []):
                    target = f"{key}?partNumber={part['PartNumber']}&uploadId={upload}"
                    written[target] = part["ETag"].strip('"')
        for listed in self.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
            for entry in listed.get("Contents", []):
                if entry["Key"] not in self._known:
                    written[entry["Key"]] = entry["ETag"].strip('"')
                    self.s3.delete_object(Bucket=BUCKET, Key=entry["Key"])
        return written


@contextlib.contextmanager
def serve(*, bind: str | None = None) -> Iterator[Engine]:
    """Run an engine on a free port of the loopback interface, and of ``bind`` too."""
    port = process_control.free_port()
    with tempfile.TemporaryDirectory(prefix="gradshard-bench-") as name:
        folder = Path(name)
        file = folder / "credentials.json"
        process_control.make_credentials(file)
        credentials = read_credentials(file)
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gradshard.local_engine.server", "--port", str(port)),
                *("--credentials", str(file)),
                *(("--bind", bind) if bind else ()),
            ],
            env=os.environ | {"TMPDIR": name},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(folder / "engine.log").open("wb"),
        )
        try:
            _await(process, port, credentials)
            yield Engine(folder, port, credentials)
        finally:
            process.terminate()
            process.wait()


def _await(process: "subprocess.Popen[bytes]", port: int, credentials: Credentials) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not process_control.answers(port, credentials):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the engine did not start")
        time.sleep(0.1)
