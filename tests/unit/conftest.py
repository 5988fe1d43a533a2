"""Unit tests have no network."""

import re
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from pytest_socket import disable_socket

from gradshard_core.rounds import aws_json, aws_requests
from tests.unit.fakes import MemoryStore
from tests.unit.in_memory import Machine, Told, load
from tests.unit.observability.test_embedded_metrics import ENVIRONMENT

if TYPE_CHECKING:
    from tests.unit.keeper_in_memory import Keeper

# `make test-client` tests the wheel without extras, and so without those of masked rounds.
NEEDS_MASKING = re.compile(
    r"^from (gradshard_core\.(masking|mask_keeper)|gradshard\.updates\.(mask|mask_seeds)"
    r"|tests\.unit\.keeper_in_memory)\b|^from tests import .*\bmasked\b",
    re.MULTILINE,
)
collect_ignore = (
    []
    if find_spec("cryptography") and find_spec("pyhpke")
    else [
        str(path.parent if path.name == "conftest.py" else path)
        for path in Path(__file__).parent.rglob("*.py")
        if NEEDS_MASKING.search(path.read_text())
    ]
)


@pytest.fixture(autouse=True)
def no_network() -> None:
    disable_socket()


@pytest.fixture(params=["", "kms"])
def store(request: pytest.FixtureRequest) -> MemoryStore:
    """A bucket whose ETags are MD5s, and one where they say nothing of the bytes."""
    return MemoryStore(kms=bool(request.param))


@pytest.fixture
def told() -> Told:
    """What services besides S3 were told."""
    return Told()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, told: Told) -> Machine:
    """A round's machine, whose services besides S3 only listen."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(aws_json, "call", told.call)
    monkeypatch.setattr(aws_requests, "schedule_deadline", lambda *_: None)
    monkeypatch.setattr(aws_requests, "cancel_deadline", lambda *_: None)
    modules: dict[str, ModuleType] = {}

    def function(name: str) -> ModuleType:
        if name not in modules:
            modules[name] = load(name)
        return modules[name]

    return Machine(function)


@pytest.fixture
def keeper(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> "Keeper":
    """The machine's mask keeper."""
    from tests.unit.keeper_in_memory import Keeper

    for variable in ("GRADSHARD_KEEPER_BUCKET", "GRADSHARD_AGGREGATOR_BUCKET"):
        monkeypatch.setenv(variable, "memory")
        monkeypatch.setenv(f"{variable}_HOST", "memory.localhost")
    monkeypatch.setenv("GRADSHARD_LEAST_CLIENTS", "2")
    keeper = Keeper(machine.store)
    machine.keeper = keeper.store
    return keeper
