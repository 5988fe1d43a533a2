"""What a round is asked for: checked once here, for the command line and the function alike."""

import dataclasses
import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple, TypeVar

from gradshard_core.aggregation import addition_order, topologies
from gradshard_core.aggregation.addition_order import Order
from gradshard_core.aggregation.arithmetic import COUNTS, SHARES, WEIGHTS
from gradshard_core.aggregation.server_optimizers import (
    MODELS,
    ServerOptimizer,
    parse_server_optimizer,
)
from gradshard_core.aggregation.topologies import AUTO, MAX_FAN_IN, TOPOLOGIES, Levels
from gradshard_core.errors import SpecError, UpdateError
from gradshard_core.formats.keys import check_id
from gradshard_core.formats.layout import Layout
from gradshard_core.planning import limits
from gradshard_core.stragglers.assignments import AssignmentSettings, parse_assignment_settings
from gradshard_core.stragglers.layers import Naming, check_naming, layers_of
from gradshard_core.stragglers.salf import RULES, PartialRule, parse_rule

MAX_CLIENTS: Final = MAX_FAN_IN**2
"""A grid of two levels."""

MAX_TIMEOUT: Final = 7 * 24 * 3600
DEFAULT_TIMEOUT: Final = 3600

Parsed = TypeVar("Parsed")


class AssignmentSpec(NamedTuple):
    """In which terms clients are told what to do next.

    Parameters
    ----------
    settings
        The base settings and bounds.
    after
        The round before, whose assignments hold the clients' speeds so far; None for the first.
    """

    settings: AssignmentSettings
    after: str | None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return self.settings.to_json() | ({"after": self.after} if self.after else {})


@dataclass(frozen=True)
class RoundSpec:
    """The terms of a round.

    Parameters
    ----------
    clients
        The ids of the expected clients, sorted, or how many are expected, whoever they are.
    min_clients
        The quorum: with fewer valid updates at the deadline the round fails. Unless stated, more
        than half of the expected clients.
    deadline
        Seconds from the opening of the round after which no more updates are awaited.
    topology
        ``shards``, ``lambda_fl``, ``lifl``, ``grid``, or ``auto``: shards up to 64 contributors, a
        grid beyond.
    fan_in
        Size of the topology's groups; None for its own rule.
    order
        The order of additions; None for the topology's natural one.
    weights
        ``shares``: each update is multiplied by nᵢ / Σn. ``counts``: by nᵢ, and the sum is divided
        by Σn once, which other bits come of; then sums can begin before all counts are known.
        ``steps``: shares normalised by the local steps that clients report
        (:func:`gradshard_core.stragglers.assignments.normalised_weights`).
    rule
        How partial updates are averaged; None: whole updates only, by FedAvg.
    layers
        The layers of partial updates, if not given by the tensors' names.
    assignments
        In which terms ``finalize_round`` says what each client should do next; None: not at all.
    eager
        Let a group's sum begin when its updates are there, while others are still awaited.
    shards
        M, or None to let the planner choose.
    time_budget
        Seconds the aggregation should take at most; the planner then buys time with shards.
    layout
        The layout every update must have; None: the model's where the round is applied, else that
        of more than half of the updates.
    allow_nonfinite
        Average NaN and infinities instead of rejecting the update that holds them.
    updates_from
        Average the updates that were sent to this other round, as they are there; nobody is
        awaited.
    server_optimizer
        How the averaged update is applied to the federation's model; None: not at all.
    """

    clients: tuple[str, ...] | int
    min_clients: int
    timeout: int = DEFAULT_TIMEOUT
    topology: str = AUTO
    fan_in: int | None = None
    order: Order | None = None
    weights: str = SHARES
    rule: PartialRule | None = None
    layers: Naming | None = None
    assignments: AssignmentSpec | None = None
    eager: bool = False
    shards: int | None = None
    time_budget: float | None = None
    layout: Layout | None = None
    allow_nonfinite: bool = False
    updates_from: str | None = None
    server_optimizer: ServerOptimizer | None = None

    @property
    def expected(self) -> int:
        """How many clients are expected."""
        return self.clients if isinstance(self.clients, int) else len(self.clients)

    def expects(self, client: str) -> bool:
        """Whether an update of ``client`` may take part."""
        return isinstance(self.clients, int) or client in self._ids

    @cached_property
    def _ids(self) -> frozenset[str]:
        return frozenset(() if isinstance(self.clients, int) else self.clients)

    def missing(self, arrived: Sequence[str]) -> tuple[str, ...]:
        """Return the expected clients that have not arrived, where ids were given."""
        if isinstance(self.clients, int):
            return ()
        return tuple(sorted(set(self.clients) - set(arrived)))

    def is_complete(self, arrived: Sequence[str]) -> bool:
        """Whether nobody need be waited for."""
        if isinstance(self.clients, int):
            return len(set(arrived)) >= self.clients
        return not self.missing(arrived)

    @property
    def undecided(self) -> str | None:
        """Why the updates cannot decide on the layout, where one has to be stated and is not."""
        if self.layout is not None or self.server_optimizer is not None:
            return None
        if self.rule is not None:
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
        """Return the topology for so many contributors, and its groups.

        Raises
        ------
        SpecError
            A task would have too many inputs.
        """
        name = topologies.resolve(self.topology, contributors)
        # Groups that were asked for, directly or by the order in which they are to be added.
        sizes = (self.fan_in,) if self.fan_in else self.order or ()
        return name, topologies.group(name, contributors, sizes)

    def groups(self) -> list[tuple[str, ...]]:
        """Return the expected clients by groups of the first level, where ids were given."""
        _, [sizes, *_] = self.levels(self.expected)
        ids = iter(() if isinstance(self.clients, int) else self.clients)
        return [tuple(itertools.islice(ids, size)) for size in sizes]

    def awaits(self, client: str, groups: Sequence[int]) -> bool:
        """Whether a client is in one of an eager round's groups, given by their numbers."""
        members = self.groups() if groups else []
        return any(client in members[number] for number in groups)

    @cached_property
    def capacity(self) -> int:
        """The most contributors that can be averaged as asked for."""
        most = min(MAX_CLIENTS, math.prod(self.order)) if self.order else MAX_CLIENTS
        return bisect_right(range(1, most + 1), False, key=self._is_too_many)

    def _is_too_many(self, contributors: int) -> bool:
        try:
            self.levels(contributors)
        except SpecError:
            return True
        return False

    def to_json(self) -> dict[str, Any]:
        """Return the spec as the JSON that :func:`parse_spec` reads."""
        layout = self.layout and self.layout.to_json()
        fields = {
            "clients": self.clients if isinstance(self.clients, int) else list(self.clients),
            "min_clients": self.min_clients,
            "timeout": self.timeout,
            "topology": None if self.topology == AUTO else self.topology,
            "fan_in": self.fan_in,
            "order": None if self.order is None else addition_order.format_order(self.order),
            "weights": None if self.weights == SHARES else self.weights,
            "rule": self.rule and self.rule.to_json(),
            "layers": self.layers,
            "assignments": self.assignments and self.assignments.to_json(),
            "eager": self.eager or None,
            "shards": self.shards,
            "time_budget": self.time_budget,
            "layout": layout,
            "allow_nonfinite": self.allow_nonfinite or None,
            "updates_from": self.updates_from,
            "server_optimizer": self.server_optimizer and self.server_optimizer.to_json(),
        }
        return {name: value for name, value in fields.items() if value is not None}


def parse_spec(fields: Mapping[str, Any]) -> RoundSpec:
    """Check the terms of a round.

    Parameters
    ----------
    fields
        The fields of :class:`RoundSpec` as JSON holds them; ``layout`` as
        ``{name: {"dtype": …, "shape": […]}}`` in the order of the result.

    Raises
    ------
    SpecError
        A field is unknown, missing or out of its bounds.
    """
    if not isinstance(fields, Mapping):
        raise SpecError(f"a round's spec is a JSON object, not {type(fields).__name__}")
    known = {field.name for field in dataclasses.fields(RoundSpec)}
    unknown = sorted(fields.keys() - known)
    if unknown:
        raise SpecError(f"unknown field {unknown[0]!r}; a spec has {', '.join(sorted(known))}")
    clients = _parse_clients(fields.get("clients"))
    expected = clients if isinstance(clients, int) else len(clients)
    min_clients = _parse_min_clients(fields.get("min_clients"), expected)
    if fields.get("shards") is not None and fields.get("time_budget") is not None:
        raise SpecError("give shards or time_budget, not both: one decides the other")

    def given(name: str, parse: Callable[[Any], Parsed]) -> Parsed | None:
        stated = fields.get(name)
        return None if stated is None else parse(stated)

    spec = RoundSpec(
        clients=clients,
        min_clients=min_clients,
        timeout=_whole("deadline", fields.get("timeout", DEFAULT_TIMEOUT), 1, MAX_TIMEOUT),
        topology=_one_of("topology", fields.get("topology", AUTO), (AUTO, *TOPOLOGIES)),
        fan_in=given("fan_in", lambda fan_in: _whole("fan_in", fan_in, 2, MAX_FAN_IN)),
        order=given("order", addition_order.parse_order),
        weights=_one_of("weights", fields.get("weights", SHARES), WEIGHTS),
        rule=given("rule", _parse_rule),
        layers=given("layers", check_naming),
        assignments=given("assignments", parse_assignment_spec),
        eager=_flag(fields, "eager"),
        shards=given("shards", lambda shards: _whole("shards", shards, 1, limits.MAX_PARTS)),
        time_budget=given("time_budget", _check_time_budget),
        layout=given("layout", _parse_layout),
        allow_nonfinite=_flag(fields, "allow_nonfinite"),
        updates_from=given("updates_from", lambda name: check_id("round", name)),
        server_optimizer=given("server_optimizer", parse_server_optimizer),
    )
    _check_topology(spec)
    _check_rule(spec)
    _check_apply(spec)
    return spec


def parse_new_spec(fields: Mapping[str, Any]) -> RoundSpec:
    """Check the terms of a round that is to be opened.

    Raises
    ------
    SpecError
        They are none (:func:`parse_spec`), or lack a layout that the updates could not decide on.
    """
    spec = parse_spec(fields)
    if spec.undecided is not None:
        raise SpecError(spec.undecided)
    return spec


def _check_time_budget(time_budget: Any) -> float:
    if (
        isinstance(time_budget, bool)
        or not isinstance(time_budget, int | float)
        or not 0 < time_budget < 1e6
    ):
        raise SpecError(f"time_budget is {time_budget!r}, not a number of seconds above zero")
    return time_budget


def _parse_rule(rule: Any) -> PartialRule:
    if isinstance(rule, str):
        rule = {"name": rule}
    if not isinstance(rule, Mapping):
        raise SpecError(f"rule is {rule!r}, neither {', '.join(RULES)} nor {{name: …, …}}")
    return parse_rule(rule)


def parse_assignment_spec(stated: Any) -> AssignmentSpec:
    """Read the terms of assignments: the fields of :class:`AssignmentSettings`, and ``after``.

    Raises
    ------
    SpecError
        They make no sense.
    """
    if not isinstance(stated, Mapping):
        raise SpecError(f"assignments is {stated!r}, not {{batch_size: …, epochs: …, …}}")
    fields = dict(stated)
    after = fields.pop("after", None)
    return AssignmentSpec(
        parse_assignment_settings(fields), None if after is None else check_id("round", after)
    )


def _check_rule(spec: RoundSpec) -> None:
    """Check what the rule for partial updates goes with."""
    if spec.rule is None:
        if spec.layers is not None:
            raise SpecError("layers is for rounds of partial updates: give a rule, too")
        return
    if spec.weights != SHARES:
        raise SpecError(
            f"rule {spec.rule.name} has weights of its own, layer by layer: leave out weights"
        )
    if spec.layers is not None and spec.layout is not None:
        layers_of(spec.layout, spec.layers)


def _check_apply(spec: RoundSpec) -> None:
    """Check what applying the update goes with."""
    if spec.server_optimizer is None:
        return
    if spec.layout is not None:
        raise SpecError("a round that is applied has the model's layout: leave out layout")
    if spec.server_optimizer.updates == MODELS and spec.rule is not None:
        raise SpecError(
            "server_optimizer: updates models cannot be partial, since what nobody sends is no "
            f"change: send deltas, or leave out rule {spec.rule.name}"
        )


def _check_topology(spec: RoundSpec) -> None:
    """Check what depends on more than one field, for as many contributors as are expected."""
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


def _parse_clients(clients: Any) -> tuple[str, ...] | int:
    if clients is None:
        raise SpecError("clients is missing: give the expected clients' ids, or how many they are")
    if isinstance(clients, int):
        return _whole("clients", clients, 1, MAX_CLIENTS)
    if isinstance(clients, str) or not isinstance(clients, Sequence):
        raise SpecError(f"clients is {clients!r}, neither a list of ids nor a number")
    ids = tuple(sorted(check_id("client", client) for client in clients))
    if not 1 <= len(ids) <= MAX_CLIENTS:
        raise SpecError(f"clients has {len(ids)} ids; a round takes 1 to {MAX_CLIENTS}")
    twice = next((a for a, b in itertools.pairwise(ids) if a == b), None)
    if twice is not None:
        raise SpecError(f"client {twice!r} is expected twice")
    return ids


def default_quorum(expected: int) -> int:
    """Return how many clients a round needs that was opened without a number.

    More than half of those expected, so that no client alone, and no minority, is the federation;
    one where only one is expected.
    """
    return expected // 2 + 1


def _parse_min_clients(stated: Any, expected: int) -> int:
    if stated is None:
        return default_quorum(expected)
    min_clients = _whole("min_clients", stated, 1, MAX_CLIENTS)
    if min_clients > expected:
        raise SpecError(f"min_clients is {min_clients}, over the {expected} expected clients")
    return min_clients


def _parse_layout(layout: Any) -> Layout:
    if not isinstance(layout, Mapping) or not all(
        isinstance(entry, Mapping)
        and isinstance(entry.get("dtype"), str)
        and isinstance(entry.get("shape"), Sequence)
        for entry in layout.values()
    ):
        raise SpecError('layout is not {name: {"dtype": …, "shape": […]}, …}')
    try:
        packed = Layout.pack((n, entry["dtype"], entry["shape"]) for n, entry in layout.items())
    except UpdateError as error:
        raise SpecError(f"layout: {error}") from None
    if packed.nbytes == 0:
        raise SpecError("layout is empty: it holds no element of any tensor")
    return packed


def _one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise SpecError(f"{name} is {value!r}, not one of {', '.join(choices)}")
    return value


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise SpecError(f"{name} is {value!r}, not true or false")
    return value


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SpecError(f"{name} is {value!r}, not a whole number from {low} to {high}")
    return value
