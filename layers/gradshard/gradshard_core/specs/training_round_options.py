"""The options of a training's rounds, and which of them the training decides."""

from collections.abc import Mapping
from typing import Any, Final

from gradshard_core.aggregation.topologies import MAX_FAN_IN
from gradshard_core.errors import SpecError
from gradshard_core.limits.own_limits import MAX_CLIENTS, MAX_NAMED
from gradshard_core.specs.masking_options import LEAST_MASKED, check_unused
from gradshard_core.specs.round_spec import DEFAULTS as ROUND_DEFAULTS
from gradshard_core.specs.round_spec import RoundSpec
from gradshard_core.specs.round_spec_checks import parse_new_spec

DECIDED: Final = ("clients", "enough_clients", "eager", "updates_from", "layout", "inbox")
"""Options of rounds that a training decides, or that do not go with one."""


def parse_round_options(options: Any) -> Mapping[str, Any]:
    """Check the options of a training's rounds, all but the clients."""
    if not isinstance(options, Mapping):
        raise SpecError(f"round is {options!r}, not an object with options of a round")
    given = {
        name: value
        for name, value in options.items()
        if value is not None and value != ROUND_DEFAULTS.get(name)
    }
    for name in DECIDED:
        if name in given:
            raise SpecError(
                f"round has {name!r}, which the training decides or cannot have: leave it out"
            )
    if given.get("server_optimizer") is None:
        raise SpecError(
            "server_optimizer is missing: a training makes versions of a model, for example with "
            "fedavg"
        )
    for name, instead in (("tree", "noise_tree"), ("draw", "secret_sample")):
        if isinstance(given.get("dp"), Mapping) and name in given["dp"]:
            raise SpecError(
                f"round: dp has {name!r}, which the training states: give {instead} instead"
            )
    if "masked" in given:
        check_unused(given)  # before other checks ask for more clients, say
    terms_of_fewest(given)
    return given


def terms_of_fewest(options: Mapping[str, Any]) -> RoundSpec:
    """Return the spec of a training's round for the fewest clients that its options allow.

    A robust rule needs a few, and so do masks and ``min_clients``.
    """
    if options.get("masked") is not None:
        fewest = options.get("min_clients") or LEAST_MASKED
        return parse_new_spec({**options, "clients": roster_of(fewest)})
    at_least = options.get("min_clients", 1)
    if not isinstance(at_least, int) or not 1 <= at_least <= MAX_CLIENTS:
        at_least = 1  # parse_spec says what is wrong
    for clients in range(at_least, MAX_FAN_IN):
        try:
            return parse_new_spec({**options, "clients": clients})
        except SpecError:
            continue  # more may do
    return parse_new_spec({**options, "clients": max(at_least, MAX_FAN_IN)})


def roster_of(clients: Any) -> list[str] | Any:
    """Return ids for a number of clients, since masked rounds have no numbers of them."""
    is_number = type(clients) is int and 1 <= clients <= MAX_NAMED
    return [str(number) for number in range(clients)] if is_number else ["0", "1"]
