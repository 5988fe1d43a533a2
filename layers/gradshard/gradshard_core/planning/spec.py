"""The options of a round: declared and checked here, for the command line and the functions."""

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
from gradshard_core.aggregation.arithmetic import COUNTS, SHARES, STEPS, WEIGHTS
from gradshard_core.aggregation.privacy import LEAST_CLIENTS, PrivacyMechanism, parse_privacy
from gradshard_core.aggregation.robust_rules import LAYER_QUORUM, ROBUST_RULES, SIGN, RobustRule
from gradshard_core.aggregation.server_optimizers import (
    MODELS,
    OPTIMIZERS,
    ServerOptimizer,
    parse_server_optimizer,
)
from gradshard_core.aggregation.topologies import AUTO, MAX_FAN_IN, TOPOLOGIES, Levels
from gradshard_core.errors import SpecError
from gradshard_core.formats.codecs.registry import CODECS
from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.headers import MAX_SAMPLES
from gradshard_core.formats.keys import check_id
from gradshard_core.formats.layout import Layout
from gradshard_core.formats.masked import elements_of
from gradshard_core.formats.pieces import Get, StoredList
from gradshard_core.planning import limits
from gradshard_core.planning.masking import (
    MASKING_EXAMPLE,
    MaskingTerms,
    check_masked,
    parse_masking,
)
from gradshard_core.planning.option_parsers import (
    MAX_CLIENTS,
    MAX_NAMED,
    ROBUST_EXAMPLE,
    SALF_EXAMPLE,
    AssignmentSpec,
    InboxSpec,
    check_stored_clients,
    encode_clients,
    parse_assignment_spec,
    parse_clients,
    parse_codecs,
    parse_inbox,
    parse_layout,
    parse_rule,
)
from gradshard_core.planning.options import (
    Choice,
    Duration,
    Flag,
    Option,
    Parsed,
    WholeNumber,
    check_names,
    defaults_of,
    option,
    options_of,
    stated_options,
)
from gradshard_core.stragglers.layers import Naming, check_naming, layers_of
from gradshard_core.stragglers.salf import PartialRule

MAX_TIMEOUT: Final = 7 * 24 * 3600
"""Seconds."""
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
        f"Division of the work among tasks. shards: each adds one byte range of all updates (at "
        f"most {MAX_FAN_IN} clients). lambda_fl, lifl: trees of tasks that add whole updates. "
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
        "Count at most this number of samples of a client, whatever it states.",
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
        "For a robust rule that measures updates: measure only one in N stretches of the elements, "
        "drawn at random. The manifest states the error.",
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
        "Make the average differentially private for each client: clip updates to the length clip, "
        "and add noise with a deviation of noise_multiplier times clip to their sum, for example "
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
        "Add up a group of clients as soon as all its updates are there. Needs lambda_fl, lifl or "
        "grid, weights by counts, client ids, and a layout or a model.",
        value=False,
    )
    shards: int | None = option(
        WholeNumber(1, limits.MAX_PARTS),
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
        "Accept only updates whose tensors have these names, types and shapes. Partial updates and "
        "eager rounds need it, unless the round makes a version of the model.",
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
        'Codecs of compressed updates that the round takes, for example int8, or ["int8", "int4"].',
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
        "Take masked updates, so that nobody sees a single one. keeper is the public key of the "
        f"mask keeper, which knows the masks: {MASKING_EXAMPLE}.",
        value=None,
        default="updates are not masked",
    )
    updates_from: str | None = option(
        Parsed(functools.partial(check_id, "round"), "id of a round", metavar="ROUND"),
        "Wait for no client: average the updates that were submitted to this other round.",
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
    def measures(self) -> bool:
        """Whether updates are measured before they are added."""
        return self.decider is not None

    @property
    def decider(self) -> RobustRule | PrivacyMechanism | None:
        """The rule that makes weights of measured updates; None if the round does not measure."""
        rule = self.robust_rule
        return rule if rule is not None and rule.measures else self.noised

    @property
    def noised(self) -> PrivacyMechanism | None:
        """The mechanism of which the aggregator adds the noise: the keeper does, under masks."""
        return self.dp if self.masked is None else None

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
    def undecided(self) -> str | None:
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
            "--layout FILE, any .safetensors file with the model's tensors), or apply the round to "
            "a model, which has one"
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
        """Return the spec as the JSON that :func:`parse_spec` reads."""
        return stated_options(self)


OPTIONS: Final[Mapping[str, Option]] = options_of(RoundSpec)
"""The options of a round by name, in the order in which help and documentation list them."""

DEFAULTS: Final[Mapping[str, Any]] = defaults_of(RoundSpec)
"""The values of the options that may be left out."""


def parse_spec(fields: Mapping[str, Any], get: Get | None = None) -> RoundSpec:
    """Check the options of a round.

    Parameters
    ----------
    fields
        The fields of :class:`RoundSpec` as JSON holds them; None stands for the default.
    get
        Loads a piece of a long list of clients.

    Raises
    ------
    SpecError
        A field is unknown, missing or out of its bounds, or conflicts with another.
    """
    check_names(fields, OPTIONS, "round")
    clients = parse_clients(fields.get("clients"), get)
    expected = clients if isinstance(clients, int) else len(clients)
    if fields.get("shards") is not None and fields.get("time_budget") is not None:
        raise SpecError("give shards or time_budget, not both: one decides the other")
    fields = _with_noise(fields)
    others = {
        name: OPTIONS[name].kind.parse(name, fields[name])
        for name in DEFAULTS
        if fields.get(name) is not None
    }
    least = _least(others.get("rule"), others.get("dp"))
    min_clients = _parse_min_clients(fields.get("min_clients"), expected, least)
    spec = RoundSpec(clients=clients, min_clients=min_clients, **others)
    _check_clients(spec)
    _check_robust(spec)
    _check_privacy(spec)
    _check_topology(spec)
    _check_rule(spec)
    _check_apply(spec)
    check_masked(spec, DEFAULTS)
    _check_inbox(spec)
    return spec


def _with_noise(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options with dp in the terms of a masked round: clients and keeper agree to it."""
    masked, dp = fields.get("masked"), fields.get("dp")
    if dp is None or not isinstance(masked, Mapping) or "dp" in masked:
        return fields
    return {**fields, "masked": {**masked, "dp": dp}}


def parse_new_spec(fields: Mapping[str, Any], get: Get | None = None) -> RoundSpec:
    """Check the options of a round that is about to be opened.

    Raises
    ------
    SpecError
        The options are wrong (:func:`parse_spec`), or a layout is missing and the updates cannot
        decide on one.
    """
    spec = parse_spec(fields, get)
    if isinstance(spec.clients, StoredList):
        check_stored_clients(spec.clients)
    if spec.undecided is not None:
        raise SpecError(spec.undecided)
    return spec


def _check_clients(spec: RoundSpec) -> None:
    """Check how many clients are waited for."""
    if spec.expected > spec.most_clients:
        raise SpecError(
            f"{spec.expected} clients are expected, and a round with eager, masked or a rule for "
            f"partial updates takes at most {spec.most_clients}"
        )
    if spec.enough_clients is None:
        return
    if not spec.min_clients <= spec.enough_clients <= spec.expected:
        raise SpecError(
            f"enough_clients is {spec.enough_clients}, not from min_clients "
            f"({spec.min_clients}) to the expected clients ({spec.expected})"
        )
    if spec.eager:
        raise SpecError("eager waits for whole groups of clients: leave out enough_clients")


def _check_rule(spec: RoundSpec) -> None:
    """Check what the rule for partial updates goes with."""
    if not spec.takes_partial:
        if spec.layers is not None:
            why = "give a rule, too"
            if spec.robust_rule is not None:
                named, reason = f"rule {spec.robust_rule.name}", spec.robust_rule.whole
                why = f"{named} takes whole ones, since {reason}"
                if not reason:
                    why = f"{named} takes whole ones unless it has a layer_quorum"
            raise SpecError(f"layers is for rounds of partial updates: {why}")
        return
    if spec.partial_rule is not None and spec.weights != SHARES:
        raise SpecError(
            f"rule {spec.partial_rule.name} has weights of its own, layer by layer: leave out "
            "weights"
        )
    if spec.layers is not None and spec.layout is not None:
        layers_of(spec.layout, spec.layers)


def _check_apply(spec: RoundSpec) -> None:
    """Check the fields that the server optimizer depends on."""
    if spec.server_optimizer is None:
        if spec.dp is not None and spec.dp.tree is not None:
            raise SpecError(
                "dp: tree is for rounds of a training, which make versions of a model: leave it out"
            )
        return
    if spec.layout is not None:
        raise SpecError("a round that is applied has the model's layout: leave out layout")
    robust = spec.robust_rule
    if spec.server_optimizer.updates == MODELS and robust is not None and robust.is_of_changes:
        raise SpecError(
            f"server_optimizer: rule {robust.name} goes by how long updates are or where they "
            "point, and updates are whole models: send deltas, or take median, trimmed_mean, krum "
            "or geometric_median"
        )
    if spec.server_optimizer.updates == MODELS and spec.rule is not None and spec.takes_partial:
        what = f"rule {spec.rule.name}" if robust is None else LAYER_QUORUM
        raise SpecError(
            "server_optimizer: updates models cannot be partial, since what nobody sends is no "
            f"change: send deltas, or leave out {what}"
        )


def _least(rule: Any, dp: Any) -> int:
    least = rule.least_clients if isinstance(rule, RobustRule) else 1
    return max(least, 1 if dp is None else LEAST_CLIENTS)


def _check_inbox(spec: RoundSpec) -> None:
    """Check what the updates of a buffered training go with."""
    if spec.inbox is None:
        return
    rule = spec.robust_rule
    for name, is_given, why in (
        ("rule", spec.takes_partial, "no deadline cuts clients off, so their updates are whole"),
        ("dp", spec.dp is not None, "they wait where a round without noise could take them, too"),
        ("weights", spec.weights == COUNTS, "their discounts are of shares"),
        ("eager", spec.eager, "a buffer is added when it is full"),
        ("assignments", spec.assignments is not None, "each client trains at its own pace"),
        ("updates_from", spec.updates_from is not None, "they come from its inbox"),
    ):
        if is_given:
            raise SpecError(
                f"updates of a buffered training do not go with {name}: {why}; leave it out"
            )
    if rule is not None and rule.is_columns and spec.inbox.exponent:
        raise SpecError(
            f"rule {rule.name} counts every update alike, however stale: give a staleness_exponent "
            "of 0, and a max_staleness"
        )
    if spec.server_optimizer is None or spec.server_optimizer.updates == MODELS:
        raise SpecError(
            "updates of a buffered training change a model: give a server_optimizer, whose updates "
            "are deltas"
        )
    if not isinstance(spec.clients, int) or spec.enough_clients is not None:
        raise SpecError("updates of a buffered training are counted: give their number as clients")


def _check_robust(spec: RoundSpec) -> None:
    """Check what a robust rule goes with."""
    rule = spec.robust_rule
    if spec.measure_one_in is not None and spec.dp is None and (rule is None or not rule.measures):
        names = ", ".join(name for name, rule in ROBUST_RULES.items() if rule.decide is not None)
        raise SpecError(f"measure_one_in is for rules that measure updates: {names}")
    if rule is None:
        return
    if spec.measure_one_in is not None and rule.layer_quorum is not None:
        raise SpecError(
            "measure_one_in might measure nothing of an update with few layers, which then counts "
            "in full: leave it out, or layer_quorum"
        )
    rule.check_clients(spec.expected)
    if spec.weights != SHARES:
        raise SpecError(f"rule {rule.name} decides how updates count: leave out weights")
    if spec.eager:
        raise SpecError(
            f"rule {rule.name} compares all updates with each other, and eager adds some before "
            "the others are there: leave out eager"
        )
    if spec.allow_nonfinite:
        raise SpecError(
            f"rule {rule.name} compares updates, and a NaN compares with nothing: leave out "
            "allow_nonfinite"
        )
    if not rule.counts_samples and spec.max_samples is not None:
        raise SpecError(
            f"rule {rule.name} counts every client alike, whatever it states: leave out max_samples"
        )
    if rule.is_columns and spec.order is not None:
        raise SpecError(f"rule {rule.name} adds in an order of its own: leave out order")


def _check_privacy(spec: RoundSpec) -> None:
    """Check what differential privacy goes with."""
    if spec.dp is None:
        return
    if spec.expected < LEAST_CLIENTS:
        raise SpecError(
            f"dp hides a client among at least {LEAST_CLIENTS}, and {spec.expected} is expected"
        )
    if spec.rule is not None:
        raise SpecError(
            f"dp bounds what each client adds to a sum, and rule {spec.rule.name} computes "
            "something else: leave out rule; dp clips updates, too"
        )
    if spec.weights != SHARES:
        raise SpecError(
            f"dp counts every client alike: with weights {spec.weights} one client could add any "
            "multiple of its update, which no noise hides. Leave out weights"
        )
    for name, why in {
        "eager": "measures all updates before it adds any",
        "allow_nonfinite": "clips updates, and a NaN has no length",
        "order": "adds whole numbers, whose sum depends on no order",
        "updates_from": "counts what each round reveals of the updates sent to it",
        "max_samples": "counts every client alike, whatever it states",
        "assignments": "hides what clients send, and assignments follow from it",
        "measure_one_in": "clips by true lengths, and those of a sample are estimates",
    }.items():
        if getattr(spec, name):
            raise SpecError(f"dp {why}: leave out {name}")
    if spec.server_optimizer is not None and spec.server_optimizer.updates == MODELS:
        raise SpecError(
            "dp: updates are whole models, whose length says nothing of what a client has "
            "changed: send deltas"
        )
    if spec.layout is not None:
        integers = [t.name for t in spec.layout.tensors if DTYPES[t.dtype].is_integer]
        if integers:
            check_averaged(spec, integers)


def check_averaged(spec: RoundSpec, tensors: Sequence[str]) -> None:
    """Check that a round may average tensors, which are integers or buffers, whatever its rule.

    Raises
    ------
    SpecError
        Their averages could not be hidden, or would become signs.
    """
    if not tensors or spec.averages_all:
        return
    if spec.dp is not None:
        raise SpecError(
            f"dp clips and adds noise to floating-point tensors that are trained, and "
            f"{tensors[0]!r} is an integer or a buffer, whose average would reveal clients: leave "
            "it out of the model, for example with group instead of batch normalisation"
        )
    raise SpecError(
        f"rule sign makes 1, 0 or -1 of every element, and {tensors[0]!r} is an integer or a "
        "buffer, which is averaged: take rule median"
    )


def _check_topology(spec: RoundSpec) -> None:
    """Check the fields that depend on each other, for the expected number of contributors."""
    name, levels = spec.levels(spec.expected)
    topology = TOPOLOGIES[name]
    if spec.shards is not None and not topology.is_cut:
        raise SpecError(f"topology {name} adds whole updates: shards is for shards and grid")
    if spec.fan_in is not None and name == "shards":
        raise SpecError("topology shards has no groups: fan_in is for lambda_fl, lifl and grid")
    if spec.order is not None:
        addition_order.check_order(spec.order, spec.expected)
        addition_order.split_order(spec.order, levels)
    if spec.eager:
        _check_eager(spec, name)


def _check_eager(spec: RoundSpec, name: str) -> None:
    if name == "shards":
        raise SpecError("eager needs groups: take topology lifl, lambda_fl or grid")
    if isinstance(spec.clients, int):
        raise SpecError("eager needs the clients' ids, not their number: groups are made of them")
    if spec.weights != COUNTS:
        raise SpecError("eager needs weights counts: shares are not known before all have arrived")
    if spec.updates_from is not None:
        raise SpecError(f"eager awaits updates, but those of round {spec.updates_from!r} are there")


def default_quorum(expected: int) -> int:
    """Return the default of ``min_clients``: more than half of the expected clients.

    So neither a client alone nor a minority is the federation.
    """
    return expected // 2 + 1


def _parse_min_clients(stated: Any, expected: int, least: int) -> int:
    """Check the quorum; ``least`` is how many updates the rule needs."""
    if stated is None:
        return max(default_quorum(expected), least)
    min_clients: int = OPTIONS["min_clients"].kind.parse("min_clients", stated)
    if min_clients > expected:
        clients = "client" if expected == 1 else "clients"
        raise SpecError(f"min_clients is {min_clients}, over the {expected} expected {clients}")
    if min_clients < least:
        raise SpecError(
            f"min_clients is {min_clients}, under the {least} updates that the rule needs: give "
            f"at least {least}, or leave it out"
        )
    return min_clients
