"""The safetensors header of a result: in the plan, or in an object of its own."""

from typing import Any

import numpy as np
import pytest

from gradshard_core.errors import BrokenObjectError
from gradshard_core.planning import output_objects
from tests import reference
from tests.unit.in_memory import OPENED, Machine

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

UPDATE = {"w": np.arange(6, dtype="f4"), "é": np.ones(2, "f8")}


def begin(machine: Machine, name: str) -> dict[str, Any]:
    machine.begin(name)
    machine.open(clients=["a"])
    machine.collect("a", machine.submit("a", UPDATE))
    return machine.plan(OPENED)


def test_a_result_has_the_same_bytes_whatever_holds_its_header(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for most in (1 << 16, 0):
        monkeypatch.setattr(output_objects, "IN_PLAN_BYTES", most)
        machine.aggregate(begin(machine, f"r{most}"))
        assert machine.step("finalize_round")["status"] == "completed"
        assert (machine.store.get_bytes(machine.keys.layout) is None) == bool(most)
        results.append(machine.store.get_bytes(machine.keys.result))
    assert results[0] is not None
    assert results[0] == results[1]
    for name, tensor in reference.decode(results[0]).items():
        np.testing.assert_array_equal(tensor, UPDATE[name])


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda header: header[:-1], r"layout\.header has \d+ bytes, not the planned \d+"),
        (lambda header: header[:-1] + b"x", r"layout\.header is not the one that was planned"),
    ],
)
def test_a_header_that_is_not_the_planned_one_is_named(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, spoil: Any, cause: str
) -> None:
    monkeypatch.setattr(output_objects, "IN_PLAN_BYTES", 0)
    planned = begin(machine, "r")
    header = machine.store.get_bytes(machine.keys.layout)
    assert header is not None
    machine.store.put_bytes(machine.keys.layout, spoil(header))
    with pytest.raises(BrokenObjectError, match=cause):
        machine.aggregate(planned)
