"""Effective weights of partial updates, against sums written down anew and against chance."""

import decimal
import functools
import hashlib
import itertools
import json
import math
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradshard_core.errors import SpecError, UpdateError
from gradshard_core.stragglers.layer_reach import (
    Client,
    ClientReach,
    GivenMisses,
    PastRound,
    PoissonDepth,
    ReachModel,
    UniformDepth,
    estimate_reach,
    expected_shares,
    misses,
    parse_reach_model,
)
from gradshard_core.stragglers.layers import Coverage, Layer
from gradshard_core.stragglers.salf import PartialRule, effective_weights, parse_rule

LAYERS = tuple(Layer(name, (f"{name}.w",)) for name in ("first", "second", "third", "last"))
CLIENTS = ("a", "b", "c", "d", "e")
ROUNDS = 20_000
GOLDEN = "58ae746dfc1675ce77591e47de39d56a875400e0adadfe0916ab8a0d7a1ae80a"


def depth(reached: int) -> Coverage:
    """What back-propagation leaves after so many layers."""
    return tuple(index >= len(LAYERS) - reached for index in range(len(LAYERS)))


def weights(
    rule: PartialRule,
    coverage: Mapping[str, Coverage],
    samples: Mapping[str, int] | None = None,
    clients: Sequence[Client] = CLIENTS,
) -> dict[str, dict[str, float]]:
    """By layer and client, without those that do not count."""
    samples = samples or dict.fromkeys(coverage, 1)
    return {
        weighed.layer.name: {
            client: weight
            for client, weight in zip(sorted(coverage), weighed.weights, strict=True)
            if weight is not None
        }
        for weighed in effective_weights(rule, LAYERS, clients, coverage, samples)
    }


def test_salf_is_the_mean_of_present_clients_over_one_minus_p() -> None:
    rule = PartialRule("salf", GivenMisses({"first": 0.5, "second": 0.2, "third": 0, "last": 0}))

    found = weights(rule, {"a": depth(2), "b": depth(4), "c": depth(1), "d": depth(3)})

    assert found["first"] == {"b": 1 / (1 - 0.5)}
    assert found["second"] == dict.fromkeys("bd", (1 / 2) / (1 - 0.2))
    assert found["third"] == dict.fromkeys("abd", 1 / 3)
    assert found["last"] == dict.fromkeys("abcd", 1 / 4)


def test_the_other_rules_by_example() -> None:
    coverage = {"a": depth(2), "b": depth(4), "c": depth(4)}
    samples = {"a": 5, "b": 1, "c": 2}

    fedavg, fill, drop = (
        weights(PartialRule(name), coverage, samples) for name in ("fedavg", "fill", "drop")
    )

    assert fedavg["first"] == {"b": 1 / 3, "c": 2 / 3}
    assert fedavg["last"] == {"a": 5 / 8, "b": 1 / 8, "c": 2 / 8}
    assert fill["first"] == {"b": 1 / 5, "c": 1 / 5}
    assert fill["last"] == {"a": 1 / 5, "b": 1 / 5, "c": 1 / 5}
    assert drop["first"] == drop["last"] == {"b": 1 / 3, "c": 2 / 3}


@pytest.mark.parametrize("rule", [PartialRule("salf", UniformDepth()), PartialRule("drop")])
def test_a_layer_that_no_client_covers_has_no_weights(rule: PartialRule) -> None:
    found = weights(rule, {"a": depth(1), "b": depth(3)})

    assert found["first"] == {}
    assert bool(found["last"]) == (rule.name == "salf")


def test_weights_of_complete_updates_are_those_of_fedavg() -> None:
    complete = {client: depth(4) for client in CLIENTS}
    samples = {client: number for number, client in enumerate(CLIENTS, 1)}
    for rule in (
        PartialRule("fedavg"),
        PartialRule("drop"),
        PartialRule("salf", GivenMisses(0.0), by_samples=True),
        PartialRule("salf", GivenMisses(0.0), by_samples=True, balanced=True),
    ):
        for layer in weights(rule, complete, samples).values():
            assert layer == pytest.approx({c: n / 15 for c, n in samples.items()}, rel=1e-15)


@st.composite
def rounds(draw: st.DrawFn) -> tuple[dict[str, Coverage], dict[str, int], dict[str, float]]:
    contributors = draw(st.lists(st.sampled_from(CLIENTS), unique=True, min_size=1))
    coverage = {client: depth(draw(st.integers(1, 4))) for client in contributors}
    samples = {client: draw(st.integers(1, 10**6)) for client in contributors}
    p = {layer.name: draw(st.floats(0, 0.99)) for layer in LAYERS}
    return coverage, samples, p


@given(rounds(), st.booleans())
def test_salf_agrees_with_an_average_written_down_anew(
    round_: tuple[dict[str, Coverage], dict[str, int], dict[str, float]], by_samples: bool
) -> None:
    coverage, samples, p = round_
    rng = np.random.default_rng(sum(samples.values()))
    updates = {client: rng.standard_normal((len(LAYERS), 3)) for client in coverage}

    found = weights(PartialRule("salf", GivenMisses(p), by_samples), coverage, samples)

    for index, layer in enumerate(LAYERS):
        there = [client for client, covered in coverage.items() if covered[index]]
        result = sum(
            (weight * updates[client][index] for client, weight in found[layer.name].items()),
            start=np.zeros(3),
        )
        expected = np.zeros(3)
        if there:
            stack = np.stack([updates[client][index] for client in there])
            counts = [samples[client] for client in there] if by_samples else None
            expected = np.average(stack, axis=0, weights=counts) / (1 - p[layer.name])
        np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
@settings(deadline=None)
def test_expected_shares_are_those_of_trying_every_case(reached: list[float]) -> None:
    assert expected_shares(reached) == pytest.approx(shares_by_cases(reached), abs=1e-12)


def shares_by_cases(reached: Sequence[float]) -> list[float]:
    """E[1 / k if the client is there], summed over all 2^U cases of who is there."""
    shares = [0.0] * len(reached)
    for there in itertools.product((False, True), repeat=len(reached)):
        chance = math.prod(
            q if is_there else 1 - q for q, is_there in zip(reached, there, strict=True)
        )
        for index, is_there in enumerate(there):
            shares[index] += chance / sum(there) if is_there else 0
    return shares


@pytest.mark.parametrize("users", [1, 2, 3, 4, 7, 12, 13, 40])
def test_expected_shares_are_those_of_exact_arithmetic(users: int) -> None:
    rng = np.random.default_rng(users)
    for reached in (rng.random(users), rng.random(users) ** 20, np.round(rng.random(users))):
        exact = shares_of_fractions([Fraction(float(q)) for q in reached])
        for found, share in zip(expected_shares(reached), exact, strict=True):
            assert float(abs(Fraction(found) - share)) <= 4e-15 * float(share)


def shares_of_fractions(reached: Sequence[Fraction]) -> list[Fraction]:
    """The same from the distribution of how many others are there, without rounding."""
    shares = []
    # Numerators over one denominator, which is raised to the number of clients.
    whole = math.lcm(*(q.denominator for q in reached))
    parts = [q.numerator * (whole // q.denominator) for q in reached]
    for index, mine in enumerate(parts):
        chances = [1]
        for part in (*parts[:index], *parts[index + 1 :]):
            padded = [*chances, 0]
            chances = [
                here * (whole - part) + before * part
                for here, before in zip(padded, [0, *chances], strict=True)
            ]
        some = math.lcm(*range(1, len(chances) + 1))
        total = sum(chance * (some // k) for k, chance in enumerate(chances, 1))
        shares.append(Fraction(mine * total, some * whole ** len(parts)))
    return shares


def test_expected_shares_of_hundreds_of_clients_are_those_of_fifty_digits() -> None:
    reached = np.random.default_rng(3).random(300)
    reached[:3] = 0.0, 1.0, 1e-12
    found = expected_shares(reached)
    with decimal.localcontext(prec=50):
        for index in (0, 1, 2, 17, 299):
            others = [Decimal(float(q)) for j, q in enumerate(reached) if j != index]
            chances = [Decimal(1)]
            for q in others:
                padded = [*chances, Decimal(0)]
                chances = [
                    here * (1 - q) + before * q
                    for here, before in zip(padded, [Decimal(0), *chances], strict=True)
                ]
            mean = sum((chance / k for k, chance in enumerate(chances, 1)), Decimal(0))
            exact = float(Decimal(float(reached[index])) * mean)
            assert found[index] == pytest.approx(exact, rel=1e-14, abs=0)


@pytest.mark.slow
@pytest.mark.parametrize("spread", ["even", "certain", "seldom", "sharp"])
def test_expected_shares_of_thousands_of_clients(spread: str) -> None:
    rng = np.random.default_rng(4)
    reached = {
        "even": rng.random(4096),
        "certain": np.ones(4096),  # products down to 1e-27,000 underflow
        "seldom": np.full(4096, 2.0**-20),
        "sharp": rng.random(4096) ** 30,
    }[spread]
    tracemalloc.start()
    began = time.process_time()
    found = expected_shares(reached)
    seconds = time.process_time() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert math.fsum(found) == pytest.approx(1.0 - math.prod(1.0 - reached), rel=1e-9)
    if spread in ("certain", "seldom"):
        assert found == pytest.approx([found[0]] * 4096, rel=0, abs=0)
    assert peak < 2_000_000  # a matrix of all pairs has 134 MB
    assert seconds < 20  # 331 s by the distribution of how many are there


def test_expected_shares_have_the_same_bits_on_every_machine() -> None:
    reached = [index / 129 for index in range(1, 129)]
    found = np.array(expected_shares(reached), "<f8")
    assert hashlib.sha256(found.tobytes()).hexdigest() == GOLDEN


def test_weights_of_thousands_of_clients_take_no_square_of_their_number() -> None:
    clients = [f"c{number:04}" for number in range(4096)]
    probabilities = dict(zip(clients, np.random.default_rng(5).random(4096), strict=True))
    rule = parse_rule(
        {
            "name": "salf",
            "p": {"model": "clients", "reach": {c: float(q) for c, q in probabilities.items()}},
            "balanced": True,
            "by_samples": True,
        }
    )
    coverage = {client: depth(4) for client in clients}
    began = time.process_time()
    weighed = effective_weights(rule, LAYERS, clients, coverage, dict.fromkeys(clients, 7))
    assert time.process_time() - began < 30
    assert len(weighed) == 4


def test_balanced_salf_is_the_plain_one_where_clients_are_alike() -> None:
    coverage = {"a": depth(2), "b": depth(4), "c": depth(1)}
    for reach_model in (UniformDepth(), PoissonDepth(2.5), GivenMisses(0.3)):
        plain, balanced = (
            weights(PartialRule("salf", reach_model, balanced=flag), coverage)
            for flag in (False, True)
        )
        for layer in LAYERS:
            assert plain[layer.name] == pytest.approx(balanced[layer.name], rel=1e-12)


# --- Over many rounds ----------------------------------------------------------------------------

VALUES = np.array([3.0, -1.0, 0.5, 2.0, 7.0])
SAMPLES = dict(zip(CLIENTS, (10, 250, 30, 40, 70), strict=True))
EQUAL = dict.fromkeys(CLIENTS, 1)
UNIFORM = np.arange(1, 5) / 4
SLOW_AND_FAST = {"a": 0.75, "b": 0.5, "c": 0.55, "d": 0.6, "e": 0.95}
"""The probability of going on to the next layer, having reached one: the depth is geometric."""


def uniform_depths(rng: np.random.Generator) -> Any:
    return rng.integers(1, 5, (ROUNDS, len(CLIENTS)))


def geometric_depths(rng: np.random.Generator) -> Any:
    going_on = np.array(list(SLOW_AND_FAST.values()))
    return (rng.random((ROUNDS, 4, len(CLIENTS))) < going_on).cumprod(axis=1).sum(axis=1)


GEOMETRIC = ClientReach(
    {
        client: {layer.name: q**number for number, layer in enumerate(reversed(LAYERS), 1)}
        for client, q in SLOW_AND_FAST.items()
    }
)

RESULTS: dict[str, Callable[[tuple[int, ...]], Any]] = {}
"""For each rule and samples, the result by what clients reach: other seeds take it again."""


def simulate(rule: PartialRule, depths: Any, samples: Mapping[str, int]) -> tuple[Any, Any]:
    """The mean result of each layer over many rounds, and its standard error."""

    @functools.cache
    def compute(reached: tuple[int, ...]) -> Any:
        coverage = {c: depth(d) for c, d in zip(CLIENTS, reached, strict=True) if d}
        found = weights(rule, coverage, samples)
        return np.array(
            [sum(w * VALUES[CLIENTS.index(c)] for c, w in found[la.name].items()) for la in LAYERS]
        )

    result = RESULTS.setdefault(f"{rule} {samples}", compute)
    results = np.array([result(tuple(row)) for row in depths.tolist()], dtype=float)
    return results.mean(axis=0), results.std(axis=0, ddof=1) / math.sqrt(ROUNDS)


def assert_mean(simulated: tuple[Any, Any], expected: Any) -> None:
    mean, error = simulated
    assert np.all(np.abs(mean - expected) <= 4 * error + 1e-9), (mean, expected, error)


def assert_biased(simulated: tuple[Any, Any], full: float) -> None:
    """All layers but the last one are, by far more than chance makes of it."""
    mean, error = simulated
    assert np.all(np.abs(mean - full)[:-1] > 6 * error[:-1]), (mean, full, error)


@pytest.mark.parametrize("seed", [1, 2])
def test_salf_is_unbiased_for_uniform_depths_and_the_others_are_off_as_predicted(seed: int) -> None:
    depths = uniform_depths(np.random.default_rng(seed))
    full = VALUES.mean()
    somebody = 1 - (1 - UNIFORM) ** len(CLIENTS)

    salf = simulate(PartialRule("salf", UniformDepth()), depths, EQUAL)
    fedavg, fill, drop = (
        simulate(PartialRule(name), depths, EQUAL) for name in ("fedavg", "fill", "drop")
    )

    assert_mean(salf, full)
    assert_mean(fedavg, full * somebody)
    assert_mean(fill, full * UNIFORM)
    # Someone has to reach the first layer.
    assert_mean(drop, full * somebody[0])
    assert_biased(fill, full)
    assert_biased(drop, full)
    assert abs(fedavg[0][0] - full) > 6 * fedavg[1][0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 4])
def test_balanced_salf_is_unbiased_for_unequal_clients_and_plain_is_off_as_predicted(
    seed: int,
) -> None:
    depths = geometric_depths(np.random.default_rng(seed))
    full = VALUES.mean()
    reached = np.array([GEOMETRIC.reach(client, LAYERS) for client in CLIENTS])

    balanced = simulate(PartialRule("salf", GEOMETRIC, balanced=True), depths, EQUAL)
    plain = simulate(PartialRule("salf", GEOMETRIC), depths, EQUAL)
    fill = simulate(PartialRule("fill"), depths, EQUAL)
    fedavg = simulate(PartialRule("fedavg"), depths, EQUAL)

    shares = np.array([shares_by_cases(q) for q in reached.T])
    assert_mean(balanced, full)
    assert_mean(plain, shares @ VALUES / shares.sum(axis=1))
    assert_mean(fedavg, shares @ VALUES)
    assert_mean(fill, reached.T @ VALUES / len(CLIENTS))
    for biased in (plain, fill):
        assert_biased(biased, full)


@pytest.mark.slow
def test_balanced_salf_is_unbiased_for_clients_unequal_in_samples() -> None:
    total = sum(SAMPLES.values())
    full = sum(n * value for n, value in zip(SAMPLES.values(), VALUES, strict=True)) / total
    rng = np.random.default_rng(5)
    for reach_model, depths in (
        (UniformDepth(), uniform_depths(rng)),
        (GEOMETRIC, geometric_depths(rng)),
    ):
        balanced, plain = (
            simulate(PartialRule("salf", reach_model, True, flag), depths, SAMPLES)
            for flag in (True, False)
        )

        assert_mean(balanced, full)
        assert_biased(plain, full)


# --- p -------------------------------------------------------------------------------------------


def test_p_of_uniform_depth_is_the_papers_formula() -> None:
    expected = [(1 - number / 4) ** 5 for number in range(1, 5)]

    assert misses(UniformDepth(), CLIENTS, LAYERS) == pytest.approx(expected, abs=1e-15)


def test_p_of_poisson_depth_is_the_chance_of_too_few_layers_everywhere() -> None:
    means = dict(zip(CLIENTS, (0.5, 1.0, 2.0, 4.0, 8.0), strict=True))
    rng = np.random.default_rng(6)
    depths = rng.poisson(list(means.values()), (200_000, len(CLIENTS))).max(axis=1)

    found = misses(PoissonDepth(means), CLIENTS, LAYERS)

    for layers_missed, p in enumerate(found):
        needed = len(LAYERS) - layers_missed
        assert p == pytest.approx((depths < needed).mean(), abs=4 * math.sqrt(p / 200_000))


def test_p_of_unequal_clients_is_the_product_of_their_misses() -> None:
    reach = ClientReach({"a": 0.5, "b": {"first": 0.0, "second": 0.5, "third": 1.0, "last": 1.0}})

    assert misses(reach, ["a", "b"], LAYERS) == [0.5, 0.25, 0.0, 0.0]


def test_clients_known_by_number_only_count_where_all_are_alike() -> None:
    assert misses(UniformDepth(), [None] * 5, LAYERS) == misses(UniformDepth(), CLIENTS, LAYERS)
    with pytest.raises(SpecError, match="mean is given by client, but some"):
        misses(PoissonDepth({"a": 1.0}), ["a", None], LAYERS)


def test_balanced_salf_takes_a_client_not_expected_by_name() -> None:
    rule = PartialRule("salf", UniformDepth(), balanced=True)

    named = weights(rule, {"a": depth(4), "b": depth(2)})
    unnamed = weights(rule, {"a": depth(4), "b": depth(2)}, clients=["a", *[None] * 4])

    assert unnamed == named


def test_reach_is_estimated_from_past_rounds_by_laplaces_rule() -> None:
    last = frozenset({"a", "b"})
    past = [
        PastRound(frozenset("abc"), {"last": last, "third": frozenset("a")}),
        PastRound(frozenset("ab"), {"last": frozenset("a"), "third": frozenset("a")}),
    ]

    reach = estimate_reach(past, ["a", "b", "c", "new"], LAYERS)

    assert reach.reach("a", LAYERS) == [1 / 4, 1 / 4, 3 / 4, 3 / 4]
    assert reach.reach("b", LAYERS) == [1 / 4, 1 / 4, 1 / 4, 2 / 4]
    assert reach.reach("c", LAYERS) == [1 / 3, 1 / 3, 1 / 3, 1 / 3]
    assert reach.reach("new", LAYERS) == [1 / 2] * 4
    assert misses(reach, ["a", "b"], LAYERS)[-1] == (1 - 3 / 4) * (1 - 2 / 4)


def test_estimates_approach_the_truth() -> None:
    depths = geometric_depths(np.random.default_rng(7))[:5000]
    past = [
        PastRound(
            frozenset(CLIENTS),
            {
                layer.name: frozenset(
                    client
                    for client, reached in zip(CLIENTS, row, strict=True)
                    if depth(reached)[index]
                )
                for index, layer in enumerate(LAYERS)
            },
        )
        for row in depths.tolist()
    ]

    estimated = misses(estimate_reach(past, CLIENTS, LAYERS), CLIENTS, LAYERS)

    assert estimated == pytest.approx(misses(GEOMETRIC, CLIENTS, LAYERS), abs=0.02)


# --- What is rejected -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "text"),
    [
        (1, "p is 1, not a probability from 0 to under 1"),
        (1.5, r"p is 1\.5"),
        (-0.1, r"p is -0\.1"),
        (math.nan, "p is nan"),
        (True, "p is True"),
        ("half", "p is 'half'"),
        ({"first": 0.5, "last": 1.0}, r"p of layer 'last' is 1\.0"),
        ({"model": "normal"}, "the model of p is 'normal'"),
        ({"model": "poisson"}, "poisson with mean"),
        ({"model": "poisson", "mean": -1}, "mean is -1, not a number of at least 0"),
        ({"model": "poisson", "mean": {"a": math.inf}}, "mean, 'a' is inf"),
        ({"model": "clients", "reach": 0.5}, r"reach is 0\.5"),
        (
            {"model": "clients", "reach": {"a": 1.1}},
            r"client 'a' is 1\.1, not a number from 0 to 1",
        ),
        ({"model": "clients", "reach": {"a": {"last": 2}}}, "client 'a', 'last' is 2"),
        ({"model": "uniform", "depth": 3}, "'uniform' with depth, model"),
    ],
)
def test_a_p_that_makes_no_sense_is_rejected_with_its_number(stated: Any, text: str) -> None:
    with pytest.raises(SpecError, match=text):
        parse_reach_model(stated)


@pytest.mark.parametrize(
    ("reach_model", "text"),
    [
        (GivenMisses({"first": 0.5}), "p is missing for layer 'second'"),
        (GivenMisses({"fc": 0.5}), "there is no layer 'fc'; there are first, second, third, last"),
        (ClientReach({"a": 0.5}), "reach is missing for client 'b'; it has 1 others"),
        (
            ClientReach(dict.fromkeys(CLIENTS, 0.0)),
            r"p of layer 'first' is 1\.0: none of the 5 clients would ever reach it",
        ),
        (PoissonDepth(0.0), r"p of layer 'first' is 1\.0"),
    ],
)
def test_a_p_that_does_not_fit_the_round_is_rejected(
    reach_model: GivenMisses | ReachModel, text: str
) -> None:
    with pytest.raises(SpecError, match=text):
        misses(reach_model, CLIENTS, LAYERS)


@pytest.mark.parametrize("least", [1e-310, 1e-205])
def test_a_reach_that_gives_a_huge_weight_is_rejected(least: float) -> None:
    reach = ClientReach({"a": 1.0, "b": least})
    rule = PartialRule("salf", reach, balanced=True)

    with pytest.raises(SpecError, match=r"'b' gives .* share of layer 'last', .* larger"):
        effective_weights(
            rule, LAYERS, ["a", "b"], {"b": (False,) * (len(LAYERS) - 1) + (True,)}, {"b": 1}
        )


def test_a_layer_reached_by_a_client_that_never_reaches_it_is_rejected() -> None:
    reach = ClientReach({"a": 1.0, "b": 0.0})
    rule = PartialRule("salf", reach, balanced=True)

    with pytest.raises(SpecError, match="reach of client 'b' is 0 for layer 'last'"):
        weights(rule, {"b": depth(1)}, clients=["a", "b"])


def test_a_contributor_that_is_no_client_is_rejected() -> None:
    with pytest.raises(SpecError, match="contributor 'z' is none of the 5 clients"):
        weights(PartialRule("fill"), {"z": depth(1)})


def test_salf_rejects_holes_and_the_other_rules_average_around_them() -> None:
    coverage = {"a": (True, False, True, True), "b": depth(4)}

    with pytest.raises(UpdateError, match="it holds layer 'first', but not 'second'"):
        weights(PartialRule("salf", UniformDepth()), coverage)
    assert weights(PartialRule("fedavg"), coverage)["second"] == {"b": 1.0}
    assert weights(PartialRule("fill"), coverage)["first"] == {"a": 0.2, "b": 0.2}
    assert weights(PartialRule("drop"), coverage)["last"] == {"b": 1.0}


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "salf", "p": 0.25},
        {"name": "salf", "p": {"first": 0.25, "last": 0.0}, "by_samples": True},
        {"name": "salf", "p": {"model": "uniform"}, "by_samples": True, "balanced": True},
        {"name": "salf", "p": {"model": "poisson", "mean": {"a": 2.0}}},
        {"name": "salf", "p": {"model": "clients", "reach": {"a": 0.5, "b": {"last": 1.0}}}},
        {"name": "fedavg"},
        {"name": "fill"},
        {"name": "drop"},
    ],
)
def test_rules_are_read_back_as_they_were_written(fields: dict[str, Any]) -> None:
    assert json.loads(json.dumps(parse_rule(fields).to_json())) == fields


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"name": "krum"}, "rule is 'krum', not one of salf, fedavg, fill, drop"),
        ({"name": "salf"}, "rule salf needs p"),
        ({"name": "fill", "p": 0.5}, "are of rule salf, not of fill"),
        ({"name": "salf", "p": 0.5, "balanced": 1}, "balanced is 1, not true or false"),
        ({"name": "salf", "q": 0.5}, "unknown field 'q'"),
    ],
)
def test_rules_that_make_no_sense_are_rejected(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        parse_rule(fields)
