"""The options of a training: declared and checked here, for the command line and the functions."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from gradshard_core.aggregation.server_optimizers import ServerOptimizer
from gradshard_core.errors import SpecError
from gradshard_core.planning.option_parsers import MAX_CLIENTS, parse_clients
from gradshard_core.planning.options import (
    Duration,
    Option,
    Parsed,
    WholeNumber,
    check_names,
    defaults_of,
    option,
    options_of,
    stated_options,
)
from gradshard_core.planning.spec import DEFAULTS as ROUND_DEFAULTS
from gradshard_core.planning.spec import RoundSpec, parse_new_spec
from gradshard_core.planning.training_rules import (
    Budget,
    Schedule,
    StopRule,
    parse_budget,
    parse_schedules,
    parse_stop_rule,
)

MAX_ROUNDS: Final = 99_999
"""The ids of rounds have five digits."""

MAX_SPEC_BYTES: Final = 96 * 1024
"""A training's options as JSON. They go through the state machine, whose payloads may have 256 KiB,
beside the options of a round, which have the clients again."""

DECIDED: Final = ("clients", "enough_clients", "eager", "updates_from", "layout")
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
            raise SpecError(f"round has {name!r}, which the training decides: leave it out")
    if given.get("server_optimizer") is None:
        raise SpecError(
            "server_optimizer is missing: a training makes versions of a model, for example with "
            "fedavg"
        )
    at_least = given.get("min_clients", 1)
    if not isinstance(at_least, int) or not 1 <= at_least <= MAX_CLIENTS:
        at_least = 1  # parse_spec says what is wrong
    parse_new_spec({**given, "clients": at_least})
    return given


def parse_sample(sample: Any) -> float:
    """Check how many clients are invited: a number, or a fraction below one."""
    is_number = isinstance(sample, int | float) and not isinstance(sample, bool)
    if is_number and ((isinstance(sample, int) and 1 <= sample <= MAX_CLIENTS) or 0 < sample < 1):
        return sample  # type: ignore[no-any-return]
    raise SpecError(
        f"sample is {sample!r}, neither a whole number of clients from 1 to {MAX_CLIENTS} nor a "
        "fraction between 0 and 1"
    )


def parse_over_selection(share: Any) -> float:
    """Check by which share more clients are invited than are awaited."""
    is_number = isinstance(share, int | float) and not isinstance(share, bool)
    if not is_number or not 0 <= share <= 4:
        raise SpecError(f"over_selection is {share!r}, not a number from 0 to 4")
    return float(share)


def parse_ids(clients: Any) -> tuple[str, ...]:
    """Check the ids of a fixed list of clients."""
    ids = parse_clients(clients)
    if isinstance(ids, int):
        raise SpecError(
            f"clients is {ids}: give their ids; for everybody who joins leave it out, and give "
            "sample for a number of them"
        )
    return ids


@dataclass(frozen=True)
class TrainingSpec:
    """The options of a training, checked; each field declares one, as in a round's spec."""

    rounds: int = option(
        WholeNumber(1, MAX_ROUNDS),
        "End the training after this number of completed rounds.",
        default="required",
        is_always_stated=True,
    )
    round: Mapping[str, Any] = option(
        Parsed(
            parse_round_options,
            "object with the options of a round, all but "
            + ", ".join(f"`{name}`" for name in DECIDED),
            metavar="JSON",
            is_json=True,
            encoder=dict,
        ),
        "Options of each round; server_optimizer is required.",
        default="required",
        is_always_stated=True,
    )
    clients: tuple[str, ...] | None = option(
        Parsed(parse_ids, "list of ids", encoder=list),
        "The clients that take part, by their ids.",
        value=None,
        default="everybody who has joined",
    )
    sample: float | None = option(
        Parsed(
            parse_sample,
            f"whole number from 1 to {MAX_CLIENTS:,}, or a fraction below 1",
            metavar="N",
            is_number=True,
        ),
        "Invite this number, or fraction, of the clients to each round.",
        value=None,
        default="all",
    )
    over_selection: float = option(
        Parsed(parse_over_selection, "number from 0 to 4", metavar="SHARE", is_number=True),
        "Invite more clients by this share, and go on when as many as without it have sent "
        "updates: 0.3 invites 130 %.",
        value=0.0,
    )
    seed: int = option(
        WholeNumber(0, 2**53),
        "Seed of the sampling: with the same clients and seed the same ones are invited.",
        value=0,
        is_always_stated=True,
    )
    settings: Mapping[str, Schedule] | None = option(
        Parsed(
            parse_schedules,
            "object with a number or text for each setting, or with a schedule: "
            '`{"1": 0.1, "30": 0.01}` by round, or `{"start": 0.1, "decay": 0.98}`',
            metavar="JSON",
            is_json=True,
            encoder=lambda found: {name: schedule.stated for name, schedule in found.items()},
        ),
        'What clients get as settings, for example {"epochs": 1, "learning_rate": {"start": 0.1, '
        '"decay": 0.98}}.',
        value=None,
        default="none",
    )
    evaluate_every: int | None = option(
        WholeNumber(1, MAX_ROUNDS),
        "After each of this number of rounds, clients evaluate the model.",
        value=None,
        default="never",
    )
    stop: StopRule | None = option(
        Parsed(
            parse_stop_rule,
            "object with `metric`, and `at_least` or `at_most`, and `patience`",
            metavar="JSON",
            is_json=True,
            encoder=StopRule.to_json,
        ),
        'End the training early by a metric, for example {"metric": "accuracy", "at_least": 0.95, '
        '"patience": 10}.',
        value=None,
        default="only after all rounds",
    )
    budget: Budget | None = option(
        Parsed(
            parse_budget,
            "object with `dollars` or `seconds`, or both",
            metavar="JSON",
            is_json=True,
            encoder=Budget.to_json,
        ),
        'End the training before it exceeds this, for example {"dollars": 2, "seconds": 86400}.',
        value=None,
        default="no limit",
    )
    repeats: int = option(
        WholeNumber(0, 20),
        "Repeat a round that fails this often; then the training pauses.",
        value=2,
    )
    repeat_after: float = option(
        Duration(24 * 3600, "1d", is_whole=True),
        "Wait this long before a failed round is repeated.",
        value=10,
    )
    poll_seconds: float = option(
        Duration(3600, "1h"),
        "How often clients look whether they are invited.",
        value=5,
        is_always_stated=True,
    )

    def invited(self, members: int) -> tuple[int, int]:
        """Return how many of the members are invited to a round, and how many are awaited."""
        wanted = members if self.sample is None else self.sample
        if wanted < 1:
            wanted = max(1, round(wanted * members))
        awaited = min(int(wanted), members, MAX_CLIENTS)
        more = math.ceil(awaited * (1 + self.over_selection))
        return min(more, members, MAX_CLIENTS), awaited

    def needed(self) -> int:
        """Return the fewest members with which a round can be opened."""
        at_least = int(self.round.get("min_clients", 1))
        return max(at_least, 1 if self.sample is None or self.sample < 1 else int(self.sample))

    def round_spec(self, clients: tuple[str, ...], awaited: int, after: str | None) -> RoundSpec:
        """Return the spec of a round for these clients.

        Parameters
        ----------
        clients
            Whom the round invites.
        awaited
            The number of updates that the round waits for.
        after
            The round before, whose assignments the clients follow; None for the first one.
        """
        fields: dict[str, Any] = {"min_clients": awaited // 2 + 1, **self.round}
        fields["clients"] = list(clients)
        if awaited < len(clients):
            fields["enough_clients"] = awaited
        if fields.get("assignments") is not None and after is not None:
            fields["assignments"] = {**fields["assignments"], "after": after}
        return parse_new_spec(fields)

    @cached_property
    def terms(self) -> RoundSpec:
        """The options that all rounds have, whoever is invited."""
        return parse_new_spec({**self.round, "clients": self.needed()})

    @property
    def server_optimizer(self) -> ServerOptimizer:
        """The rule by which rounds make versions of the model."""
        found = self.terms.server_optimizer
        assert found is not None  # noqa: S101 - for mypy: parse_round_options wants one
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the spec as the JSON that :func:`parse_training_spec` reads."""
        return stated_options(self)


OPTIONS: Final[Mapping[str, Option]] = options_of(TrainingSpec)
"""The options of a training by name, in the order in which help and documentation list them."""

DEFAULTS: Final[Mapping[str, Any]] = defaults_of(TrainingSpec)
"""The values of the options that may be left out."""


def parse_training_spec(fields: Mapping[str, Any]) -> TrainingSpec:
    """Check the options of a training.

    Parameters
    ----------
    fields
        The fields of :class:`TrainingSpec` as JSON holds them; None stands for the default.

    Raises
    ------
    SpecError
        A field is unknown, missing or out of its bounds, or does not go with another.
    """
    check_names(fields, OPTIONS, "training")
    given = {name: value for name, value in fields.items() if value is not None}
    for name in ("rounds", "round"):
        if name not in given:
            raise SpecError(f"{name} is missing from the training's options")
    spec = TrainingSpec(**{n: OPTIONS[n].kind.parse(n, value) for n, value in given.items()})
    _check(spec)
    nbytes = len(json.dumps(spec.to_json()))
    if nbytes > MAX_SPEC_BYTES:
        raise SpecError(
            f"the training's options are {nbytes} bytes of JSON, over {MAX_SPEC_BYTES}: let "
            "clients join instead of listing them, or shorten their ids"
        )
    return spec


def _check(spec: TrainingSpec) -> None:
    """Check what depends on more than one field."""
    if spec.clients is not None and spec.needed() > len(spec.clients):
        raise SpecError(
            f"{spec.needed()} clients are needed for a round, and clients has "
            f"{len(spec.clients)}: lower sample or min_clients"
        )
    if spec.over_selection and spec.sample is None:
        raise SpecError("over_selection is for sampling: give sample, too")
