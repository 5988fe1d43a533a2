"""The tasks' S3 client over real HTTP, with faults on the way."""

import contextlib
import http.client
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from gradshard.local_engine.lifecycle import Engine
from gradshard_core.errors import ChangedObjectError, StoreError
from gradshard_core.s3 import timeouts
from gradshard_core.s3.range_streams import RangeStream
from gradshard_core.s3.store import S3Store
from gradshard_core.s3.task_client import TaskS3Client
from tests.integration.proxy import Answer, Fault, Proxy, Spoil, spoiling

MIB = 1024 * 1024

S3_PATIENCE_SECONDS = 20
"""When S3 drops a body that sends nothing, as users report; the error is RequestTimeout."""


@pytest.fixture
def proxy(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with spoiling(engine.port) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        yield running


@pytest.fixture
def client(proxy: Proxy, store: S3Store) -> Iterator[TaskS3Client]:
    with contextlib.closing(TaskS3Client(store.bucket)) as client:
        yield client


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)


def idle(client: TaskS3Client) -> list[http.client.HTTPConnection]:
    """Return the connections that are kept."""
    return client._http.requests.idle


def failing(status: int, code: str) -> "Answer":
    body = f"<Error><Code>{code}</Code></Error>".encode()
    return Answer(status, {"Content-Length": str(len(body))}, body)


def read(client: TaskS3Client, store: S3Store, key: str, start: int, end: int) -> bytes:
    source = store.head(key)
    assert source is not None
    buffer = bytearray(end - start)
    with contextlib.closing(RangeStream(client, source, [(start, end)])) as stream:
        stream.read_into(memoryview(buffer))
    return bytes(buffer)


def test_the_task_client_reads_objects_of_the_store(client: TaskS3Client, store: S3Store) -> None:
    store.put_json("w/ä b.json", {"a": [1]})
    assert client.get_json("w/ä b.json") == {"a": [1]}
    assert client.get_json("w/none") is None
    data = os.urandom(3 * MIB)
    store.put_bytes("w/data", data)
    assert read(client, store, "w/data", 17, 2 * MIB) == data[17 : 2 * MIB]
    traffic = client.meter.take()
    assert (traffic.gets, traffic.retries) == (3, 0)
    assert traffic.bytes_read == 9 + 2 * MIB - 17


def test_the_store_reads_objects_of_the_task_client(client: TaskS3Client, store: S3Store) -> None:
    client.put_json("w/report", {"b": 2})
    assert store.get_json("w/report") == {"b": 2}
    upload = store.create_upload("w/parts")
    for number, pieces in ((2, [b"end"]), (1, [b"y" * 5 * MIB]), (1, [b"x" * MIB] * 5)):
        with client.part("w/parts", upload, number, sum(map(len, pieces))) as part:
            for piece in pieces:
                part.write(memoryview(piece))
    parts = store.list_parts("w/parts", upload)
    assert parts is not None
    store.complete_upload("w/parts", upload, parts)
    assert store.get_bytes("w/parts") == b"x" * 5 * MIB + b"end"
    assert client.meter.take().puts == 4


def test_the_request_for_a_part_is_sent_with_its_first_byte(
    client: TaskS3Client, store: S3Store, proxy: Proxy
) -> None:
    upload = store.create_upload("w/late")
    with client.part("w/late", upload, 1, 5, b"he") as part:
        time.sleep(0.2)
        # S3 would give up on a request that is open for long and sends nothing.
        assert proxy.requests == []
        part.write(b"llo")
    parts = store.list_parts("w/late", upload)
    assert parts is not None
    store.complete_upload("w/late", upload, parts)
    assert store.get_bytes("w/late") == b"hello"


def test_a_part_that_is_only_a_header(client: TaskS3Client, store: S3Store) -> None:
    """As of an update all of whose tensors are empty."""
    upload = store.create_upload("w/header")
    with client.part("w/header", upload, 1, 2, b"he"):
        pass
    parts = store.list_parts("w/header", upload)
    assert parts is not None
    assert [part.nbytes for part in parts] == [2]


def test_a_slow_read_times_out_before_s3_drops_the_part_that_waits_for_it(
    client: TaskS3Client, store: S3Store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert timeouts.READ_SECONDS < S3_PATIENCE_SECONDS
    patience = timeouts.READ_SECONDS
    monkeypatch.setattr(timeouts, "READ_SECONDS", 0.3)
    data = os.urandom(MIB)
    store.put_bytes("w/rests", data)
    proxy.faults = [Fault("stall", "GET", "w/rests")]
    begun = time.monotonic()
    assert read(client, store, "w/rests", 0, MIB) == data
    assert time.monotonic() - begun < patience
    assert client.meter.take().retries == 1


def test_an_interrupted_part_is_not_stored(client: TaskS3Client, store: S3Store) -> None:
    upload = store.create_upload("w/given-up")

    def give_up() -> None:
        with client.part("w/given-up", upload, 1, 5 * MIB) as part:
            part.write(b"x" * MIB)
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        give_up()
    parts = store.list_parts("w/given-up", upload)
    assert parts is not None
    assert all(part.nbytes < 5 * MIB for part in parts)
    store.abort_upload("w/given-up", upload)


def test_a_part_that_s3_rejects_fails_the_task(
    client: TaskS3Client, store: S3Store, proxy: Proxy
) -> None:
    for spoil, reason in (
        (lambda _: failing(503, "SlowDown"), "S3 answered PUT with 503 SlowDown"),
        (lambda _: None, "w/rejected part 1: the connection broke after 3 bytes"),
    ):
        proxy.spoils = [spoil]
        with (
            pytest.raises(StoreError, match=reason),
            client.part("w/rejected", "upload", 1, 3) as part,
        ):
            part.write(b"abc")


def test_a_rejection_before_the_whole_body_is_sent_is_reported(
    client: TaskS3Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As S3 does: it answers what it has heard enough of, and closes the connection."""

    def reject(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(64 * 1024)
            body = b"<Error><Code>AccessDenied</Code></Error>"
            head = f"HTTP/1.1 403 Forbidden\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)

    def send(to: TaskS3Client) -> None:
        with to.part("w/rejected", "upload", 1, 1024 * MIB) as part:
            for _ in range(1024):
                part.write(bytes(MIB))

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=reject, args=(server,), daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        rejected = "part 1: S3 answered PUT with 403 AccessDenied"
        with pytest.raises(StoreError, match=rejected) as caught:
            send(TaskS3Client(client.bucket))
    # Not one that is worth another try.
    assert caught.type is StoreError


def test_connections_are_reused(client: TaskS3Client, store: S3Store) -> None:
    store.put_json("w/again", 1)
    for _ in range(5):
        client.get_json("w/again")
    assert len(idle(client)) == 1


def test_connections_of_parts_are_closed(client: TaskS3Client, store: S3Store) -> None:
    store.put_json("w/sent", 1)
    for _ in range(5):
        client.get_json("w/sent")
        with client.object("w/sent", 1) as writer:
            writer.write(b"2")
        assert len(idle(client)) == 1


def test_transient_failures_are_retried(
    client: TaskS3Client, store: S3Store, proxy: Proxy, no_pauses: None
) -> None:
    store.put_json("w/flaky", 1)
    proxy.spoils = [
        lambda _: failing(500, "InternalError"),
        lambda _: failing(503, "SlowDown"),
        lambda _: None,
        lambda answer: answer._replace(body=b""),
    ]
    assert client.get_json("w/flaky") == 1
    # A kept connection that is closed unanswered is no failure of S3's.
    assert client.meter.take().retries == 3
    proxy.spoils = [lambda _: failing(503, "SlowDown"), lambda _: None]
    client.put_json("w/flaky", 2)
    assert store.get_json("w/flaky") == 2


def test_a_request_that_keeps_failing_raises(
    client: TaskS3Client, proxy: Proxy, no_pauses: None
) -> None:
    proxy.spoils = [lambda _: failing(503, "SlowDown")] * 9
    with pytest.raises(StoreError, match=r"w/slow: PUT failed 6 times in a row.*503 SlowDown"):
        client.put_json("w/slow", 1)


def test_the_error_lists_why_each_attempt_failed(
    client: TaskS3Client, store: S3Store, proxy: Proxy, no_pauses: None
) -> None:
    slow, broken = (lambda _: failing(503, "SlowDown")), (lambda _: failing(500, "InternalError"))
    proxy.spoils = [lambda _: None, slow, slow, broken, broken, slow]
    each = "RemoteDisconnected: .*; 3 × S3 answered 503 SlowDown; 2 × S3 answered 500 InternalError"
    with pytest.raises(StoreError, match=f"w/odd: GET failed 6 times in a row: {each}$"):
        client.get_bytes("w/odd")
    store.put_bytes("w/cut", b"whole")
    cut = lambda answer: answer._replace(body=b"")  # noqa: E731
    proxy.spoils = [cut] * 6
    with pytest.raises(
        StoreError, match=r"w/cut: GET failed 6 times in a row: 6 × the body ended 5 bytes"
    ):
        client.get_bytes("w/cut")


def test_a_rejection_is_not_retried(client: TaskS3Client, proxy: Proxy) -> None:
    proxy.spoils = [lambda _: failing(403, "AccessDenied")] * 2
    with pytest.raises(StoreError, match="w/mine: S3 answered GET with 403 AccessDenied"):
        client.get_bytes("w/mine")
    with pytest.raises(StoreError, match="w/mine: S3 answered PUT with 403 AccessDenied"):
        client.put_json("w/mine", 1)
    assert proxy.requests == ["GET", "PUT"]


def test_stale_connections_are_all_replaced_by_one_new_one(
    client: TaskS3Client, store: S3Store, proxy: Proxy
) -> None:
    """S3 closes what a warm function left idle; 64 of them must not look like 64 failures."""
    store.put_bytes("w/stale", b"x" * 64)
    source = store.head("w/stale")
    assert source is not None
    streams = [RangeStream(client, source, [(0, 64)]) for _ in range(12)]
    for stream in streams:
        stream.open()
    for stream in streams:
        stream.read_into(memoryview(bytearray(64)))
    assert len(idle(client)) == 12
    for connection in idle(client):
        assert connection.sock is not None
        connection.sock.shutdown(2)
    assert client.get_bytes("w/stale") == b"x" * 64
    assert client.meter.take().retries == 0
    assert len(idle(client)) == 1


def test_a_stream_resumes_at_the_byte_it_reached(
    client: TaskS3Client, store: S3Store, proxy: Proxy, no_pauses: None
) -> None:
    data = os.urandom(MIB)
    store.put_bytes("w/broken", data)
    proxy.spoils = [
        lambda answer: answer._replace(body=answer.body[:300_001]),
        lambda _: None,
        lambda _: failing(500, "InternalError"),
        lambda answer: answer._replace(headers=answer.headers | {"Content-Range": "bytes 0-9/10"}),
        lambda answer: answer._replace(body=b""),
    ]
    assert read(client, store, "w/broken", 0, MIB) == data
    assert proxy.spoils == []


def closing(answer: Answer) -> Answer:
    return answer._replace(headers=answer.headers | {"Connection": "close"})


def in_chunks(answer: Answer) -> Answer:
    headers = {k: v for k, v in answer.headers.items() if k.lower() != "content-length"}
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(answer.body), answer.body)
    return answer._replace(headers=headers | {"Transfer-Encoding": "chunked"}, body=body)


@pytest.mark.parametrize("spoil", [closing, in_chunks])
@pytest.mark.parametrize("nbytes", [5, MIB])
def test_a_range_is_read_whichever_header_gives_its_length(
    client: TaskS3Client, store: S3Store, proxy: Proxy, spoil: Spoil, nbytes: int
) -> None:
    data = os.urandom(nbytes)
    store.put_bytes("w/told", data)
    proxy.spoils = [spoil]
    assert read(client, store, "w/told", 0, nbytes) == data
    assert client.meter.take().retries == 0


def test_a_connection_is_reused_only_if_its_range_was_read_to_the_end(
    client: TaskS3Client, store: S3Store
) -> None:
    data = os.urandom(MIB)
    store.put_bytes("w/range", data)
    assert read(client, store, "w/range", 0, MIB) == data
    [connection] = idle(client)
    assert read(client, store, "w/range", 9, MIB) == data[9:]
    assert idle(client) == [connection]
    source = store.head("w/range")
    assert source is not None
    stream = RangeStream(client, source, [(0, MIB)])
    stream.read_into(memoryview(bytearray(MIB - 1)))
    stream.close()
    assert idle(client) == []


def test_another_version_is_never_read(client: TaskS3Client, store: S3Store) -> None:
    store.put_bytes("w/changed", b"first")
    source = store.head("w/changed")
    assert source is not None
    store.put_bytes("w/changed", b"later")
    buffer = bytearray(5)
    with contextlib.closing(RangeStream(client, source, [(0, 5)])) as stream:
        stream.read_into(memoryview(buffer))
    assert buffer == b"first"
    with pytest.raises(ChangedObjectError, match="w/changed: the planned version is gone"):
        RangeStream(client, source._replace(etag='"other"'), [(0, 5)]).open()


def test_receive_buffers_are_bounded(client: TaskS3Client, store: S3Store) -> None:
    client.receive_buffer_bytes = 64 * 1024
    store.put_json("w/bounded", 1)
    client.get_json("w/bounded")
    [connection] = idle(client)
    assert connection.sock is not None
    # The kernel doubles what is asked for, socket(7).
    assert connection.sock.getsockopt(1, 8) == 128 * 1024
