"""The mask keeper over an S3 that breaks: the same answer, and no sealed seed left behind."""

import itertools
import os
import random
import runpy
import time
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import numpy as np
import pytest

from gradshard.aws import client_timeouts
from gradshard.local_engine.lifecycle import Engine
from gradshard_core.errors import StoreError
from gradshard_core.formats.masked_updates import roster_digest
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.mask_keeper.records import PRIVATE_KEY, KeeperKeys, client_key
from gradshard_core.mask_keeper.request import Request, SealedSeed
from gradshard_core.masking import sealing, signing
from gradshard_core.s3 import timeouts
from gradshard_core.s3.store import S3Store
from tests import masked
from tests.integration.conftest import bucket
from tests.integration.proxy import Fault, Proxy, spoiling
from tests.unit.in_memory import ROOT
from tests.unit.observability.test_embedded_metrics import Context

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

KINDS = ["500", "503", "reset", "half sent", "unseen", "late", "cut", "half", "empty"]
# Every kind of fault at every request of an answer. Else some of them.
EVERY = bool(os.environ.get("GRADSHARD_TEST_EVERY_FAULT"))
MOMENTS = 2

FUNCTIONS = ("check_request", "sum_masks", "give_answer")
UPDATE = {"w": np.ones(5, "f4")}
TRIES = 4
"""How often the state machine starts a function that fails."""

Call = Callable[[str, dict[str, Any]], dict[str, Any]]
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def proxy(engine: Engine) -> Iterator[Proxy]:
    with spoiling(engine.port) as running:
        yield running


@pytest.fixture(scope="module")
def own(engine: Engine) -> S3Store:
    """The keeper's bucket: without versions."""
    boto3.client("s3").create_bucket(Bucket="integration-keeper")
    return bucket("integration-keeper")


@pytest.fixture(scope="module")
def call(own: S3Store, store: S3Store, proxy: Proxy) -> Iterator[Call]:
    """Call the keeper's functions, whose requests go through the proxy."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, name in (
            ("GRADSHARD_BUCKET", own.bucket),
            ("GRADSHARD_AGGREGATOR_BUCKET", store.bucket),
        ):
            patch.setenv(variable, name)
            patch.setenv(f"{variable}_HOST", "")
        patch.setenv("GRADSHARD_LEAST_CLIENTS", "2")
        patch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        patch.setattr(timeouts, "ANSWER_SECONDS", 0.3)
        patch.setattr(client_timeouts, "READ_TIMEOUT_SECONDS", 0.3)
        patch.setattr(timeouts, "READ_SECONDS", 0.3)
        patch.setattr(time, "sleep", lambda _: None)
        modules = {
            name: runpy.run_path(str(ROOT / "keeper" / "functions" / name / "app.py"))
            for name in FUNCTIONS
        }

        def call(function: str, event: dict[str, Any]) -> dict[str, Any]:
            for _ in range(TRIES - 1):
                try:
                    return dict(modules[function]["handler"](event, Context()))
                except StoreError:
                    continue
            return dict(modules[function]["handler"](event, Context()))

        yield call
        for module in modules.values():
            for name in ("store", "answers", "s3"):
                if name in module:
                    module[name].close()


class Asked:
    """A round that has asked the keeper: two clients, each with a seed of its own."""

    def __init__(self, own: S3Store, store: S3Store) -> None:
        self.own, self.store = own, store
        self.name = f"faults-{next(NUMBERS)}"
        self.keys, self.keeper_keys = RoundKeys(self.name), KeeperKeys(self.name)
        private = sealing.new_key()
        own.put_bytes(PRIVATE_KEY, private.hex().encode())
        terms = {"bound": 1.0, "bits": 16, "ring_bits": 32, "max_samples": 9}
        encoding, clients = masked.encoding(terms, UPDATE), ("a", "b")
        self.seeds = [os.urandom(32) for _ in clients]
        contributors = []
        for client, seed in zip(clients, self.seeds, strict=True):
            signing_key = signing.new_signing_key()
            key = signing.verification_key(signing_key).hex()
            own.put_json(client_key(client), {"client": client, "key": key})
            context = sealing.SealContext(self.name, client, roster_digest(clients), 2, encoding)
            sealed = sealing.seal(seed, sealing.public_key(private), context, os.urandom(32))
            signature = signing.sign(signing_key, sealed, context)
            contributors.append(SealedSeed(client, sealed.hex(), signature.hex()))
        self.request = Request(self.name, clients, 2, encoding, tuple(contributors))
        own.put_json(self.request.key, self.request.to_json())

    def answer(self, call: Call) -> None:
        """Do what the state machine does."""
        decided = call("check_request", {"key": self.request.key})
        for task in decided["tasks"]:
            call("sum_masks", task)
        call("give_answer", {"round": decided["round"]})

    def check(self) -> None:
        """Check the answer, from the protocol's description, and what the keeper has left."""
        streams = [masked.elements(masked.stream(seed, 24), 32) for seed in self.seeds]
        total = [sum(column) % 2**32 for column in zip(*streams, strict=True)]
        found = self.store.get_bytes(self.keys.masks)
        assert found is not None
        assert masked.elements(found, 32) == total
        # One that was begun, and whose id was lost, has no part. S3 deletes it after some days.
        for upload in self.store.open_uploads(self.keys.masks):
            assert self.store.list_parts(self.keys.masks, upload) == []
        assert self.own.get_json(self.keeper_keys.record)["request"] == self.request.digest
        assert self.own.head(self.keeper_keys.given) is not None
        assert self.own.head(self.keeper_keys.request) is None
        assert self.own.head(self.keeper_keys.work) is None
        assert self.store.get_bytes(self.keys.refusal) is None


@pytest.fixture(scope="module")
def count(call: Call, own: S3Store, store: S3Store, proxy: Proxy) -> int:
    """The number of requests of an answer in which nothing breaks."""
    asked = Asked(own, store)
    proxy.requests.clear()
    asked.answer(call)
    asked.check()
    return len(proxy.requests)


@pytest.mark.parametrize("kind", KINDS)
def test_one_fault_at_any_request_changes_nothing(
    call: Call, own: S3Store, store: S3Store, proxy: Proxy, count: int, kind: str
) -> None:
    moments: Any = range(count)
    if not EVERY:
        moments = random.Random(kind).sample(moments, MOMENTS)  # noqa: S311
    for moment in moments:
        asked = Asked(own, store)
        proxy.strike(moment, kind)
        asked.answer(call)
        asked.check()


def test_a_fault_that_stays_gives_no_answer_until_it_has_passed(
    call: Call, own: S3Store, store: S3Store, proxy: Proxy
) -> None:
    asked = Asked(own, store)
    for fault in (
        Fault("503", "PUT", "/answers/"),
        Fault("503", "PUT", "/seeds/"),
        Fault("500", "POST", "masks?uploads"),
        Fault("503", "PUT", "partNumber=1"),
        Fault("500", "POST", "masks?uploadId"),
        Fault("503", "PUT", "/given/"),
    ):
        proxy.faults = [fault] * 1000
        try:
            with pytest.raises(StoreError):
                asked.answer(call)
        finally:
            proxy.faults = []
    asked.answer(call)  # the request is sent again, or an operator starts the machine again
    asked.check()
