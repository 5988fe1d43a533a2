"""The weights of each layer of partial updates, which may depend on the records of past rounds."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

from gradshard_core.aggregation.arithmetic import shares_of
from gradshard_core.errors import PlanError
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.planning.plan_parts import Contributor, LayerRanges, PlannedLayerWeights
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.round_spec import RoundSpec
from gradshard_core.stragglers.layer_reach import PastRound, PastRounds, estimate_reach
from gradshard_core.stragglers.layers import Coverage, Layer
from gradshard_core.stragglers.salf import effective_weights


def weigh_layers(
    store: S3Store,
    spec: RoundSpec,
    contributors: Sequence[Contributor],
    layers: Sequence[LayerRanges],
    coverage: dict[str, Coverage],
) -> tuple[PlannedLayerWeights, ...]:
    """Weigh each layer of partial updates.

    Parameters
    ----------
    store, spec
        The bucket, and the terms of the round.
    contributors
        Sorted by id.
    layers
        The layers of the round's layout.
    coverage
        The layers that each contributor has.

    Raises
    ------
    PlanError
        The probabilities cannot be estimated from the rounds that the rule names.
    """
    if not spec.takes_partial or not contributors:
        return ()
    quorum = None if spec.robust_rule is None else spec.robust_rule.layer_quorum
    if spec.robust_rule is not None and quorum is not None:
        by_samples = spec.robust_rule.counts_samples
        counts = [contributor.samples if by_samples else 1 for contributor in contributors]
        held = [coverage[contributor.client] for contributor in contributors]
        return tuple(_shares(covers, counts, quorum) for covers in zip(*held, strict=True))
    names = [contributor.client for contributor in contributors]
    named = [Layer(layer.name, ()) for layer in layers]
    expected: list[str | None]
    if isinstance(spec.clients, int):
        expected = [*names, *[None] * (spec.clients - len(names))]
    else:
        expected = list(spec.clients)
    rule = spec.partial_rule
    assert rule is not None  # noqa: S101 - for mypy: other rules have returned
    if isinstance(rule.reach_model, PastRounds):
        known = [client for client in expected if client is not None]
        past = [_past_round(store, name) for name in rule.reach_model.rounds]
        rule = replace(rule, reach_model=estimate_reach(past, known, named))
    samples = {contributor.client: contributor.samples for contributor in contributors}
    weighed = effective_weights(rule, named, expected, coverage, samples)
    return tuple(PlannedLayerWeights(layer.missed, layer.weights) for layer in weighed)


def _shares(covers: Coverage, counts: Sequence[int], quorum: int) -> PlannedLayerWeights:
    """Weigh a layer under a robust rule: shares among those that have it; zero if too few do."""
    shares = iter(shares_of(list(itertools.compress(counts, covers))))
    counted = float(sum(covers) >= quorum)
    return PlannedLayerWeights(
        None, tuple(next(shares) * counted if held else None for held in covers)
    )


def _past_round(store: S3Store, name: str) -> PastRound:
    """Read who was expected in a round that has ended, and which layers each client covered."""
    manifest = store.get_json(RoundKeys(name).manifest) or {}
    if "layers" not in manifest:
        raise PlanError(
            f"p cannot be estimated from round {name!r}: it is no completed round of partial "
            "updates; name others, or give p"
        )
    covered = {layer["name"]: frozenset(layer["weights"]) for layer in manifest["layers"]}
    return PastRound(frozenset(manifest["expected"]), covered)
