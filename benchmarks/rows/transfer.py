"""One client sends a file to S3, or fetches it into one; each client in the way its pages show."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.rows.measure import Requests, Work, measure
from benchmarks.servers import BUCKET, REGION

KEY: Final = "updates/client.safetensors"

Job = dict[str, Any]
Transfer = Callable[[], object]


def gradshard(job: Job) -> Transfer:
    """Do with the bytes what `submit` and `fetch` do."""
    from gradshard.aws.boto_client import make_client
    from gradshard.aws.client_store import ClientStore
    from gradshard.updates import downloads, uploads
    from gradshard.updates.upload_source import FileContent
    from gradshard_core.formats.object_keys import ObjectVersion

    store = ClientStore(BUCKET, make_client())
    path = Path(job["path"])
    if job["direction"] == "fetch":
        source = ObjectVersion(KEY, "", job["etag"], job["nbytes"])
        return lambda: downloads.download_file(store, source, path)
    content = FileContent(path, None)
    return lambda: uploads.upload(store, KEY, content, parallel=job["parallel"])


def s3transfer(job: Job) -> Transfer:
    """Use boto3's methods, over s3transfer."""
    import boto3

    client = boto3.client("s3")
    if job["direction"] == "fetch":
        return lambda: client.download_file(BUCKET, KEY, job["path"])
    return lambda: client.upload_file(job["path"], BUCKET, KEY)


def awscrt(job: Job) -> Transfer:
    """Use AWS's client in C, by s3transfer's manager for it."""
    import botocore.session
    from s3transfer import crt

    session = botocore.session.get_session()
    serializer = crt.BotocoreCRTRequestSerializer(
        session, {"region_name": REGION, "endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
    )
    credentials = crt.BotocoreCRTCredentialsWrapper(session.get_credentials())
    client = crt.create_s3_crt_client(
        REGION, credentials.to_crt_credentials_provider(), verify=os.environ["AWS_CA_BUNDLE"]
    )
    manager = crt.CRTTransferManager(client, serializer)
    if job["direction"] == "fetch":
        return lambda: manager.download(BUCKET, KEY, job["path"]).result()
    return lambda: manager.upload(job["path"], BUCKET, KEY).result()


def obstore(job: Job) -> Transfer:
    """Use the client in Rust, with its own defaults."""
    library = importlib.import_module("obstore")
    store = library.store.S3Store(
        BUCKET,
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        virtual_hosted_style_request=False,
        # It has the web's authorities, and not the benchmark's.
        client_options={"allow_invalid_certificates": True},
    )

    def fetch() -> None:
        with Path(job["path"]).open("wb") as file:
            file.writelines(library.get(store, KEY).stream())

    if job["direction"] == "fetch":
        return fetch
    return lambda: library.put(store, KEY, Path(job["path"]))


CLIENTS: Final = {
    "gradshard": gradshard,
    "s3transfer": s3transfer,
    "awscrt": awscrt,
    "obstore": obstore,
}


def setup(job: Job) -> Work:
    """Make the client, which does not count, and return its transfer."""
    transfer = CLIENTS[job["client"]](job)

    def work() -> Requests:
        transfer()
        return Requests()

    return work


if __name__ == "__main__":
    measure(setup)
