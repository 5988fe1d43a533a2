"""Tests of uploads and downloads: the bucket, if a test file makes none of its own."""

import pytest

from tests.unit.fakes import MemoryStore


@pytest.fixture(params=["", "kms"])
def store(request: pytest.FixtureRequest) -> MemoryStore:
    """A bucket whose ETags are MD5s, and one where they say nothing of the bytes."""
    return MemoryStore(kms=bool(request.param))
