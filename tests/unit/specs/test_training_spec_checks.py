"""The options of a training: what is taken, and what is rejected with which words."""

from typing import Any

import pytest

from gradshard_core.costs.workload import Workload
from gradshard_core.costs.workload_from_spec import workload_of
from gradshard_core.errors import SpecError
from gradshard_core.specs.training_spec import OPTIONS, TrainingSpec
from gradshard_core.specs.training_spec_checks import parse_training_spec
from gradshard_core.trainings.client_sampling import count_invited

ROUND = {"server_optimizer": "fedavg"}
MODELS = {"optimizer": "fedavg", "updates": "models"}
DP = {"clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5}
BUFFERED = {"mode": "buffered", "updates_per_version": 3}
TERMS = {"bound": 1.0, "max_samples": 100, "keeper": "ab" * 32}
MASKED: dict[str, Any] = {"round": {**ROUND, "masked": TERMS}}
TREE: dict[str, Any] = {
    "rounds": 8,
    "sample": 4,
    "noise_tree": 4,
    "round": {**ROUND, "dp": DP},
}
GOOD: dict[str, Any] = {"rounds": 3, "round": ROUND}


def parse(**fields: Any) -> TrainingSpec:
    return parse_training_spec({**GOOD, **fields})


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"rounds": 0}, "rounds is 0, not a whole number from 1 to 99999"),
        ({"rounds": None}, "rounds is missing"),
        ({"nonsense": 1}, "unknown field 'nonsense'"),
        ({"round": {}}, "server_optimizer is missing"),
        ({"round": {**ROUND, "clients": ["a"]}}, "round has 'clients', which the training decides"),
        ({"round": {**ROUND, "eager": True}}, "round has 'eager'"),
        ({"round": {**ROUND, "timeout": 0}}, "timeout is 0"),
        ({"round": 3}, "round is 3, not an object"),
        ({"clients": 7}, "clients is 7: give their ids"),
        ({"clients": ["a", "a"]}, "client 'a' is expected twice"),
        ({"clients": ["a"], "sample": 2}, "2 clients are needed for a round, and clients has 1"),
        ({"sample": 0}, "sample is 0, neither"),
        ({"sample": 1.5}, "sample is 1.5, neither"),
        ({"sample": True}, "sample is True, neither"),
        ({"over_selection": 0.3}, "over_selection is for sampling"),
        ({"sample": 2, "over_selection": -1}, "over_selection is -1, not a number from 0 to 4"),
        ({"settings": {"1x": 1}}, "setting '1x' is not"),
        ({"settings": {"x": float("nan")}}, "setting 'x' is nan"),
        ({"settings": {"x": [1]}}, r"setting 'x' is \[1\]"),
        ({"settings": {"x": {"2": 1}}}, "no value for the first round"),
        ({"settings": {"x": {"first": 1}}}, "'first' is not the number of a round: write"),
        ({"settings": {"x": {"start": 1, "decay": 2}}}, "decay one up to 1"),
        ({"settings": {f"x{n}": 1 for n in range(33)}}, "settings has 33 entries"),
        ({"stop": {"metric": "acc"}}, "give at_least or at_most, or maximize"),
        ({"stop": {"metric": "acc", "maximize": True}}, "no target and no patience"),
        ({"stop": {"metric": "", "at_least": 1}}, "cannot be the name of a metric"),
        ({"stop": {"metric": "a", "at_least": 1, "at_most": 2}}, "at_least and at_most"),
        ({"stop": {"metric": "a", "at_least": "x"}}, "at_least is 'x', not a finite number"),
        ({"stop": {"metric": "a", "at_least": 1, "patience": 0}}, "patience is 0"),
        ({"stop": {"at_least": 1}}, "not an object with metric"),
        ({"budget": {}}, "budget is {}"),
        ({"budget": {"euros": 2}}, "not an object with dollars"),
        ({"budget": {"dollars": 0}}, "dollars is 0, not a finite number above 0"),
        ({"clients": [f"{'c' * 60}{n:04}" for n in range(1500)]}, "over 98304"),
        (
            {"clients": [f"c{n}" for n in range(551)], "poll_interval": 0.1},
            r"poll_interval is 0\.1 s, .* 551 clients .* answers 5,500 reads a second: give 1 s",
        ),
        (
            {"sample": 27_501},
            "poll_interval is 5 s, .* at least 27,501 clients .* give 6 s or more",
        ),
        ({"sample": 100_000, "poll_interval": 18}, "give 19 s or more"),
        ({"mode": "fast"}, "mode is 'fast', not one of synchronous, buffered"),
        ({"mode": "buffered"}, "mode 'buffered' needs updates_per_version"),
        ({"updates_per_version": 3}, "updates_per_version is for mode 'buffered': give mode, too"),
        ({"max_staleness": 3}, "max_staleness is for mode 'buffered'"),
        (
            {**BUFFERED, "updates_per_version": 0},
            "updates_per_version is 0, not a whole number from 1 to 1024",
        ),
        ({**BUFFERED, "sample": 2}, "leave out sample"),
        (
            {**MASKED, "mode": "buffered", "updates_per_version": 3},
            "masked: leave out mode 'buffered': a seed",
        ),
        ({**MASKED, "evaluate_every": 1}, "masked: leave out evaluate_every: evaluations send"),
        ({**MASKED, "stop": {"metric": "loss", "at_most": 1}}, "leave out stop: .* no metrics"),
        ({"round": {**MASKED["round"], "rule": "median"}}, "masked: leave out rule"),
        ({"round": {**MASKED["round"], "rule": "fill"}}, "masked: leave out rule"),
        ({"round": {**MASKED["round"], "codecs": ["int8"]}}, "masked: leave out codecs"),
        ({"round": {**MASKED["round"], "min_clients": 1}}, "the sum over one client"),
        ({"round": {**MASKED["round"], "masked": {"bound": 1}}}, "masked lacks max_samples"),
        ({**MASKED, "clients": ["a"]}, "2 clients are needed for a round"),
        (
            {**MASKED, "clients": [f"c{n}" for n in range(700)]},
            "no room for 700 clients of up to 100 samples with 16 bits: take at most 15 bits",
        ),
        ({**MASKED, "sample": 500, "over_selection": 0.4}, "no room for 700 clients"),
        ({**BUFFERED, "clients": ["a", "b"]}, "updates_per_version is 3, and clients has 2"),
        (
            {**BUFFERED, "updates_per_version": 373},
            r"updates_per_version × \(max_staleness \+ 1\) is 4103, over 4096",
        ),
        ({**BUFFERED, "staleness_exponent": -1}, "staleness_exponent is -1, not a number from 0"),
        ({**BUFFERED, "round": {**ROUND, "rule": "median"}}, "median counts every update alike"),
        ({**BUFFERED, "round": {**ROUND, "rule": "fill"}}, "do not go with rule"),
        (
            {**BUFFERED, "round": {**ROUND, "rule": {"name": "norm_clip", "layer_quorum": 3}}},
            "do not go with rule",
        ),
        ({**BUFFERED, "round": {**ROUND, "rule": {"name": "krum", "f": 1}}}, "at least 5 updates"),
        (
            {**BUFFERED, "updates_per_client": 2, "round": {**ROUND, "rule": "norm_clip"}},
            "updates_per_client is 2, and a robust rule takes each update for another client's",
        ),
        (
            {**BUFFERED, "round": {**ROUND, "min_clients": 3, "dp": DP}},
            "go with dp: they wait where",
        ),
        ({**BUFFERED, "round": {**ROUND, "weights": "counts"}}, "do not go with weights"),
        ({**BUFFERED, "round": {**ROUND, "min_clients": 4}}, "min_clients is 4, over the 3"),
        ({**BUFFERED, "round": {"server_optimizer": MODELS}}, "whose updates are deltas"),
        ({**TREE, "noise_tree": 1}, "noise_tree is 1, not a whole number from 2 to 2048"),
        ({**TREE, "noise_tree": 9}, "noise_tree is 9, over the 8 rounds of the training: give 8"),
        ({**TREE, "round": ROUND}, "noise_tree is for private rounds: give dp, too"),
        ({**TREE, "sample": None}, "sample is None, and every round's sum is divided by it"),
        ({**TREE, "sample": 0.5}, "sample is 0.5, and every round's sum"),
        (
            {**TREE, "clients": [f"c{n}" for n in range(15)]},
            "16 different clients, 4 each, and clients has 15 at most: give a noise_tree of 3",
        ),
        ({**TREE, "sample": 2049}, "the state names 4096 at most: lower sample"),
        (
            {**TREE, "over_selection": 0.3, "clients": [f"c{n}" for n in range(23)]},
            "invite 24 different clients, 6 each",
        ),
        ({**TREE, "sample": 1025}, "the state names 4096 at most: give a noise_tree of 3 at most"),
        ({**TREE, **BUFFERED, "sample": None}, "leave out mode 'buffered' or noise_tree"),
        ({**TREE, "round": {**ROUND, "dp": {**DP, "quantile": 0.5}}}, "leave out quantile"),
        (
            {**TREE, "round": {**ROUND, "dp": DP, "masked": {"keeper": "ab" * 32}}},
            "leave out masked or noise_tree",
        ),
        (
            {**TREE, "round": {"dp": DP, "server_optimizer": "fedadam"}},
            "fedadam scales each step on its own, so no noise would cancel: take fedavg or fedavgm",
        ),
        ({**TREE, "round": {**ROUND, "dp": {**DP, "tree": {}}}}, "give noise_tree instead"),
    ],
)
def test_what_makes_no_sense_is_rejected_with_the_number_that_is_off(
    fields: dict[str, Any], why: str
) -> None:
    with pytest.raises(SpecError, match=why):
        parse(**fields)


EXAMPLES: dict[str, Any] = {
    "rounds": 3,
    "round": {**ROUND, "timeout": 60},
    "mode": "buffered",
    "updates_per_version": 2,
    "updates_per_client": 2,
    "max_staleness": 4,
    "staleness_exponent": 1.0,
    "clients": ["a", "b"],
    "sample": 0.5,
    "over_selection": 0.3,
    "seed": 4,
    "noise_tree": 2,
    "secret_sample": {"probability": 0.25, "divisor": 100},
    "settings": {"epochs": 2, "rate": {"start": 0.1, "decay": 0.5}, "mode": {"1": "a", "9": "b"}},
    "evaluate_every": 5,
    "stop": {"metric": "loss", "maximize": False, "patience": 3},
    "budget": {"dollars": 2, "seconds": 60},
    "repeats": 0,
    "repeat_after": 60,
    "poll_interval": 0.5,
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_survives_json(name: str) -> None:
    fields = {**GOOD, name: EXAMPLES[name]}
    if name in {
        "mode",
        "updates_per_version",
        "updates_per_client",
        "max_staleness",
        "staleness_exponent",
    }:
        fields |= {"mode": "buffered", "updates_per_version": 2}
    if name == "over_selection":
        fields["sample"] = 2
    if name == "noise_tree":
        fields |= {"sample": 2, "round": {**ROUND, "dp": DP}}
    if name == "secret_sample":
        fields["round"] = {**ROUND, "dp": DP}
    spec = parse_training_spec(fields)
    assert parse_training_spec(spec.to_json()) == spec
    assert spec.to_json()[name] == EXAMPLES[name]


@pytest.mark.parametrize(
    ("options", "members", "invited", "awaited"),
    [
        ({}, 7, 7, 7),
        ({"sample": 3}, 7, 3, 3),
        ({"sample": 0.1}, 7, 1, 1),
        ({"sample": 0.5}, 8, 4, 4),
        ({"sample": 10, "over_selection": 0.3}, 100, 13, 10),
        ({"sample": 10, "over_selection": 0.3}, 11, 11, 10),
        ({}, 9000, 9000, 9000),
        ({}, 120_000, 100_000, 100_000),
        (BUFFERED, 7, 7, 3),
        (BUFFERED, 2, 2, 2),
    ],
)
def test_the_numbers_of_invited_and_awaited_clients(
    options: dict[str, Any], members: int, invited: int, awaited: int
) -> None:
    assert count_invited(parse(**options), members) == (invited, awaited)


def test_a_round_follows_the_assignments_of_the_one_before() -> None:
    base = {"batch_size": 8, "epochs": 1, "learning_rate": 0.1}
    spec = parse(round={**ROUND, "assignments": base})
    first, second = (spec.round_spec(("a", "b"), 2, after) for after in (None, "t-00001"))
    assert first.assignments is not None
    assert first.assignments.after is None
    assert second.assignments is not None
    assert second.assignments.after == "t-00001"


def test_a_budget_counts_the_masks_of_a_round() -> None:
    def workload(**masked: Any) -> Workload:
        spec = parse(round={**ROUND, **masked}).round_spec(("a", "b", "c"), 3, None)
        return workload_of(spec, 4_000_000, 3)

    plain, narrow = workload(), workload(masked=TERMS)
    wide = workload(masked={**TERMS, "ring_bits": 64})
    assert [list(map(list, load.levels)) for load in (plain, narrow, wide)] == [[[3]], [[4]], [[4]]]
    assert (narrow.sums_bytes, wide.sums_bytes) == (4_000_000, 8_000_000)
    assert wide.stored_bytes == 8_000_000


def test_masked_rounds_of_a_training_have_ids_and_fit_into_the_ring() -> None:
    spec = parse(**MASKED)
    assert spec.needed() == 2
    assert count_invited(spec, 10) == (10, 10)
    most = (2**31 - 1) // (100 * (2**15 - 1))
    assert count_invited(spec, 1000) == (most, most)
    round_ = spec.round_spec(("a", "b", "c"), 3, None)
    assert round_.clients == ("a", "b", "c")
    assert round_.min_clients == 2
    assert round_.masked is not None
    assert parse_training_spec(spec.to_json()) == spec


KRUM = {**ROUND, "rule": {"name": "krum", "f": 2}}


@pytest.mark.parametrize(
    ("of_round", "fewest", "quorum"),
    [
        (ROUND, 1, 1),
        ({**ROUND, "min_clients": 5}, 5, 5),
        (KRUM, 7, 7),
        ({**ROUND, "rule": "median"}, 3, 3),
        ({**ROUND, "rule": "trimmed_mean"}, 5, 5),
        ({**ROUND, "rule": {"name": "median", "layer_quorum": 6}}, 6, 6),
    ],
)
def test_every_number_of_members_that_is_enough_makes_a_round(
    of_round: dict[str, Any], fewest: int, quorum: int
) -> None:
    for fields in ({}, {"sample": 0.1}, {"sample": 10, "over_selection": 4}):
        spec = parse(round=of_round, **fields)
        assert spec.needed() == (10 if fields.get("sample") == 10 else fewest)
        for members in (spec.needed(), 12, 64, 65, 300):
            invited, awaited = count_invited(spec, members)
            assert spec.needed() <= awaited <= invited <= members
            terms = spec.round_spec(tuple(f"c{n}" for n in range(invited)), awaited, None)
            assert quorum <= terms.min_clients <= awaited


def test_a_robust_rule_invites_no_more_clients_than_it_takes() -> None:
    assert count_invited(parse(round=KRUM), 300) == (64, 64)
    assert count_invited(parse(round=KRUM, sample=40, over_selection=1), 300) == (64, 40)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"round": KRUM, "sample": 3}, "needs at least 7 updates, and 3 are expected"),
        ({"round": KRUM, "sample": 100}, "with at most 64 clients"),
        ({"round": KRUM, "clients": ["a", "b"]}, "7 clients are needed for a round"),
        ({"round": {**ROUND, "min_clients": 5}, "sample": 3}, "over the 3 expected clients"),
        ({"round": {**ROUND, "rule": {"name": "krum", "f": 40}}}, "give f of at most 30"),
        ({"round": KRUM, "mode": "buffered", "updates_per_version": 3}, "needs at least 7 updates"),
    ],
)
def test_too_few_or_too_many_clients_for_the_rule(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(SpecError, match=why):
        parse(**fields)
