"""Parse the options of a round, and check which of them go with which others."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gradshard_core.aggregation import addition_order
from gradshard_core.aggregation.arithmetic import COUNTS, SHARES
from gradshard_core.aggregation.batchnorm_buffers import Stretches, is_in
from gradshard_core.aggregation.server_optimizers import MODELS
from gradshard_core.aggregation.topologies import TOPOLOGIES
from gradshard_core.errors import SpecError
from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.long_lists import Get, StoredList
from gradshard_core.formats.tensor_layout import Layout, shorten
from gradshard_core.limits.own_limits import MAX_COMPARED_LAYERS, MAX_LAYER_PRODUCTS
from gradshard_core.privacy.privacy_mechanism import LEAST_CLIENTS
from gradshard_core.robust.inner_products import count_matrices
from gradshard_core.robust.rules import LAYER_QUORUM, ROBUST_RULES, RobustRule
from gradshard_core.specs.masking_options import check_masked
from gradshard_core.specs.option_kinds import check_names
from gradshard_core.specs.option_parsers import check_stored_clients, parse_clients
from gradshard_core.specs.round_spec import DEFAULTS, OPTIONS, RoundSpec
from gradshard_core.stragglers.layers import layers_of


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
    # How many updates a rule needs comes first: other numbers follow from it.
    _check_robust(spec)
    _check_privacy(spec)
    _check_clients(spec)
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
    if spec.why_layout_is_needed is not None:
        raise SpecError(spec.why_layout_is_needed)
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


_TAKE_WHOLE_UPDATES: Final = {"dp": "dp", "masked": "masked", "inbox": "a buffered training"}
"""Options with which no rule takes partial updates, as messages call them."""


def _check_rule(spec: RoundSpec) -> None:
    """Check what the rule for partial updates goes with."""
    if not spec.takes_partial:
        if spec.layers is not None:
            why = "give a rule, too"
            if spec.robust_rule is not None:
                why = f"rule {spec.robust_rule.name} takes whole ones unless it has a layer_quorum"
            for name, what in _TAKE_WHOLE_UPDATES.items():
                if getattr(spec, name) is not None:
                    why = f"{what} takes whole ones: leave out layers"
            raise SpecError(f"layers is for rounds of partial updates: {why}")
        return
    if spec.partial_rule is not None and spec.weights != SHARES:
        raise SpecError(
            f"rule {spec.partial_rule.name} has weights of its own, layer by layer: leave out "
            "weights"
        )
    if spec.layers is not None and spec.layout is not None:
        layers_of(spec.layout, spec.layers)
    if spec.layout is not None:
        check_compared(spec, spec.layout, ())


def _check_apply(spec: RoundSpec) -> None:
    """Check the fields that the server optimizer depends on."""
    if spec.server_optimizer is None:
        if spec.dp is not None and spec.dp.asked_for is not None:
            what = "draw" if spec.is_drawn else "tree"
            raise SpecError(
                f"dp: {what} is for rounds of a training, which make versions of a model: leave it "
                "out"
            )
        return
    if spec.layout is not None:
        raise SpecError(
            "server_optimizer decides on the layout, that of its model: leave out layout"
        )
    robust = spec.robust_rule
    if spec.server_optimizer.updates == MODELS and robust is not None and robust.is_of_changes:
        raise SpecError(
            f"server_optimizer: rule {robust.name} uses the norms or directions of changes, "
            "and updates are whole models: send deltas, or take median, trimmed_mean, krum or "
            "geometric_median"
        )
    if spec.server_optimizer.updates == MODELS and spec.rule is not None and spec.takes_partial:
        what = f"rule {spec.rule.name}" if robust is None else LAYER_QUORUM
        raise SpecError(
            "server_optimizer: updates models cannot be partial, since a layer that nobody "
            f"sends must stay unchanged: send deltas, or leave out {what}"
        )


def _least(rule: Any, dp: Any) -> int:
    least = rule.least_clients if isinstance(rule, RobustRule) else 1
    return max(least, 1 if dp is None or dp.draw is not None else LEAST_CLIENTS)


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
    if rule is not None and rule.is_elementwise and spec.inbox.exponent:
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
    if rule.is_elementwise and spec.order is not None:
        raise SpecError(f"rule {rule.name} adds in an order of its own: leave out order")


def _check_privacy(spec: RoundSpec) -> None:
    """Check what differential privacy goes with."""
    if spec.dp is None:
        return
    if spec.expected < LEAST_CLIENTS and not spec.is_drawn:
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
            "dp: updates are whole models, whose norm says nothing of what a client has "
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
    if min_clients < least <= expected:  # if more are needed than are expected, no number will do
        raise SpecError(
            f"min_clients is {min_clients}, under the {least} updates that the rule needs: give "
            f"at least {least}, or leave it out"
        )
    return min_clients


def check_compared(spec: RoundSpec, layout: Layout, averaged: Stretches) -> None:
    """Check that partial updates can be compared layer by layer.

    Parameters
    ----------
    spec
        The spec.
    layout
        That of the round.
    averaged
        The stretches of the layout that are buffers.

    Raises
    ------
    SpecError
        A layer has no element that is measured, or there are too many products.
    """
    rule = spec.robust_rule
    if rule is None or not spec.compares_layers:
        return
    tensors = {t.name: t for t in layout.tensors if t.start < t.end}
    layers = layers_of(layout, spec.layers)
    for layer in layers:
        there = [tensors[name] for name in layer.tensors if name in tensors]
        if there and all(DTYPES[t.dtype].is_integer or is_in(averaged, t.start) for t in there):
            raise SpecError(
                f"rule {rule.name} compares updates layer by layer, and layer "
                f"{shorten(layer.name)!r} has integers and buffers alone, which are not measured: "
                "put its tensors into another layer (layers, or --layers)"
            )
    if len(layers) > MAX_COMPARED_LAYERS:
        raise SpecError(
            f"rule {rule.name} decides on each of {len(layers)} layers, over the "
            f"{MAX_COMPARED_LAYERS} of a round: make fewer layers of the tensors (layers, or "
            "--layers)"
        )
    per_layer = count_matrices(layout.spans, 1)
    products = len(layers) * per_layer * spec.expected**2
    if products > MAX_LAYER_PRODUCTS:
        most = MAX_LAYER_PRODUCTS // (per_layer * spec.expected**2)
        raise SpecError(
            f"rule {rule.name} compares {spec.expected} clients in each of {len(layers)} layers, "
            f"whose products take the memory of {products}, over the {MAX_LAYER_PRODUCTS} of a "
            f"round: make at most {most} layers of the tensors (layers, or --layers), or expect "
            f"at most {math.isqrt(MAX_LAYER_PRODUCTS // (per_layer * len(layers)))} clients (in a "
            "training, sample)"
        )
