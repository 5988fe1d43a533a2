"""The options of a training: declared here, for the command line, the library and the functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from gradshard_core.aggregation.server_optimizers import ServerOptimizer
from gradshard_core.errors import SpecError
from gradshard_core.limits.own_limits import (
    MAX_CLIENTS,
    MAX_NAMED,
    MAX_ROUNDS,
    MAX_STALENESS,
    MAX_UPDATES_PER_VERSION,
)
from gradshard_core.privacy.noise_tree import MAX_LEAVES, Place
from gradshard_core.privacy.secret_client_sampling import (
    SecretDraw,
    SecretSample,
    parse_secret_sample,
)
from gradshard_core.specs.inbox_spec import MAX_EXPONENT, InboxSpec, parse_exponent
from gradshard_core.specs.option_kinds import (
    REQUIRED,
    Choice,
    Duration,
    Option,
    Parsed,
    WholeNumber,
    defaults_of,
    option,
    options_of,
    stated_options,
)
from gradshard_core.specs.option_parsers import parse_clients
from gradshard_core.specs.round_spec import RoundSpec
from gradshard_core.specs.round_spec_checks import default_quorum, parse_new_spec
from gradshard_core.specs.setting_schedules import Schedule, parse_schedules
from gradshard_core.specs.stop_rule import StopRule, parse_stop_rule
from gradshard_core.specs.training_budget import Budget, parse_budget
from gradshard_core.specs.training_round_options import (
    DECIDED,
    parse_round_options,
    terms_of_fewest,
)

SYNCHRONOUS: Final = "synchronous"
BUFFERED: Final = "buffered"

DEFAULT_STALENESS: Final = 10
DEFAULT_EXPONENT: Final = 0.5
"""Those of FedBuff's authors, for the exponent (https://arxiv.org/abs/2106.06639, section 5)."""


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
        "buffered: each trains at its own pace, and every so many updates make a version of the "
        "model.",
        value=SYNCHRONOUS,
    )
    updates_per_version: int | None = option(
        WholeNumber(1, MAX_UPDATES_PER_VERSION),
        "Number of updates that make a version of the model in buffered mode.",
        value=None,
        default="none, but required in buffered mode",
    )
    updates_per_client: int = option(
        WholeNumber(1, MAX_UPDATES_PER_VERSION),
        "Count up to this number of updates of each client in a version, each trained from another "
        "version of the model, in buffered mode.",
        value=1,
    )
    max_staleness: int | None = option(
        WholeNumber(0, MAX_STALENESS),
        "Reject an update if the model that it was trained from is more than this number of "
        "versions old.",
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
        "Multiply the weight of an update by (1 + t)^-A if the model that it was trained from is t "
        "versions old. With 0, all updates count alike.",
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
        "Invite this number or fraction of the clients to each round, for example 10 or 0.1.",
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
        "Take the noise of earlier private rounds out of the model again, within groups (trees) of "
        "this number of rounds. Each client is invited once in a tree. Needs dp, and a sample "
        "that is a number of clients.",
        value=None,
        default="noise stays in the model",
    )
    secret_sample: SecretSample | None = option(
        Parsed(
            parse_secret_sample,
            "object with `probability` and `divisor`",
            metavar="JSON",
            is_json=True,
            encoder=SecretSample._asdict,
        ),
        "Draw each client of a private round with this probability, in secret, and divide the sum "
        'of the updates by divisor, for example {"probability": 0.05, "divisor": 50}. Each round '
        "lasts for its whole timeout, and completes with any number of updates. Needs dp.",
        value=None,
        default="all, or sample",
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
        'Numbers and texts that clients get with an invitation, for example {"epochs": 1, '
        '"learning_rate": {"start": 0.1, "decay": 0.98}}.',
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
        "End the training when a metric reaches a target, or when patience values in a row are no "
        'better than the best one, for example {"metric": "accuracy", "at_least": 0.95, '
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
        "End the training before a round that would cost more than these dollars in all, or when "
        'these seconds have passed and no round is under way, for example {"dollars": 2, '
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
    poll_interval: float = option(
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
        if self.secret_sample is not None:
            return self.secret_sample.fewest
        return max(self.terms.expected, int(self.sample or 1))

    def round_spec(
        self,
        clients: Sequence[str],
        awaited: int,
        after: str | None,
        clip: float | None = None,
        stated: Place | SecretDraw | None = None,
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
        stated
            Its place in a tree of noise, or the secret draw of its clients, if the training has
            one.
        """
        quorum = 1 if isinstance(stated, SecretDraw) else self._quorum(awaited)
        fields: dict[str, Any] = {"min_clients": quorum, **self.round}
        fields["clients"] = list(clients)
        if awaited < len(clients):
            fields["enough_clients"] = awaited
        if fields.get("assignments") is not None and after is not None:
            fields["assignments"] = {**fields["assignments"], "after": after}
        if fields.get("dp") is not None and clip is not None:
            fields["dp"] = {**fields["dp"], "clip": clip}
        if stated is not None:
            name = "tree" if isinstance(stated, Place) else "draw"
            fields["dp"] = {**fields["dp"], name: stated.to_json()}
        return parse_new_spec(fields)

    def buffered_round_spec(
        self, training: str, oldest: int, repeated_round: str | None
    ) -> RoundSpec:
        """Return the spec of a round that makes a version of updates as they arrive.

        Parameters
        ----------
        training
            The training's id.
        oldest
            The oldest version from which updates are taken.
        repeated_round
            The round of the same updates that has failed, if there is one.
        """
        assert self.updates_per_version is not None  # noqa: S101 - for mypy: _check wants one
        exponent = self.staleness_exponent
        inbox = InboxSpec(
            training, oldest, DEFAULT_EXPONENT if exponent is None else exponent, repeated_round
        )
        return parse_new_spec(
            {**self.round, "clients": self.updates_per_version, "inbox": inbox.to_json()}
        )

    @property
    def most_drawn(self) -> int:
        """The most members of which clients are drawn in secret: any number may be."""
        return min(MAX_NAMED, self.terms.capacity)

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
        """Return the spec as the JSON that ``parse_training_spec`` reads."""
        return stated_options(self)


OPTIONS: Final[Mapping[str, Option]] = options_of(TrainingSpec)
"""The options of a training by name, in the order in which help and documentation list them."""

DEFAULTS: Final[Mapping[str, Any]] = defaults_of(TrainingSpec)
"""The values of the options that may be left out."""
