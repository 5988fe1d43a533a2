"""The options of a training: declared and checked here, for the command line and the functions."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from gradshard_core.aggregation.noise_tree import MAX_LEAVES, Place
from gradshard_core.aggregation.server_optimizers import LINEAR, ServerOptimizer
from gradshard_core.aggregation.topologies import MAX_FAN_IN
from gradshard_core.errors import SpecError
from gradshard_core.planning.masking import (
    LEAST_MASKED,
    NOT_IN_MASKED_TRAININGS,
    NOT_MASKED,
    check_unused,
)
from gradshard_core.planning.option_parsers import (
    MAX_CLIENTS,
    MAX_EXPONENT,
    MAX_NAMED,
    InboxSpec,
    parse_clients,
    parse_exponent,
)
from gradshard_core.planning.options import (
    REQUIRED,
    Choice,
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
from gradshard_core.planning.spec import RoundSpec
from gradshard_core.planning.spec_parsing import default_quorum, parse_new_spec
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

SYNCHRONOUS: Final = "synchronous"
BUFFERED: Final = "buffered"

DEFAULT_STALENESS: Final = 10
DEFAULT_EXPONENT: Final = 0.5
"""Those of FedBuff's authors, for the exponent (https://arxiv.org/abs/2106.06639, section 5)."""

MAX_BUFFER: Final = 1024
MAX_STALENESS: Final = 1000

MAX_COUNTED: Final = 4096
"""Updates of the last versions that the state of a buffered training names, so that none counts
twice, and clients that took part in a tree of noise. Each takes up to 90 bytes, and every client
reads the state whenever it looks."""

MAX_SPEC_BYTES: Final = 96 * 1024
"""A training's options as JSON. They go through the state machine, whose payloads may have 256 KiB,
beside the options of a round, which have the clients again."""

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
    if isinstance(given.get("dp"), Mapping) and "tree" in given["dp"]:
        raise SpecError("round: dp has 'tree', which the training states: give noise_tree instead")
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
        return parse_new_spec({**options, "clients": _roster_of(fewest)})
    at_least = options.get("min_clients", 1)
    if not isinstance(at_least, int) or not 1 <= at_least <= MAX_CLIENTS:
        at_least = 1  # parse_spec says what is wrong
    for clients in range(at_least, MAX_FAN_IN):
        try:
            return parse_new_spec({**options, "clients": clients})
        except SpecError:
            continue  # more may do
    return parse_new_spec({**options, "clients": max(at_least, MAX_FAN_IN)})


def _roster_of(clients: Any) -> list[str] | Any:
    """Return ids for a number of clients, since masked rounds have no numbers of them."""
    is_number = type(clients) is int and 1 <= clients <= MAX_NAMED
    return [str(number) for number in range(clients)] if is_number else ["0", "1"]


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
    return tuple(ids)


@dataclass(frozen=True)
class TrainingSpec:
    """The options of a training, checked; each field declares one, as in a round's spec."""

    rounds: int = option(
        WholeNumber(1, MAX_ROUNDS),
        "End the training after this number of completed rounds.",
        default=REQUIRED,
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
        default=REQUIRED,
        is_always_stated=True,
    )
    mode: str = option(
        Choice((SYNCHRONOUS, BUFFERED)),
        "How clients take part. synchronous: they are invited to one round after another. "
        "buffered: each trains at its own pace, and every buffer of updates makes a version of the "
        "model.",
        value=SYNCHRONOUS,
    )
    buffer: int | None = option(
        WholeNumber(1, MAX_BUFFER),
        "Number of updates that make a version of the model in buffered mode.",
        value=None,
        default="required in buffered mode",
    )
    updates_per_client: int = option(
        WholeNumber(1, MAX_BUFFER),
        "Take this number of updates of a client into a buffer, each from another version of the "
        "model, in buffered mode.",
        value=1,
    )
    max_staleness: int | None = option(
        WholeNumber(0, MAX_STALENESS),
        "Reject updates that began more than this number of versions before the current one.",
        value=None,
        default=f"{DEFAULT_STALENESS} in buffered mode",
    )
    staleness_exponent: float | None = option(
        Parsed(
            parse_exponent,
            f"number from 0 to {MAX_EXPONENT}",
            metavar="A",
            is_number=True,
        ),
        "Weigh an update that began t versions ago by (1 + t)^-A; 0 weighs all alike.",
        value=None,
        default=f"{DEFAULT_EXPONENT} in buffered mode",
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
        "Invite this share of clients in addition to the sample: 0.3 invites 30 % more. A round "
        "goes on when it has as many updates as the sample has clients.",
        value=0.0,
    )
    seed: int = option(
        WholeNumber(0, 2**53),
        "Seed of the sampling. The same seed and clients give the same invitations.",
        value=0,
        is_always_stated=True,
    )
    noise_tree: int | None = option(
        WholeNumber(2, MAX_LEAVES),
        "Let the noise of private rounds cancel in trees of this number of rounds. Each client is "
        "invited once in a tree. Needs dp and a whole number as sample.",
        value=None,
        default="noise stays in the model",
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
        'Settings that clients get, for example {"epochs": 1, "learning_rate": {"start": 0.1, '
        '"decay": 0.98}}.',
        value=None,
        default="none",
    )
    evaluate_every: int | None = option(
        WholeNumber(1, MAX_ROUNDS),
        "Have clients evaluate the model each time this number of rounds has completed.",
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
        'End the training before it exceeds this budget, for example {"dollars": 2, '
        '"seconds": 86400}.',
        value=None,
        default="no limit",
    )
    repeats: int = option(
        WholeNumber(0, 20),
        "Repeat a failed round at most this number of times, then pause the training.",
        value=2,
    )
    repeat_after: float = option(
        Duration(24 * 3600, "1d", is_whole=True),
        "Wait this long before a failed round is repeated.",
        value=10,
    )
    poll_seconds: float = option(
        Duration(3600, "1h"),
        "Time after which a client looks for an invitation again.",
        value=5,
        is_always_stated=True,
    )

    @property
    def is_buffered(self) -> bool:
        """Whether clients train at their own pace."""
        return self.mode == BUFFERED

    @property
    def staleness(self) -> int:
        """The most versions that may have been made since an update began."""
        return DEFAULT_STALENESS if self.max_staleness is None else self.max_staleness

    def needed(self) -> int:
        """Return the fewest members with which a round can be opened."""
        if self.is_buffered:
            return int(self.round.get("min_clients", 1))
        return max(self.terms.expected, int(self.sample or 1))

    def round_spec(
        self,
        clients: Sequence[str],
        awaited: int,
        after: str | None,
        clip: float | None = None,
        tree: Place | None = None,
    ) -> RoundSpec:
        """Return the spec of a round for these clients.

        Parameters
        ----------
        clients
            Whom the round invites.
        awaited
            The number of updates that the round waits for.
        after
            The round before, whose assignments the clients follow; None for the first one.
        clip
            The clip of a private round, if it has adapted.
        tree
            Its place in a tree of noise, if the training has one.
        """
        fields: dict[str, Any] = {"min_clients": self._quorum(awaited), **self.round}
        fields["clients"] = list(clients)
        if awaited < len(clients):
            fields["enough_clients"] = awaited
        if fields.get("assignments") is not None and after is not None:
            fields["assignments"] = {**fields["assignments"], "after": after}
        if fields.get("dp") is not None and clip is not None:
            fields["dp"] = {**fields["dp"], "clip": clip}
        if tree is not None:
            fields["dp"] = {**fields["dp"], "tree": tree.to_json()}
        return parse_new_spec(fields)

    def buffer_spec(self, training: str, oldest: int, again: str | None) -> RoundSpec:
        """Return the spec of a round that makes a version of updates as they arrive.

        Parameters
        ----------
        training
            The training's id.
        oldest
            The oldest version from which updates are taken.
        again
            The round of the same updates that has failed, if there is one.
        """
        assert self.buffer is not None  # noqa: S101 - for mypy: _check wants one
        exponent = self.staleness_exponent
        inbox = InboxSpec(
            training, oldest, DEFAULT_EXPONENT if exponent is None else exponent, again
        )
        return parse_new_spec({**self.round, "clients": self.buffer, "inbox": inbox.to_json()})

    def _quorum(self, awaited: int) -> int:
        """Return the default of ``min_clients``: what the rule needs, and over half."""
        return max(default_quorum(awaited), self.terms.min_clients)

    @cached_property
    def terms(self) -> RoundSpec:
        """The spec of a round with the fewest clients: options that all rounds have."""
        return terms_of_fewest(self.round)

    @cached_property
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
            f"{len(spec.clients)}: list more, or lower sample, min_clients or what the rule needs"
        )
    if spec.over_selection and spec.sample is None:
        raise SpecError("over_selection is for sampling: give sample, too")
    if spec.terms.masked is not None:
        _check_masked(spec)
    elif spec.sample is not None and spec.sample >= 1:
        parse_new_spec({**spec.round, "clients": int(spec.sample)})
    if spec.noise_tree is not None:
        _check_noise_tree(spec, spec.noise_tree)
    if spec.is_buffered:
        _check_buffered(spec)
        return
    for name in ("buffer", "updates_per_client", "max_staleness", "staleness_exponent"):
        if getattr(spec, name) != DEFAULTS[name]:
            raise SpecError(f"{name} is for mode {BUFFERED!r}: give mode, too")


def _check_masked(spec: TrainingSpec) -> None:
    """Check what a training with masked rounds goes with."""
    if spec.is_buffered:
        raise SpecError(f"masked: leave out mode {BUFFERED!r}: {NOT_MASKED['inbox']}")
    for name, reason in NOT_IN_MASKED_TRAININGS.items():
        if getattr(spec, name) is not None:
            raise SpecError(f"masked: leave out {name}: {reason}")
    # Later clients are counted when a round is opened; no round has more than the ring holds.
    awaited = len(spec.clients or ()) if spec.sample is None else spec.sample
    if awaited >= 1:
        invited = math.ceil(awaited * (1 + spec.over_selection))
        parse_new_spec({**spec.round, "clients": _roster_of(invited)})


def _check_noise_tree(spec: TrainingSpec, leaves: int) -> None:
    """Check what a tree of noise goes with, and that it has clients for all of its rounds."""
    if spec.is_buffered:
        raise SpecError(
            "noise_tree: a buffered training invites nobody, so clients take part again and again "
            f"in a tree: leave out mode {BUFFERED!r} or noise_tree"
        )
    if spec.terms.dp is None:
        raise SpecError("noise_tree is for private rounds: give dp, too, among round's options")
    if spec.terms.masked is not None:
        raise SpecError(
            "noise_tree: the key of a masked round's noise is made of the clients' seeds, which "
            "the keeper has for one round only: leave out masked or noise_tree"
        )
    if spec.terms.dp.adaptation is not None:
        raise SpecError(
            "noise_tree: noise cancels only if all rounds have the same clip: leave out quantile"
        )
    if spec.server_optimizer.optimizer not in LINEAR:
        raise SpecError(
            f"noise_tree: {spec.server_optimizer.optimizer} scales each step on its own, so no "
            f"noise would cancel: take {' or '.join(LINEAR)}"
        )
    sample = spec.sample
    if sample is None or sample < 1:
        raise SpecError(
            f"noise_tree: sample is {sample}, and every round's sum is divided by it: give a whole "
            "number of clients"
        )
    if leaves > spec.rounds:
        raise SpecError(
            f"noise_tree is {leaves}, over the {spec.rounds} rounds of the training: give "
            f"{spec.rounds} at most"
        )
    invited = math.ceil(max(sample, spec.needed()) * (1 + spec.over_selection))
    most = MAX_COUNTED if spec.clients is None else min(MAX_COUNTED, len(spec.clients))
    if leaves * invited > most:
        who = f"the state names {MAX_COUNTED}" if most == MAX_COUNTED else f"clients has {most}"
        fitting = most // invited
        advice = f"give a noise_tree of {fitting} at most, or lower sample"
        raise SpecError(
            f"noise_tree: {leaves} rounds of a tree invite {leaves * invited} different clients, "
            f"{invited} each, and {who} at most: {advice if fitting > 1 else 'lower sample'}"
        )


def _check_buffered(spec: TrainingSpec) -> None:
    """Check what mode ``buffered`` goes with."""
    if spec.buffer is None:
        raise SpecError("mode 'buffered' needs buffer, the number of updates that make a version")
    if spec.sample is not None:
        raise SpecError(
            "mode 'buffered' invites nobody: each client trains at its own pace; leave out sample "
            "and over_selection"
        )
    each = spec.updates_per_client
    if each > spec.staleness + 1:
        raise SpecError(
            f"updates_per_client is {each}, and max_staleness {spec.staleness}: a client sends one "
            f"update from each version, so a buffer has at most {spec.staleness + 1} of them; "
            "lower updates_per_client"
        )
    if each > 1 and spec.buffer_spec("t", 1, None).robust_rule is not None:
        raise SpecError(
            f"updates_per_client is {each}, and a robust rule takes each update for another "
            "client's: leave it out"
        )
    if spec.clients is not None and spec.buffer > len(spec.clients):
        raise SpecError(
            f"buffer is {spec.buffer}, and clients has {len(spec.clients)}: from one version each "
            "client sends one update, so it would never be full; lower buffer"
        )
    counted = spec.buffer * (spec.staleness + 1)
    if counted > MAX_COUNTED:
        raise SpecError(
            f"buffer × (max_staleness + 1) is {counted}, over {MAX_COUNTED}: lower one of them"
        )
    spec.buffer_spec("t", 1, None)
