"""What the rejections of many updates take."""

import tracemalloc
from typing import Any

import pytest

from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.planning.plan_parts import Rejection
from gradshard_core.rounds import rejections
from gradshard_core.units import MIB
from tests.unit.fakes import MemoryStore


class Forgetful(MemoryStore):
    """A bucket that counts what it is given, and takes no memory."""

    written = 0

    def put_bytes(self, *_: Any, **__: Any) -> bool:
        self.written += 1
        return True


@pytest.mark.slow
def test_many_rejections_take_little_memory() -> None:
    store, found = Forgetful(), [Rejection("c", "bad", "etag")] * 20_000
    tracemalloc.start()
    rejections.reject_all(store, found, lambda _: RoundKeys("r"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert store.written == 20_000
    assert peak < 4 * MIB
