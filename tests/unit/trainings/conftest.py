"""A training's machine for each test."""

from collections.abc import Callable

import pytest

from tests.unit.trainings.machine import Machine


@pytest.fixture
def new_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Machine]:
    """Make a federation on a bucket of its own."""
    return lambda: Machine(monkeypatch)


@pytest.fixture
def machine(new_machine: Callable[[], Machine]) -> Machine:
    """One federation."""
    return new_machine()
