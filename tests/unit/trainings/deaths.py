"""Functions that die at each of their requests in turn, each time from the same bucket."""

from collections.abc import Mapping
from copy import copy
from datetime import datetime, tzinfo
from types import ModuleType
from typing import Any

import pytest

from gradshard_core.records import model_registry
from gradshard_core.rounds import first_plan, manifest_json, plan_assembly
from tests.unit.trainings.machine import DyingStore, Machine

CLOCKS: tuple[ModuleType, ...] = (model_registry, first_plan, plan_assembly, manifest_json)
"""The modules that write the time into an object."""


def watch_deaths(machine: Machine, patch: pytest.MonkeyPatch) -> dict[str, set[int]]:
    """Have every call of a function die at each of its requests before it is made in earnest.

    A function that has died runs again, as the state machine has it, and must answer what it
    answers if it does not die. If it also leaves the same bucket, whatever comes later is the same.
    Then the bucket is as before, for the next death.

    Returns
    -------
    dict
        By function, its deaths, as :class:`DyingStore` numbers them, that left another bucket. It
        is filled while the machine runs.
    """
    stop_clocks(machine, patch)
    others: dict[str, set[int]] = {}
    call = machine._function

    def watched(name: str, event: dict[str, Any]) -> Any:
        before = contents(machine.store)
        answer = call(name, event)
        [*_, (_, requests)] = machine.calls
        after = contents(machine.store)
        for death in range(-requests, requests):
            set_back(machine.store, before)
            machine.kill = {name: [{death}, set()]}
            assert call(name, event) == answer, (name, death)
            assert machine.kill == {name: []}, (name, death)  # it has died, and has run again
            if contents(machine.store) != after:
                others.setdefault(name, set()).add(death)
        machine.kill = {}
        set_back(machine.store, after)
        return answer

    patch.setattr(machine, "_function", watched)
    return others


def stop_clocks(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    """Have the machine's time everywhere, so that only a death can make a difference."""

    class Stopped(datetime):
        @classmethod
        def now(cls, _zone: tzinfo | None = None) -> Any:
            return machine.now

    for module in CLOCKS:
        patch.setattr(module, "datetime", Stopped)
    machine.store.clock = lambda: machine.now


def contents(store: DyingStore) -> Mapping[str, Any]:
    """Copy all that a request can see.

    Not the earlier versions: they are read by ETags that an object names, so more are no other
    bucket.
    """
    fields = ("objects", "etags", "modified", "checksums", "parts", "aborted")
    uploads = {name: (key, {**parts}) for name, (key, parts) in store.uploads.items()}
    return {"uploads": uploads, **{name: copy(getattr(store, name)) for name in fields}}


def set_back(store: DyingStore, earlier: Mapping[str, Any]) -> None:
    """Make a bucket what it was."""
    for name, value in earlier.items():
        setattr(store, name, copy(value))
    store.uploads = {name: (key, {**parts}) for name, (key, parts) in earlier["uploads"].items()}
