"""Patterns of the policies, for ids that were chosen to make them match something else.

A ``*`` of IAM crosses slashes. In a pattern of ours the first one stands for one round or model, so
a pattern must match the same objects when it is read like that.
"""

import fnmatch
import itertools
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from gradshard_core.errors import SpecError
from gradshard_core.formats.object_keys import (
    RESERVED_CLIENTS,
    ModelKeys,
    RoundKeys,
    TrainingKeys,
    check_id,
    is_client,
)

ROOT = Path(__file__).parents[3]

OWN = {
    Path(key).stem
    for key in vars(RoundKeys("r")).values()
    if key.startswith("rounds/r/") and key.count("/") == 2 and not key.endswith("/")
}

HOSTILE = [
    *("a", "b", "c.safetensors", "a.json", "00000", "0", "1", "tasks", "updates", "update.json"),
    *("partial-updates", "rejections", "replans", "task-reports", "partial-sums"),
    *("measurements", "decisions", "secrets", "noise", "pieces", "arrived", "metrics", "holders"),
    *("rounds", "models", "versions"),
    *("puts", "current", "model", "momentum", "arn", "BUCKET", *sorted(OWN)),
]
CLIENTS = [name for name in HOSTILE if is_client(name)]
ROUNDS = [name for name in HOSTILE if "." not in name]


def round_keys(name: str) -> Iterator[str]:
    keys = RoundKeys(name)
    yield from (key for key in vars(keys).values() if "/" in key and not key.endswith("/"))
    for client in CLIENTS:
        yield from (keys.update(client), keys.partial_update(client), keys.rejection(client))
    yield from (keys.tasks(0), keys.task_report(0, 1), keys.partial_sum(0, 0, 1), keys.replan(1))
    yield from (
        keys.measurement(0),
        keys.decision(1),
        keys.decided("0a1b"),
        keys.piece("0a1b"),
        keys.expected("0a1b"),
        keys.arrivals(0),
        keys.surveyed_metrics(0),
    )


def model_keys(name: str) -> Iterator[str]:
    keys = ModelKeys(name)
    yield from (keys.current, keys.version(1), keys.put("a1"), keys.training, keys.ledger)
    for round_ in ROUNDS:
        yield from (keys.next_model(round_), keys.state(round_, "momentum"))


def training_keys(name: str) -> Iterator[str]:
    keys = TrainingKeys(name)
    yield from (keys.spec, keys.state, keys.piece("0a1b"))
    yield from (keys.renewal_for(first, last) for first in CLIENTS for last in CLIENTS[:2])
    for client in CLIENTS:
        yield from (keys.member(client), keys.notice(client), keys.renewal(client))
    yield from (keys.record(keys.round_id(1, n, is_evaluation=n > 0)) for n in range(2))


KEYS = [key for name in ROUNDS for key in round_keys(name)]
KEYS += [key for name in HOSTILE for key in model_keys(name)]
KEYS += [key for name in ROUNDS for key in training_keys(name)]


@cache
def matched(pattern: str) -> set[str]:
    regex = re.compile(fnmatch.translate(pattern))
    return {key for key in KEYS if regex.match(key)}


@cache
def meant(pattern: str) -> set[str]:
    """What a pattern matches if its first ``*`` stands for one id."""
    folder, star, rest = pattern.partition("/*/")
    if not star:
        return matched(pattern)
    regex = re.compile(f"{re.escape(folder)}/[^/]+/(?:{fnmatch.translate(rest)})")
    return {key for key in KEYS if regex.match(key)}


def template_patterns() -> set[str]:
    text = (ROOT / "template.yaml").read_text()
    return set(re.findall(r"\$\{Bucket\.Arn\}/((?:rounds|models|trainings)/\S+)", text))


def client_patterns(client: str) -> set[str]:
    policy = json.loads((ROOT / "docs" / "client-policy.json").read_text())
    resources = itertools.chain.from_iterable(
        s["Resource"] if isinstance(s["Resource"], list) else [s["Resource"]]
        for s in policy["Statement"]
    )
    names = {"ROUND": "*", "TRAINING": "*", "CLIENT": client}
    filled = (re.sub("|".join(names), lambda found: names[found[0]], r) for r in resources)
    return {r.removeprefix("arn:aws:s3:::BUCKET/") for r in filled if "/" in r}


def test_the_reserved_ids_are_those_of_a_rounds_own_objects() -> None:
    assert OWN == RESERVED_CLIENTS
    for name in OWN:
        with pytest.raises(SpecError, match=f"client id '{name}' is the name of an object"):
            check_id("client", name)
        assert check_id("round", name) == name
        assert not is_client(name)


@pytest.mark.parametrize("pattern", sorted(template_patterns()))
def test_a_pattern_of_a_role_matches_only_the_named_objects(pattern: str) -> None:
    assert matched(pattern) == meant(pattern) != set()


@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS)
def test_a_clients_patterns_match_nothing_of_others(client: str) -> None:
    found = set().union(*map(matched, client_patterns(client)))
    others = {
        key
        for key in KEYS
        if re.match(r"rounds/[^/]+/(updates|progress|rejected)/", key)
        and key.split("/", 3)[3] not in {f"{client}.safetensors", f"{client}.json"}
    }
    assert not found & others
    for pattern in client_patterns(client):
        assert matched(pattern) == meant(pattern) != set()


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_may_write_only_its_own_objects(client: str) -> None:
    policy = json.loads((ROOT / "docs" / "client-policy.json").read_text())
    writing = [s["Resource"] for s in policy["Statement"] if "s3:PutObject" in s["Action"]]
    assert len(writing) == 2
    for resource in itertools.chain(*(r if isinstance(r, list) else [r] for r in writing)):
        filled = re.sub("ROUND|TRAINING", "*", resource).replace("CLIENT", client)
        found = matched(filled.removeprefix("arn:aws:s3:::BUCKET/"))
        assert found <= {
            key
            for name in ROUNDS
            for key in (
                RoundKeys(name).update(client),
                RoundKeys(name).partial_update(client),
                TrainingKeys(name).member(client),
            )
        }
