"""The weights of a round's updates, by samples, local steps or staleness, or all the same."""

from collections.abc import Sequence
from dataclasses import replace

from gradshard_core.aggregation.arithmetic import COUNTS, EQUAL, MEASURED, STEPS, shares_of
from gradshard_core.aggregation.masked_sum import ADDED
from gradshard_core.planning.plan_parts import Contributor
from gradshard_core.specs.inbox_spec import InboxSpec
from gradshard_core.specs.masking_options import MASKED
from gradshard_core.specs.round_spec import RoundSpec
from gradshard_core.stragglers.fednova import bounded_steps, normalised_weights
from gradshard_core.stragglers.staleness import staleness_discount


def weights_of(spec: RoundSpec, *, is_decided: bool = False) -> str:
    """Return how contributors are weighed; ``is_decided`` if a rule has measured and decided."""
    if is_decided:
        return MEASURED
    if spec.masked is not None:
        return MASKED
    return EQUAL if spec.robust_rule is not None or spec.dp is not None else spec.weights


def weigh(contributors: Sequence[Contributor], weights: str) -> tuple[Contributor, ...]:
    """Give contributors their weights.

    Parameters
    ----------
    contributors
        All of the round's contributors.
    weights
        ``counts``, which do not depend on the other contributors, ``shares``, ``steps``,
        ``equal``, ``masked`` or ``measured``.
    """
    samples = [contributor.samples for contributor in contributors]
    if weights == COUNTS:
        values = list(map(float, samples))
    elif weights == EQUAL:
        values = [1 / len(contributors)] * len(contributors)
    elif weights == MASKED:
        values = [ADDED] * len(contributors)
    elif weights == MEASURED:
        # A plan is read by clients, and the rule's weights would tell them the norms of others.
        values = [0.0] * len(contributors)
    elif weights == STEPS:
        steps = bounded_steps(list(local_steps(contributors).values()))
        values = list(normalised_weights(samples, steps))
    else:
        values = shares_of(samples)
    return tuple(
        replace(contributor, weight=weight)
        for contributor, weight in zip(contributors, values, strict=True)
    )


def discounted(contributors: Sequence[Contributor], inbox: InboxSpec) -> tuple[Contributor, ...]:
    """Discount weights by staleness: what stale updates lose, nobody gains."""
    return tuple(
        replace(c, weight=c.weight * staleness_discount(c.staleness, inbox.exponent))
        for c in contributors
    )


def local_steps(contributors: Sequence[Contributor]) -> dict[str, int]:
    """Return the local steps by client; updates that report none were rejected before."""
    return {c.client: c.report.steps for c in contributors if c.report and c.report.steps}
