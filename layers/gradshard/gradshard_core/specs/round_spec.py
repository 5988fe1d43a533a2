"""The options of a round: declared here once, for the command line and the functions."""

import functools
import itertools
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from gradshard_core.aggregation import addition_order, topologies
from gradshard_core.aggregation.addition_order import Order
from gradshard_core.aggregation.arithmetic import SHARES, STEPS, WEIGHTS
from gradshard_core.aggregation.server_optimizers import (
    OPTIMIZERS,
    ServerOptimizer,
    parse_server_optimizer,
)
from gradshard_core.aggregation.topologies import AUTO, MAX_FAN_IN, TOPOLOGIES, Levels
from gradshard_core.errors import SpecError
from gradshard_core.formats.codecs.registry import CODECS
from gradshard_core.formats.headers import MAX_SAMPLES
from gradshard_core.formats.long_lists import StoredList
from gradshard_core.formats.masked_updates import elements_of
from gradshard_core.formats.object_keys import check_id
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.limits import aws_limits
from gradshard_core.limits.own_limits import MAX_CLIENTS, MAX_NAMED, MAX_TIMEOUT
from gradshard_core.privacy.privacy_mechanism import PrivacyMechanism, parse_privacy
from gradshard_core.robust.rules import ROBUST_RULES, SIGN, RobustRule
from gradshard_core.specs.inbox_spec import InboxSpec, parse_inbox
from gradshard_core.specs.masking_options import MASKING_EXAMPLE, MaskingTerms, parse_masking
from gradshard_core.specs.option_kinds import (
    Choice,
    Duration,
    Flag,
    Option,
    Parsed,
    WholeNumber,
    defaults_of,
    option,
    options_of,
    stated_options,
)
from gradshard_core.specs.option_parsers import (
    ROBUST_EXAMPLE,
    SALF_EXAMPLE,
    AssignmentSpec,
    encode_clients,
    parse_assignment_spec,
    parse_clients,
    parse_codecs,
    parse_layout,
    parse_rule,
)
from gradshard_core.stragglers.layers import Naming, check_naming
from gradshard_core.stragglers.salf import PartialRule

DEFAULT_TIMEOUT: Final = 3600
"""Seconds."""


@dataclass(frozen=True)
class RoundSpec:
    """The options of a round, checked.

    Each field declares one option: its type here, the values in JSON, its default and what it does.
    :data:`OPTIONS` holds the declarations.
    """

    clients: Sequence[str] | int = option(
        Parsed(
            parse_clients,
            f"list of ids, the names of its pieces, or a whole number from 1 to {MAX_CLIENTS:,}",
            encoder=encode_clients,
        ),
        "The expected clients: their ids, or their number.",
    )
    min_clients: int = option(
        WholeNumber(1, MAX_CLIENTS),
        "Fail the round if fewer good updates have arrived by its deadline.",
        default="more than half of the clients",
    )
    enough_clients: int | None = option(
        WholeNumber(1, MAX_CLIENTS),
        "Go on as soon as this number of clients has sent updates, instead of waiting for all.",
        value=None,
        default="all of the clients",
    )
    timeout: int = option(
        Duration(MAX_TIMEOUT, "7d", is_whole=True),
        "Stop waiting for updates after this time.",
        value=DEFAULT_TIMEOUT,
        is_always_stated=True,
    )
    topology: str = option(
        Choice((AUTO, *TOPOLOGIES)),
        f"Division of the work among tasks. shards: each task adds one byte range of all updates "
        f"(at most {MAX_FAN_IN} clients). lambda_fl, lifl: trees of tasks that add whole updates. "
        f"grid: groups of clients, cut into shards. auto: shards up to {MAX_FAN_IN} clients, else "
        "grid.",
        value=AUTO,
    )
    fan_in: int | None = option(
        WholeNumber(2, MAX_FAN_IN),
        "Number of updates or partial sums that a task of lambda_fl, lifl or grid adds.",
        value=None,
        default="chosen by the topology",
    )
    order: Order | None = option(
        Parsed(
            addition_order.parse_order,
            "`sequential`, or for example `tree:4,4`",
            metavar="ORDER",
            encoder=addition_order.format_order,
        ),
        "Order of the additions, which decides the last bits of the result: sequential (by client "
        "id), or for example tree:4,4 (sums of 4 clients, then sums of 4 such sums).",
        value=None,
        default="the topology's own order",
    )
    weights: str = option(
        Choice(WEIGHTS),
        "Weights of the updates. shares: the share of all samples. counts: the number of samples, "
        "with one division at the end. steps: shares, normalised by the local steps that clients "
        "report.",
        value=SHARES,
    )
    max_samples: int | None = option(
        WholeNumber(1, MAX_SAMPLES),
        "Count at most this number of samples of each client, even if it states more.",
        value=None,
        default="as many as it states",
    )
    rule: PartialRule | RobustRule | None = option(
        Parsed(
            parse_rule,
            "a rule for partial updates: `fedavg`, `fill`, `drop`, or an object with `name`, and "
            f"`p` for `salf`; or a robust one: {', '.join(f'`{name}`' for name in ROBUST_RULES)}, "
            "or an object with `name` and its settings",
            metavar="RULE",
            is_json=True,
            encoder=lambda rule: rule.to_json(),
        ),
        f"Accept partial updates and average them by this rule: fedavg, fill, drop, or "
        f"{SALF_EXAMPLE}. Or combine updates by a robust rule: {', '.join(ROBUST_RULES)}, or "
        f"{ROBUST_EXAMPLE}.",
        value=None,
        default="whole updates only, averaged",
    )
    measure_one_in: int | None = option(
        WholeNumber(2, 1000),
        "For a robust rule that measures updates (all but median, trimmed_mean and sign): measure "
        "one in N stretches of the elements, drawn at random. The manifest states the error.",
        value=None,
        default="all elements",
    )
    dp: PrivacyMechanism | None = option(
        Parsed(
            parse_privacy,
            "object with `clip`, `noise_multiplier` and `delta`, and maybe `quantile`, `clip_rate` "
            "and `count_deviation`",
            metavar="JSON",
            is_json=True,
            encoder=PrivacyMechanism.to_json,
        ),
        "Make the average differentially private for each client: clip each update to the "
        "L2 norm clip, and add Gaussian noise to the sum, with the standard deviation "
        "noise_multiplier times clip, for example "
        '{"clip": 1.0, "noise_multiplier": 1.1, "delta": 1e-5}.',
        value=None,
        default="no noise",
    )
    layers: Naming | None = option(
        Parsed(
            check_naming,
            "list of prefixes of tensor names, from the input to the output, or an object of such "
            "lists by layer",
            metavar="JSON",
            is_json=True,
        ),
        "Layers of partial updates, as prefixes of tensor names from the input to the output, for "
        'example ["conv", "fc"].',
        value=None,
        default="found from the names of the tensors",
    )
    assignments: AssignmentSpec | None = option(
        Parsed(
            parse_assignment_spec,
            "object with `batch_size`, `epochs`, `learning_rate`, bounds, and `after`, the round "
            "before",
            metavar="JSON",
            is_json=True,
            encoder=AssignmentSpec.to_json,
        ),
        "Compute a batch size, epochs and a learning rate for each client's next round, from base "
        'settings such as {"batch_size": 32, "epochs": 1, "learning_rate": 0.01}.',
        value=None,
        default="no assignments",
    )
    eager: bool = option(
        Flag(),
        "Add up a group of clients as soon as all its updates are there. Needs a topology "
        "(lambda_fl, lifl or grid), weights (counts), client ids, and a layout or a model.",
        value=False,
    )
    shards: int | None = option(
        WholeNumber(1, aws_limits.MAX_PARTS),
        "Number of byte ranges into which updates are cut. One task aggregates each range.",
        value=None,
        default="chosen by the planner",
    )
    time_budget: float | None = option(
        Duration(1_000_000),
        "Choose the number of shards so that the aggregation takes at most this time.",
        value=None,
        default="a minute, where that is possible",
    )
    layout: Layout | None = option(
        Parsed(
            parse_layout,
            'object of the form `{"w": {"dtype": "F32", "shape": [10, 64]}, …}`',
            metavar="FILE",
            encoder=Layout.to_json,
        ),
        "Accept only updates with this layout: names, types and shapes of tensors. Partial updates "
        "and eager rounds need it, unless the round makes a version of the model.",
        value=None,
        default="that of the model, or of more than half of the updates",
    )
    allow_nonfinite: bool = option(
        Flag(),
        "Average NaN and infinities, and let sums overflow, instead of rejecting the updates that "
        "cause them.",
        value=False,
    )
    codecs: tuple[str, ...] | None = option(
        Parsed(
            parse_codecs,
            f"list of names: {', '.join(f'`{name}`' for name in CODECS)}",
            metavar="NAMES",
            is_json=True,
            encoder=list,
        ),
        "Accept updates that are compressed with these codecs, for example int8, or "
        '["int8", "int4"].',
        value=None,
        default="no compressed updates",
    )
    masked: MaskingTerms | None = option(
        Parsed(
            parse_masking,
            "object with `bound`, `max_samples` and `keeper`, and maybe `bits` and `ring_bits`; "
            "with dp, `keeper` alone",
            metavar="JSON",
            is_json=True,
            encoder=MaskingTerms.to_json,
        ),
        "Accept only masked updates, so that nobody sees a single update, for example "
        f"{MASKING_EXAMPLE}, where keeper is the public key of the mask keeper.",
        value=None,
        default="updates are not masked",
    )
    updates_from: str | None = option(
        Parsed(functools.partial(check_id, "round"), "id of a round", metavar="ROUND"),
        "Average the updates that were submitted to this other round, and wait for no client.",
        value=None,
        default="the updates of the round itself",
    )
    inbox: InboxSpec | None = option(
        Parsed(
            parse_inbox,
            "object with `training`, `oldest`, `exponent`; the training states it",
            metavar="JSON",
            is_json=True,
            encoder=InboxSpec.to_json,
        ),
        "Average updates that were sent to a buffered training, weighed by their staleness.",
        value=None,
        default="the updates of the round itself",
    )
    server_optimizer: ServerOptimizer | None = option(
        Parsed(
            parse_server_optimizer,
            ", ".join(f"`{name}`" for name in OPTIMIZERS)
            + ", or an object with `optimizer`, its settings and `buffers`",
            metavar="OPTIMIZER",
            is_json=True,
            encoder=ServerOptimizer.to_json,
        ),
        f"Make the next version of the model with this optimizer: {', '.join(OPTIMIZERS)}, or JSON "
        'such as {"optimizer": "fedadam", "learning_rate": 0.01}.',
        value=None,
        default="no version of the model",
    )

    @property
    def partial_rule(self) -> PartialRule | None:
        """The rule for partial updates; None if updates are whole."""
        return self.rule if isinstance(self.rule, PartialRule) else None

    @property
    def takes_partial(self) -> bool:
        """Whether updates may lack layers."""
        robust = self.robust_rule
        return self.partial_rule is not None or (
            robust is not None and robust.layer_quorum is not None
        )

    @property
    def robust_rule(self) -> RobustRule | None:
        """The robust rule; None if updates are averaged."""
        return self.rule if isinstance(self.rule, RobustRule) else None

    @property
    def compares_layers(self) -> bool:
        """Whether the rule compares partial updates, which it does in each layer by itself."""
        return self.robust_rule is not None and self.robust_rule.decides_by_layer

    @property
    def measures(self) -> bool:
        """Whether updates are measured before they are added."""
        return self.weighing_rule is not None

    @property
    def weighing_rule(self) -> RobustRule | PrivacyMechanism | None:
        """The rule that makes weights of measured updates; None if the round does not measure."""
        rule = self.robust_rule
        return rule if rule is not None and rule.measures else self.aggregator_noise

    @property
    def aggregator_noise(self) -> PrivacyMechanism | None:
        """The mechanism whose noise the aggregator adds; in masked rounds the keeper adds it."""
        return self.dp if self.masked is None else None

    @property
    def is_drawn(self) -> bool:
        """Whether clients were drawn in secret, so that nothing may depend on who answers."""
        return self.dp is not None and self.dp.draw is not None

    @property
    def averages_all(self) -> bool:
        """Whether integers and buffers are averaged (:func:`check_averaged`)."""
        return self.dp is None and (self.robust_rule is None or self.robust_rule.name != SIGN)

    def counted(self, samples: int) -> int:
        """Return how many of the samples that a client states are counted."""
        return samples if self.max_samples is None else min(samples, self.max_samples)

    @property
    def takes_reports(self) -> bool:
        """Whether what clients report on their training is used."""
        return self.assignments is not None or self.weights == STEPS

    @property
    def expected(self) -> int:
        """The number of expected clients."""
        return self.clients if isinstance(self.clients, int) else len(self.clients)

    def expects(self, client: str) -> bool:
        """Return whether an update of ``client`` may take part."""
        if isinstance(self.clients, StoredList):
            return client in self.clients.near(client)
        return isinstance(self.clients, int) or client in self._ids

    @cached_property
    def _ids(self) -> frozenset[str]:
        return frozenset(() if isinstance(self.clients, int) else self.clients)

    def missing(self, arrived: Sequence[str]) -> tuple[str, ...]:
        """Return the expected clients that have not arrived; none if no ids were given."""
        if isinstance(self.clients, int):
            return ()
        return tuple(sorted(set(self.clients) - set(arrived)))

    def is_complete(self, arrived: Sequence[str]) -> bool:
        """Whether the round need not wait for anybody."""
        if self.enough_clients is not None:
            there = arrived if isinstance(self.clients, int) else self._ids.intersection(arrived)
            return len(set(there)) >= self.enough_clients
        if isinstance(self.clients, int):
            return len(set(arrived)) >= self.clients
        return not self.missing(arrived)

    @property
    def why_layout_is_needed(self) -> str | None:
        """The reason why a missing layout is needed; None if the updates can decide on one."""
        if self.layout is not None or self.server_optimizer is not None:
            return None
        if self.rule is not None and self.takes_partial:
            who = f"rule {self.rule.name} takes partial updates, of which few may have all tensors"
        elif self.eager:
            who = "eager begins with the first group, when most updates are not there yet"
        else:
            return None
        return (
            f"{who}, so one client could decide on the layout: open the round with it (layout, or "
            "--layout FILE, any .safetensors file with the model's tensors), or give a "
            "server_optimizer, whose model has one"
        )

    def levels(self, contributors: int) -> tuple[str, Levels]:
        """Return the topology for a number of contributors, and its groups.

        Raises
        ------
        SpecError
            A task would have too many inputs, or a robust rule would have several levels.
        """
        name = topologies.resolve(self.topology, contributors)
        # Groups that were asked for, directly or by the order in which they are to be added.
        sizes = (self.fan_in,) if self.fan_in else self.order or ()
        levels = topologies.group(name, contributors, sizes)
        rule = self.robust_rule
        if len(levels) > 1 and rule is not None and rule.compares:
            raise SpecError(
                f"rule {rule.name} compares all updates with each other, but topology {name} adds "
                f"those of {contributors} clients in {len(levels[0])} groups; take topology "
                f"shards, with at most {MAX_FAN_IN} clients"
            )
        return name, levels

    def groups(self) -> list[tuple[str, ...]]:
        """Return the expected clients by groups of the first level, where ids were given."""
        _, [sizes, *_] = self.levels(self.expected)
        ids = iter(() if isinstance(self.clients, int) else self.clients)
        return [tuple(itertools.islice(ids, size)) for size in sizes]

    def awaits(self, client: str, groups: Sequence[int]) -> bool:
        """Return whether a client is in one of an eager round's groups, given by their numbers."""
        members = self.groups() if groups else []
        return any(client in members[number] for number in groups)

    @property
    def most_clients(self) -> int:
        """The most clients that may be expected, whatever the topology."""
        names = self.eager, self.takes_partial, self.masked
        return MAX_NAMED if any(names) else MAX_CLIENTS

    @cached_property
    def capacity(self) -> int:
        """The most contributors that these options allow."""
        most = min(self.most_clients, math.prod(self.order) if self.order else MAX_CLIENTS)
        return bisect_right(range(1, most + 1), False, key=self._is_too_many)

    def _is_too_many(self, contributors: int) -> bool:
        try:
            self.levels(contributors)
            if self.masked is not None:
                # The model of a round without a layout is looked at when the round is opened.
                self.masked.fixed(contributors, elements_of(self.layout) if self.layout else 1)
        except SpecError:
            return True
        return False

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON: the options as they are stated."""
        return stated_options(self)


OPTIONS: Final[Mapping[str, Option]] = options_of(RoundSpec)
"""The options of a round by name, in the order in which help and documentation list them."""

DEFAULTS: Final[Mapping[str, Any]] = defaults_of(RoundSpec)
"""The values of the options that may be left out."""
