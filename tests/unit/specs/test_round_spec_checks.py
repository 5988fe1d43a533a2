"""What a round may be asked for."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradshard_core.errors import SpecError
from gradshard_core.robust.elementwise_rules import cut_of
from gradshard_core.specs.round_spec import OPTIONS, RoundSpec
from gradshard_core.specs.round_spec_checks import parse_new_spec, parse_spec
from gradshard_core.stragglers.assignment_settings import AssignmentSettings

DP = {"clip": 1.0, "noise_multiplier": 1.1, "delta": 1e-5}
BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "clients is missing"),
    ({"clients": 0}, "clients is 0"),
    ({"clients": 100_001}, "clients is 100001, not a whole number from 1 to 100000"),
    ({"clients": [f"c{i}" for i in range(100_001)]}, "100001 ids; a round takes 1 to 100000"),
    ({"clients": 4097, "rule": "fill"}, "rule for partial updates takes at most 4096"),
    (
        {"clients": 4097, "topology": "grid", "weights": "counts", "eager": True},
        "rule for partial updates takes at most 4096",
    ),
    ({"clients": True}, "clients is True"),
    ({"clients": "a"}, "neither a list of ids nor a number"),
    ({"clients": []}, "0 ids"),
    ({"clients": ["a", "b", "a"]}, "'a' is expected twice"),
    ({"clients": ["a/b"]}, "'a/b'"),
    ({"clients": ["../x"]}, "'../x'"),
    ({"clients": [""]}, "''"),
    ({"clients": ["x" * 65]}, "1 to 64"),
    ({"clients": [3]}, "3"),
    ({"clients": 3, "min_clients": 4}, "over the 3 expected clients"),
    ({"clients": 1, "min_clients": 2}, "over the 1 expected client$"),
    ({"clients": 3, "min_clients": 0}, "min_clients is 0"),
    ({"clients": 3, "timeout": 0}, "timeout is 0"),
    ({"clients": 3, "timeout": 1.5}, "timeout is 1.5"),
    ({"clients": 3, "timeout": 10**9}, "timeout is 1000000000, .*604800 \\(7d\\)"),
    ({"clients": 3, "shards": 0}, "shards is 0"),
    ({"clients": 3, "shards": 10_001}, "shards is 10001"),
    ({"clients": 3, "time_budget": -1}, "time_budget is -1"),
    ({"clients": 3, "time_budget": float("nan")}, "time_budget is nan"),
    ({"clients": 3, "time_budget": 5, "shards": 2}, "not both"),
    ({"clients": 3, "allow_nonfinite": "yes"}, "'yes'"),
    ({"clients": 3, "layout": []}, "layout"),
    ({"clients": 3, "layout": {"w": {"dtype": "F8", "shape": [1]}}}, "F8"),
    ({"clients": 3, "layout": {"w": {"dtype": "F32", "shape": [0]}}}, "empty"),
    ({"clients": 3, "dead_line": 5}, "unknown field 'dead_line'"),
    ({"clients": 3, "topology": "ring"}, "topology is 'ring', not one of auto, shards, lambda_fl"),
    ({"clients": 3, "topology": ["grid"]}, "topology is"),
    ({"clients": 65, "topology": "shards"}, "add 65 updates of 65 clients, over the 64 .* grid"),
    ({"clients": 9, "topology": "grid", "fan_in": 1}, "fan_in is 1, not a .* from 2 to 64"),
    ({"clients": 9, "topology": "grid", "fan_in": 65}, "fan_in is 65"),
    ({"clients": 9, "topology": "grid", "fan_in": 2.0}, "fan_in is 2.0"),
    ({"clients": 9, "topology": "grid", "fan_in": True}, "fan_in is True"),
    ({"clients": 9, "fan_in": 3}, "topology shards has no groups: fan_in is for lambda_fl, lifl"),
    (
        {"clients": 200, "topology": "lambda_fl", "fan_in": 2},
        "add 100 partial sums of 200 clients, over the 64 streams",
    ),
    ({"clients": 9, "topology": "lambda_fl", "shards": 2}, "lambda_fl adds whole updates: shards"),
    ({"clients": 9, "order": "random"}, "order is 'random', neither sequential nor such as tree"),
    ({"clients": 9, "order": [3, 3]}, r"order is \[3, 3\]"),
    ({"clients": 9, "order": "tree:3,2"}, "adds 9 contributors up to 2 sums.* give tree:3,2,2"),
    ({"clients": 9, "order": "tree:3,3,2"}, "9 contributors are one sum after 2: give tree:3,3"),
    (
        {"clients": 9, "topology": "grid", "fan_in": 2, "order": "tree:3,3"},
        "order tree:3,3 is not one that the topology can add in.* give tree:2,2,2,2",
    ),
    ({"clients": 200, "order": "sequential"}, "order sequential is not one .* give tree:50,4"),
    ({"clients": 9, "weights": "equal"}, "weights is 'equal', not one of shares, counts"),
    ({"clients": 9, "hold": "whole"}, "hold"),
    ({"clients": 9, "eager": 1}, "eager is 1, not true or false"),
    ({"clients": ["a", "b"], "eager": True}, "eager needs groups: take topology lifl"),
    ({"clients": 9, "topology": "lifl", "eager": True}, "eager needs the clients' ids"),
    ({"clients": list("abc"), "topology": "lifl", "eager": True}, "eager needs weights counts"),
    (
        {
            "clients": list("abc"),
            "topology": "lifl",
            "eager": True,
            "weights": "counts",
            "updates_from": "r0",
        },
        "eager awaits updates, but those of round 'r0' are there",
    ),
    ({"clients": 9, "updates_from": "../r0"}, "round id '../r0'"),
    ({"clients": 9, "updates_from": 3}, "round id 3"),
    ({"clients": 9, "rule": "salf"}, 'needs p, .*for example {"name": "salf", "p": 0.2}'),
    ({"clients": 9, "rule": "fill", "layers": [["w"]]}, r"prefix \['w'\], which is not text"),
    ({"clients": 9, "rule": "fill", "layers": ["w", "w"]}, "prefix 'w' is given twice"),
]


@pytest.mark.parametrize(("fields", "reason"), BAD)
def test_rejects(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        parse_spec(fields)


LAYOUT = {"w": {"dtype": "F32", "shape": [2]}}
UNDECIDED: list[tuple[dict[str, Any], str]] = [
    ({"clients": 3, "rule": "fill"}, "rule fill takes partial updates"),
    ({"clients": 3, "rule": "drop"}, "rule drop takes partial updates"),
    ({"clients": 3, "rule": {"name": "salf", "p": 0.2}}, "rule salf takes partial updates"),
    (
        {"clients": list("abcd"), "topology": "lifl", "weights": "counts", "eager": True},
        "eager begins with the first group",
    ),
]


@pytest.mark.parametrize(("fields", "reason"), UNDECIDED)
def test_rounds_without_a_majority_need_a_layout(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(SpecError, match=f"{reason}.* --layout FILE"):
        parse_new_spec(fields)
    assert parse_spec(fields).layout is None  # one that was opened before can be read
    for stated in ({"layout": LAYOUT}, {"server_optimizer": "fedavg"}):
        assert parse_new_spec({**fields, **stated}) == parse_spec({**fields, **stated})
    assert parse_new_spec({"clients": 3}).layout is None


_WORDS = ("w", "a", "salf", "lifl", "fedadam", "tree:2,2", "counts", "poisson", "F32", "optimizer")
_NAMES = (
    *("name", "p", "model", "mean", "reach", "rounds", "dtype", "shape", "batch_size", "epochs"),
    *("learning_rate", "smoothing", "max_epochs", "target_seconds", "after", "optimizer", "w"),
)
_JSON = st.recursive(
    st.sampled_from((None, True, 0, 1, 3, -1, 0.5, 1e300, float("nan"), *_WORDS)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(_NAMES), inner, min_size=1, max_size=3)
    ),
    max_leaves=6,
)
_BASE = {"batch_size": 8, "epochs": 2, "learning_rate": 0.1}


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(RoundSpec)]), _JSON),
    st.dictionaries(
        st.sampled_from([f.name for f in dataclasses.fields(AssignmentSettings)]), _JSON
    ),
)
def test_any_json_is_a_spec_or_is_rejected(
    fields: dict[str, Any], assignments: dict[str, Any]
) -> None:
    for asked in ({"clients": 4, **fields}, {"clients": 4, "assignments": _BASE | assignments}):
        try:
            spec = parse_spec(asked)
        except SpecError:
            continue
        assert parse_spec(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    ("expected", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (64, 33), (4096, 2049)]
)
def test_more_than_half_are_needed_unless_stated(expected: int, needed: int) -> None:
    ids = [f"c{number}" for number in range(expected)]
    for clients in (expected, ids):
        spec = parse_spec({"clients": clients})
        assert spec.min_clients == needed
        # The number is settled when the round is opened: its spec has it.
        assert spec.to_json()["min_clients"] == needed
        assert parse_spec({"clients": clients, "min_clients": None}) == spec
        assert parse_spec({"clients": clients, "min_clients": 1}).min_clients == 1


EXAMPLES: dict[str, Any] = {
    "min_clients": 2,
    "enough_clients": 2,
    "timeout": 60,
    "topology": "lifl",
    "fan_in": 2,
    "order": "tree:2,2",
    "weights": "counts",
    "max_samples": 100,
    "rule": {"name": "fill"},
    "measure_one_in": 10,
    "dp": {"clip": 1.0, "noise_multiplier": 1.1, "delta": 1e-5},
    "layers": ["a", "b"],
    "assignments": {"batch_size": 8, "epochs": 2, "learning_rate": 0.1},
    "eager": True,
    "shards": 2,
    "time_budget": 2.5,
    "layout": {"w": {"dtype": "F32", "shape": [2]}},
    "allow_nonfinite": True,
    "codecs": ["int4", "int8"],
    "masked": {"bound": 1.0, "max_samples": 9, "keeper": "ab" * 32},
    "updates_from": "r0",
    "inbox": {"training": "t", "oldest": 3, "exponent": 0.5, "repeated_round": "t-00003"},
    "server_optimizer": {"optimizer": "fedadam"},
}
NEEDED: dict[str, dict[str, Any]] = {
    "masked": {"clients": ["a", "b"], "layout": {"w": {"dtype": "F32", "shape": [2]}}},
    "fan_in": {"topology": "lifl"},
    "measure_one_in": {"clients": 3, "rule": "norm_clip"},
    "layers": {"rule": "fill"},
    "enough_clients": {"clients": list("ab"), "min_clients": 1},
    "eager": {"clients": list("abcd"), "topology": "lifl", "weights": "counts"},
    "inbox": {"server_optimizer": "fedavg"},
}


@pytest.mark.parametrize("name", sorted(OPTIONS.keys() - {"clients"}))
def test_every_option_is_parsed_and_survives_json(name: str) -> None:
    usual = {"clients": 4} | NEEDED.get(name, {})
    stated = usual | {name: EXAMPLES[name]}
    spec = parse_spec(stated)
    assert spec != parse_spec(usual)
    assert parse_spec(json.loads(json.dumps(spec.to_json()))) == spec
    assert parse_spec(usual | {name: None}) == parse_spec(usual), "None stands for the default"


def test_survives_json() -> None:
    fields = {
        "clients": ["b", "a"],
        "min_clients": 2,
        "enough_clients": 2,
        "timeout": 60,
        "time_budget": 2.5,
        "layout": {"w": {"dtype": "F32", "shape": [2, 3]}, "b": {"dtype": "I8", "shape": []}},
        "allow_nonfinite": True,
    }
    spec = parse_spec(fields)
    assert spec.clients == ("a", "b")
    assert parse_spec(spec.to_json()) == spec


def test_how_to_add_survives_json() -> None:
    eager = {
        "clients": ["a", "b", "c", "d"],
        "topology": "lifl",
        "fan_in": 2,
        "order": "tree:2,2",
        "weights": "counts",
        "eager": True,
    }
    spec = parse_spec(eager)
    assert (spec.topology, spec.fan_in, spec.order) == ("lifl", 2, (2, 2))
    assert (spec.weights, spec.eager) == ("counts", True)
    again = {"clients": 4, "order": "sequential", "updates_from": "r0"}
    for fields in (eager, again):
        spec = parse_spec(fields)
        assert parse_spec(spec.to_json()) == spec
        assert fields.items() <= spec.to_json().items()


def test_json_leaves_out_defaults() -> None:
    spec = parse_spec({"clients": 2})
    assert spec.to_json() == {"clients": 2, "min_clients": 2, "timeout": 3600}
    assert (spec.topology, spec.weights) == ("auto", "shares")
    # Sequential is an order that was asked for; none is the topology's own.
    assert spec.order is None
    assert parse_spec({"clients": 2, "order": "sequential"}).order == ()


@pytest.mark.parametrize(
    ("fields", "topology", "levels"),
    [
        ({"clients": 20}, "shards", ((20,),)),
        ({"clients": 200}, "grid", ((50,) * 4, (4,))),
        # An order's groups are the topology's, where it has any.
        ({"clients": 20, "topology": "grid", "order": "tree:4,5"}, "grid", ((4,) * 5, (5,))),
        ({"clients": 20, "order": "tree:4,5"}, "shards", ((20,),)),
        ({"clients": 200, "order": "tree:4,50"}, "grid", ((4,) * 50, (50,))),
        # A larger fan-in executes a subtree in each task.
        (
            {"clients": 20, "topology": "lambda_fl", "fan_in": 4, "order": "tree:2,2,5"},
            "lambda_fl",
            ((4,) * 5, (5,)),
        ),
    ],
)
def test_groups_are_the_topologys_or_the_orders(
    fields: dict[str, Any], topology: str, levels: tuple[tuple[int, ...], ...]
) -> None:
    spec = parse_spec(fields)
    assert spec.levels(spec.expected) == (topology, levels)


def test_groups_of_named_clients_go_by_their_ids() -> None:
    terms = {"clients": list("gfedcba"), "topology": "grid", "fan_in": 3}
    assert parse_spec(terms).groups() == [("a", "b", "c"), ("d", "e", "f"), ("g",)]


@pytest.mark.parametrize(
    ("fields", "capacity"),
    [
        ({"clients": 2}, 100_000),
        ({"clients": 2, "rule": "fill"}, 4096),
        ({"clients": 2, "topology": "shards"}, 64),
        ({"clients": 9, "topology": "lambda_fl", "fan_in": 2}, 128),
        ({"clients": 9, "topology": "lifl", "fan_in": 2}, 256),
        ({"clients": 9, "topology": "lambda_fl"}, 4096),
        ({"clients": 9, "order": "tree:3,3"}, 9),
    ],
)
def test_capacity_is_the_most_that_can_be_added_as_asked_for(
    fields: dict[str, Any], capacity: int
) -> None:
    assert parse_spec(fields).capacity == capacity


def test_awaited_clients() -> None:
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
    ("fields", "error"),
    [
        ({"rule": "mean"}, "rule is 'mean', not one of salf, .*median, trimmed_mean"),
        (
            {"rule": {"name": "median", "beta": 0.1}},
            "rule median has no 'beta'; its settings are layer_quorum",
        ),
        (
            {"rule": {"name": "geometric_median", "beta": 0.1}},
            "rule geometric_median has no 'beta'; its settings are layer_quorum",
        ),
        ({"rule": {"name": "trimmed_mean", "f": 1}}, "has no 'f'; its settings are beta"),
        ({"rule": {"name": "trimmed_mean", "beta": 0.5}}, "beta is 0.5, not a number above 0 and"),
        ({"rule": {"name": "trimmed_mean", "beta": 10**400}}, "not a number above 0 and"),
        ({"rule": {"name": "norm_clip", "bound": 10**400}}, "not a number above 0"),
        ({"rule": {"name": "krum", "f": 1e308}}, "updates, and"),
        ({"server_optimizer": {"optimizer": "fedavg", "learning_rate": 10**400}}, "not a number"),
        ({"rule": {"name": "trimmed_mean", "beta": 0}}, "beta is 0, not a number above 0 and"),
        ({"rule": {"name": "trimmed_mean", "beta": True}}, "beta is True, not a number"),
        (
            {"rule": {"name": "trimmed_mean", "beta": 0.05}, "clients": 7},
            "leaves out none of 7 updates: give a beta of at least 0.143",
        ),
        ({"rule": "median", "clients": 2}, "median needs at least 3 updates, and 2 are expected"),
        ({"rule": "median", "min_clients": 2}, "min_clients is 2, under the 3 updates"),
        ({"rule": "median", "clients": 65}, "topology grid adds those of 65 clients in 2 groups"),
        ({"rule": "median", "topology": "lifl"}, "topology lifl adds those of 9 clients in 3"),
        ({"rule": "median", "weights": "counts"}, "leave out weights"),
        ({"rule": "median", "allow_nonfinite": True}, "leave out allow_nonfinite"),
        ({"rule": "median", "order": "tree:3,3"}, "leave out order"),
        ({"rule": "median", "max_samples": 9}, "counts every client alike, whatever it states"),
        ({"rule": {"name": "krum", "f": 1}, "max_samples": 9}, "leave out max_samples"),
        ({"rule": "median", "layers": ["a", "b"]}, "rule median takes whole ones"),
        ({"rule": "median", "measure_one_in": 9}, "is for rules that measure updates: norm_clip"),
        ({"measure_one_in": 9}, "measure_one_in is for rules that measure updates"),
        ({"rule": "norm_clip", "measure_one_in": 1}, "measure_one_in is 1, not a .* from 2 to"),
        ({"rule": "median", "eager": True, "clients": list("abcdefghi")}, "leave out eager"),
    ],
)
def test_robust_rule_is_refused_with_the_reason(fields: dict[str, Any], error: str) -> None:
    with pytest.raises(SpecError, match=error):
        parse_spec({"clients": 9, **fields})


def test_robust_rule_raises_the_default_quorum() -> None:
    assert parse_spec({"clients": 3, "rule": "median"}).min_clients == 3
    assert parse_spec({"clients": 9, "rule": "median"}).min_clients == 5


@pytest.mark.parametrize("terms", [{"rule": "norm_clip"}, {"dp": {**DP, "quantile": 0.5}}])
@pytest.mark.parametrize("topology", ["auto", "grid", "lambda_fl", "lifl"])
def test_what_needs_norms_alone_takes_any_topology(terms: dict[str, Any], topology: str) -> None:
    spec = parse_spec({"clients": 300, "topology": topology, **terms})
    assert len(spec.levels(300)[1]) > 1
    assert parse_spec({"clients": 9, **terms}).capacity == 100_000
    most = {"lambda_fl": 4096}.get(topology, 100_000)  # two levels of 64
    assert parse_spec({"clients": 9, "topology": topology, **terms}).capacity == most


def test_robust_rule_takes_no_more_updates_than_one_task_reads() -> None:
    assert parse_spec({"clients": 60, "rule": "median"}).capacity == 64


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"dp": 1.0}, "dp is 1.0, not {clip: …, noise_multiplier: …, delta: …}"),
        ({"dp": {**DP, "sigma": 1}}, "not {clip: …"),
        ({"dp": {"clip": 1.0, "delta": 1e-5}}, "dp needs noise_multiplier, for example"),
        ({"dp": {**DP, "clip": 0}}, "dp: clip is 0, not a number from"),
        ({"dp": {**DP, "clip": float("inf")}}, "dp: clip is inf, not a number from"),
        ({"dp": {**DP, "clip": float("nan")}}, "dp: clip is nan, not a number from"),
        ({"dp": {**DP, "noise_multiplier": 0}}, "noise_multiplier is 0, not a number from 0.01"),
        ({"dp": {**DP, "noise_multiplier": True}}, "noise_multiplier is True, not a number"),
        ({"dp": {**DP, "delta": 0.5}}, "dp: delta is 0.5, not a number from 1e-15 to 0.1"),
        ({"dp": DP, "clients": 1}, "hides a client among at least 2, and 1 is expected"),
        ({"dp": DP, "min_clients": 1}, "min_clients is 1, under the 2 updates"),
        ({"dp": DP, "weights": "counts"}, "with weights counts one client could add any multiple"),
        ({"dp": DP, "weights": "steps"}, "no noise hides. Leave out weights"),
        ({"dp": DP, "rule": "median"}, "rule median computes something else: leave out rule"),
        ({"dp": DP, "rule": "norm_clip"}, "leave out rule; dp clips updates, too"),
        ({"dp": DP, "rule": "fill"}, "rule fill computes something else"),
        ({"dp": DP, "allow_nonfinite": True}, "a NaN has no length: leave out allow_nonfinite"),
        ({"dp": DP, "order": "tree:3,3"}, "depends on no order: leave out order"),
        ({"dp": DP, "max_samples": 100}, "leave out max_samples"),
        ({"dp": DP, "updates_from": "r0"}, "leave out updates_from"),
        ({"dp": DP, "layers": ["a", "b"]}, "dp takes whole ones: leave out layers"),
        ({"dp": DP, "measure_one_in": 2}, "those of a sample are estimates: leave out measure_"),
        ({"dp": DP, "eager": True}, "before it adds any: leave out eager"),
        (
            {"dp": DP, "server_optimizer": {"optimizer": "fedavg", "updates": "models"}},
            "says nothing of what a client has changed: send deltas",
        ),
        (
            {"dp": DP, "layout": {"steps": {"dtype": "I64", "shape": [1]}}},
            "'steps' is an integer or a buffer, whose average would reveal clients",
        ),
    ],
)
def test_private_round_is_refused_with_the_reason(fields: dict[str, Any], error: str) -> None:
    with pytest.raises(SpecError, match=error):
        parse_spec({"clients": 9, **fields})


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"clients": ["a", "b"], "masked": EXAMPLES["masked"]}, "masked"),
        ({"inbox": EXAMPLES["inbox"], "server_optimizer": "fedavg"}, "a buffered training"),
    ],
)
def test_layers_are_refused_where_no_rule_makes_them_possible(
    fields: dict[str, Any], what: str
) -> None:
    with pytest.raises(SpecError, match=f"{what} takes whole ones: leave out layers"):
        parse_spec({"clients": 2, "layers": ["a", "b"], **fields})


def test_codecs_are_names_that_are_known() -> None:
    assert parse_spec({"clients": 2, "codecs": "int8"}).codecs == ("int8",)
    assert parse_spec({"clients": 2, "codecs": ["topk", "int8", "int8"]}).codecs == ("int8", "topk")
    with pytest.raises(
        SpecError,
        match=r"codec 'zip' is unknown; there are int8, fp8, int4, topk\. Give several as a list",
    ):
        parse_spec({"clients": 2, "codecs": ["int8", "zip"]})
    with pytest.raises(SpecError, match="codec \\[\\] is unknown"):
        parse_spec({"clients": 2, "codecs": [[]]})
    with pytest.raises(SpecError, match="codecs is 8, not a list of names"):
        parse_spec({"clients": 2, "codecs": 8})


@pytest.mark.parametrize("beta", [0.49, 0.2, 0.1, 1 / 3, 1 / 49, 0.29, 1 / 64])
def test_the_quorum_of_a_trimmed_mean_is_enough_to_leave_any_out(beta: float) -> None:
    spec = parse_spec({"clients": 64, "rule": {"name": "trimmed_mean", "beta": beta}})
    assert spec.robust_rule is not None
    enough = [count for count in range(3, 65) if cut_of(beta, count)]
    assert spec.robust_rule.least_clients == enough[0]
    assert spec.min_clients >= enough[0]
    with pytest.raises(SpecError, match=f"under the {enough[0]} updates that the rule needs"):
        parse_spec({"clients": 64, "rule": spec.robust_rule.to_json(), "min_clients": 2})


def test_a_setting_of_a_rule_that_is_null_has_its_default() -> None:
    fields = {"clients": 7, "rule": {"name": "trimmed_mean", "beta": None}}
    assert parse_spec(fields) == parse_spec({**fields, "rule": "trimmed_mean"})
