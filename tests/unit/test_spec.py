"""What a round may be asked for."""

from typing import Any

import pytest

from gradshard.errors import SpecError
from gradshard.keys import RoundKeys, check_id, parse_update_key
from gradshard.spec import parse_spec

BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "clients is missing"),
    ({"clients": 0}, "clients is 0"),
    ({"clients": 65}, "clients is 65"),
    ({"clients": True}, "clients is True"),
    ({"clients": "a"}, "neither a list of ids nor a number"),
    ({"clients": []}, "0 ids"),
    ({"clients": ["a", "b", "a"]}, "'a' is expected twice"),
    ({"clients": ["a/b"]}, "'a/b'"),
    ({"clients": ["../x"]}, "'../x'"),
    ({"clients": [""]}, "''"),
    ({"clients": ["x" * 65]}, "1 to 64"),
    ({"clients": [3]}, "3"),
    ({"clients": 3, "min_clients": 4}, "over the 3 expected"),
    ({"clients": 3, "min_clients": 0}, "min_clients is 0"),
    ({"clients": 3, "deadline": 0}, "deadline is 0"),
    ({"clients": 3, "deadline": 1.5}, "deadline is 1.5"),
    ({"clients": 3, "deadline": 10**9}, "deadline"),
    ({"clients": 3, "shards": 0}, "shards is 0"),
    ({"clients": 3, "shards": 10_001}, "shards is 10001"),
    ({"clients": 3, "within": -1}, "within is -1"),
    ({"clients": 3, "within": float("nan")}, "within is nan"),
    ({"clients": 3, "within": 5, "shards": 2}, "not both"),
    ({"clients": 3, "allow_nonfinite": "yes"}, "'yes'"),
    ({"clients": 3, "layout": []}, "layout"),
    ({"clients": 3, "layout": {"w": {"dtype": "F8", "shape": [1]}}}, "F8"),
    ({"clients": 3, "layout": {"w": {"dtype": "F32", "shape": [0]}}}, "empty"),
    ({"clients": 3, "dead_line": 5}, "unknown field 'dead_line'"),
]


@pytest.mark.parametrize(("fields", "reason"), BAD)
def test_refuses(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        parse_spec(fields)


def test_survives_json() -> None:
    fields = {
        "clients": ["b", "a"],
        "min_clients": 2,
        "deadline": 60,
        "within": 2.5,
        "layout": {"w": {"dtype": "F32", "shape": [2, 3]}, "b": {"dtype": "I8", "shape": []}},
        "allow_nonfinite": True,
    }
    spec = parse_spec(fields)
    assert spec.clients == ("a", "b")
    assert parse_spec(spec.to_json()) == spec


def test_who_is_awaited() -> None:
    named = parse_spec({"clients": ["a", "b"]})
    assert named.missing(["b", "x"]) == ("a",)
    assert not named.is_complete(["b", "x"])
    assert named.is_complete(["a", "b"])
    assert named.expects("a")
    assert not named.expects("x")
    counted = parse_spec({"clients": 2})
    assert counted.expects("x")
    assert not counted.is_complete(["x"])
    assert counted.is_complete(["x", "y", "z"])


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "-a", "a b", "a/b", "ä", "a\n", "a" * 65, None]
)
def test_refuses_ids(name: object) -> None:
    with pytest.raises(SpecError, match="round id"):
        check_id("round", name)


def test_update_keys() -> None:
    assert parse_update_key(RoundKeys("r1").update("a.b")) == ("r1", "a.b")
    assert parse_update_key("rounds/r1/updates/a/b.safetensors") == ("r1", "a/b")
    assert parse_update_key("rounds/r1/update.safetensors") is None
    assert parse_update_key("rounds/r1/updates/a.npy") is None
