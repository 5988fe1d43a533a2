"""Parsing without the search for cycles."""

import gc
from collections.abc import Iterator

import pytest

from gradshard_core import garbage_collection
from gradshard_core.errors import UpdateError
from gradshard_core.formats.headers import parse_header
from tests.unit.formats.test_hostile_updates import tensors


@pytest.fixture
def searches() -> Iterator[list[int]]:
    """The generations of the searches that have begun."""
    begun: list[int] = []

    def note(phase: str, about: dict[str, int]) -> None:
        if phase == "start":
            begun.append(about["generation"])

    gc.callbacks.append(note)
    yield begun
    gc.callbacks.remove(note)


def test_a_header_is_parsed_without_a_search(searches: list[int]) -> None:
    header = tensors(10_000)
    searches.clear()
    parse_header(header, 8 + len(header) + 40_000)
    # Otherwise it takes dozens; the one that was due begins afterwards.
    assert len(searches) <= 1


def test_the_search_goes_on_after_a_rejection() -> None:
    with pytest.raises(UpdateError):
        parse_header(b"{", 9)
    assert gc.isenabled()


def test_a_search_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with garbage_collection.paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
