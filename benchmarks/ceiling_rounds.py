"""The rounds of the memory ceiling: updates whose tensors repeat a piece."""

import contextlib
import hashlib
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np

from benchmarks.engine import Engine
from benchmarks.servers import BUCKET
from gradshard.aws.client_store import ClientStore
from gradshard.updates.compression import Compression, DecodedContent, EncodedContent
from gradshard.updates.upload_source import TensorContent
from gradshard_core.aggregation.sharding import cut_shards
from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.errors import PlanError
from gradshard_core.formats.compressed_updates import encode_layout
from gradshard_core.formats.masked_updates import (
    SEALED_BYTES,
    SIGNATURE_BYTES,
    Share,
    masked_layout,
)
from gradshard_core.formats.object_keys import ObjectVersion, RoundKeys
from gradshard_core.formats.tensor_layout import Layout, encode_header
from gradshard_core.limits import aws_limits
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_json import parse_plan
from gradshard_core.rounds.plan_context import PlanRequest
from gradshard_core.rounds.plan_round import plan_round
from gradshard_core.s3.store import ListedObject
from gradshard_core.specs.masking_options import parse_masking
from gradshard_core.units import MIB

RING_BITS: Final = 32
MEMORY_MB: Final = 128
_PIECE: Final = 8 * MIB
_FIRST: Final = "c00"
_MOST_MIB: Final = 8 * 1024
"""Of more updates than this, all are the same object: the engine holds them in memory."""

Json = dict[str, Any]


class Case(NamedTuple):
    """A round of so many clients, with updates of so many MiB once they are decoded."""

    clients: int
    mib: int
    codec: str = ""
    rule: str = ""
    masked: bool = False

    @property
    def what(self) -> str:
        """The inputs that a task combines, in words."""
        codec = self.codec and f" in {self.codec}"
        rule = self.rule and f", rule {self.rule}"
        masked = " masked" if self.masked else ""
        return f"{self.mib} MiB{codec}{masked} from {self.clients} clients{rule}"

    @property
    def is_one_object(self) -> bool:
        """Whether all updates are one object, and the planner cuts them into shards."""
        return self.clients * self.mib > _MOST_MIB


class _OneObject(ClientStore):
    """A bucket in which the update of the first client is found under the names of 64."""

    def list_objects(self, prefix: str, *, after: str = "") -> Iterator[ListedObject]:
        """List the objects under a prefix; of an update all names."""
        for entry in super().list_objects(prefix, after=after):
            names = range(64) if _FIRST in entry.key else range(1)
            yield from (entry._replace(key=entry.key.replace(_FIRST, f"c{n:02d}")) for n in names)

    def get_head(self, key: str, nbytes: int) -> tuple[bytes, ObjectVersion] | None:
        """Read the first bytes of an object, or of the first client's update."""
        return super().get_head(re.sub(r"(/updates/)c\d\d", rf"\g<1>{_FIRST}", key), nbytes)


class Planned(NamedTuple):
    """A task, its function's memory, the MD5s of its parts, and the products that it measures."""

    task: Json
    memory_mb: int
    parts: dict[str, str]
    products: Any


def planned_round(server: Engine, case: Case) -> Planned:
    """Upload the updates of a case, and plan one shard of them."""
    return _masked_round(server, case) if case.masked else _plain_round(server, case)


def _plain_round(server: Engine, case: Case) -> Planned:
    """Upload updates, and plan one shard of them, or so many that the round is fast enough."""
    clients, nbytes = case.clients, case.mib * MIB
    kind = _OneObject if case.is_one_object else ClientStore
    store, keys = kind(BUCKET, server.s3), RoundKeys(f"ceiling-{clients}")
    terms: Json = {"clients": clients, "shards": None if case.is_one_object else 1}
    if case.codec:
        terms["codecs"] = [case.codec]
    if case.rule:
        terms["rule"] = case.rule
    record = {"round": keys.round_id, "spec": terms, "opened_at": "2026-01-01T00:00:00+00:00"}
    store.put_json(keys.spec, record)
    layout = Layout.pack([("w", "F32", (nbytes // 4,))])
    rng = np.random.default_rng(clients)
    pieces = []
    samples = [600 + 37 * client for client in range(1 if case.is_one_object else clients)]
    for client, count in enumerate(samples):
        piece = rng.standard_normal(_PIECE // 4, np.float32)
        data, piece, header = _stored(piece, case, layout, {"num_samples": str(count)})
        _upload(server, keys.update(f"c{client:02d}"), header, data, nbytes // _PIECE)
        pieces.append(piece)
    pieces *= clients // len(pieces)
    plan, memory_mb = _plan(store, keys)
    [task, *_], *_ = (batch["tasks"] for batch in store.get_json(keys.tasks(0)))
    if plan.computation.measures:
        rows = np.stack(pieces).astype(np.float64)
        times, rest = divmod(plan.tasks(0)[0].end, _PIECE)
        part = rows[:, : rest // 4]
        return Planned(task, memory_mb, {}, (rows @ rows.T) * times + part @ part.T)
    if case.rule:
        whole = np.median(np.stack(pieces), axis=0)
    else:
        whole = pieces[0] * np.float32(samples[0] / sum(samples))
        for piece, count in zip(pieces[1:], samples[1:], strict=True):
            whole = whole + piece * np.float32(count / sum(samples))
    expected = _expected(plan, whole.tobytes(), encode_header(layout, {}))
    return Planned(task, memory_mb, expected, None)


def _masked_round(server: Engine, case: Case) -> Planned:
    """Upload masked updates and a keeper's answer, and plan one shard of them.

    All are random words, but for the sum of the updates less the answer, which is known.
    """
    clients, nbytes = case.clients, case.mib * MIB
    store, keys = ClientStore(BUCKET, server.s3), RoundKeys(f"ceiling-masked-{clients}")
    layout = Layout.pack([("w", "F32", (nbytes // 4,))])
    terms: Json = {"bound": 8.0, "max_samples": 1000, "keeper": "0" * 64}
    names = [f"c{client:02d}" for client in range(clients)]
    spec = {"clients": names, "shards": 1, "masked": terms, "layout": layout.to_json()}
    record = {"round": keys.round_id, "spec": spec, "opened_at": "2026-01-01T00:00:00+00:00"}
    store.put_json(keys.spec, record)
    rng, counts = np.random.default_rng(clients), range(0, 37 * clients, 37)
    sums = rng.integers(-(2**30), 2**30, _PIECE // 4, np.int32)
    masks = np.negative(sums.view(np.uint32))
    for name, count in zip(names, counts, strict=True):
        piece = rng.integers(0, 2**32, _PIECE // 4, np.uint32)
        np.add(masks, piece, out=masks)
        share = Share(count, "0" * 2 * SEALED_BYTES, "0" * 2 * SIGNATURE_BYTES)
        header = masked_layout(layout, RING_BITS).header(share.metadata())
        _upload(server, keys.update(name), header, piece.tobytes(), nbytes // _PIECE)
    total = 100 * clients
    last = ((sum(counts) - total) % 2**RING_BITS).to_bytes(RING_BITS // 8, "little")
    _upload(server, keys.masks, b"", masks.tobytes(), nbytes // _PIECE, end=last)
    plan, memory_mb = _plan(store, keys)
    [batch] = store.get_json(keys.tasks(0))
    [task] = batch["tasks"]
    step = parse_masking(terms).fixed(clients, nbytes // 4).step
    whole = (sums.astype(np.float64) * step / total).astype(np.float32)
    expected = _expected(plan, whole.tobytes(), encode_header(layout, {}))
    return Planned(task, memory_mb, expected, None)


def _plan(store: ClientStore, keys: RoundKeys) -> tuple[Plan, int]:
    """Plan a round for the smallest function in which it fits; a masked one asks its keeper."""
    for memory_mb in range(MEMORY_MB, aws_limits.MAX_MEMORY_MB, 64):
        with contextlib.suppress(PlanError):
            config = LambdaConfig(memory_mb, "x86_64")
            for second in (1, 2):
                request = PlanRequest(f"2026-01-01T00:00:{second:02}", "complete", 0)
                plan_round(store, keys.round_id, request, aggregator=config, keeper=store)
                plan = parse_plan(store.get_json(keys.plan))
                if plan.masking is None or plan.masking.answer is not None:
                    return plan, memory_mb
    raise RuntimeError(f"ceiling: no function is large enough for {keys.round_id}")


def _stored(
    piece: Any, case: Case, layout: Layout, metadata: dict[str, str]
) -> tuple[bytes, Any, bytes]:
    """Return a piece as it is stored, what it is once decoded, and the header of its update."""
    if not case.codec:
        return piece.tobytes(), piece, layout.header(metadata)
    content = EncodedContent(TensorContent({"w": piece}, samples=1), Compression(case.codec))
    decoded = DecodedContent(content)
    units: tuple[int, ...] = ()
    if content.layout.units:
        units = content.layout.units[0] * (layout.nbytes // piece.nbytes)
    return (
        content.read(content.nbytes - content.layout.stored.nbytes, content.nbytes),
        np.frombuffer(decoded.read(decoded.nbytes - piece.nbytes, decoded.nbytes), np.float32),
        encode_layout(layout, case.codec, {"w": units}).header(metadata),
    )


def _upload(
    server: Engine, key: str, header: bytes, data: bytes, times: int, end: bytes = b""
) -> None:
    """Upload an object that repeats ``data`` so many times after a header, and then has an end."""
    together = -(-aws_limits.MIN_PART_BYTES // len(data))
    bodies = [data * min(together, times - done) for done in range(0, times, together)]
    bodies[0] = header + bodies[0]
    bodies[-1] += end
    upload = server.s3.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
    etags = [
        server.s3.upload_part(
            Bucket=BUCKET,
            Key=key,
            UploadId=upload,
            PartNumber=number,
            Body=body,
        )["ETag"]
        for number, body in enumerate(bodies, 1)
    ]
    server.s3.complete_multipart_upload(
        Bucket=BUCKET,
        Key=key,
        UploadId=upload,
        MultipartUpload={
            "Parts": [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(etags, 1)]
        },
    )


def _expected(plan: Plan, piece: bytes, header: bytes) -> dict[str, str]:
    """Return the part's MD5 by its number: the header, then the mean, which repeats too."""
    shard, *_ = cut_shards(plan.layout.spans, plan.layout.nbytes, plan.computation.shards)
    digest = hashlib.md5(header, usedforsecurity=False)
    for start in range(shard.start, shard.end, len(piece)):
        digest.update(piece[: shard.end - start])
    return {"1": digest.hexdigest()}
