"""The JSON of a round's manifest: what it says of a completed and of a failed round.

docs/formats.md has the fields that most readers need. These are further ones:

- ``rule``, ``topology``, ``order``, ``weights``, ``groups`` (sizes, level by level), and ``shards``
  (M): as planned; ``notes``: what differs from the request.
- ``tasks``: for each task its level, byte range, seconds, memory and traffic; ``totals``: their
  sums, or maxima.
- ``projected``: for AWS: ``needed_mb``, ``task_seconds``, ``seconds``, ``dollars`` by kind of
  charge, and their ``total``.
- ``contributors`` also has ``staleness``, 0 except in buffered trainings, ``codec`` and
  ``codec_error``. ``weight`` is null in robust, private and masked rounds and those of partial
  updates, and ``samples`` in masked rounds.
- ``codecs``: for each codec the number of ``updates`` and their ``nbytes``.
- ``left_out``: the clients that a robust rule left out. ``measuring``: the ``rule``, the key of its
  ``decision``, the number of ``measured`` updates, the ``clipped`` clients, the ``sample``, and
  under rules that decide by layer ``left_out_by_layer``.
- ``privacy``, of private rounds: the settings of ``dp``, ``clients``, ``deviation`` of the noise,
  ``step`` of its grid, ``cost``, and ``spent`` by the model so far; with an adaptive clip ``whole``
  (updates that were not clipped, with noise) and ``next_clip``.
- ``layers``, of partial updates: each layer's ``name``, ``p``, and ``weights`` by client;
  ``expected``: the expected clients.
- ``masked``: the terms of a masked round; ``samples``: how many all contributors have together;
  ``masks``: the version of the keeper's answer.
- ``attempts``: how often the round was planned.
"""

import math
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

from gradshard_core.aggregation.sharding import count_elements
from gradshard_core.formats.object_keys import ObjectVersion, RoundKeys
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_parts import Contributor, Participants
from gradshard_core.records.manifest_status import COMPLETED, FAILED
from gradshard_core.records.model_registry import Version
from gradshard_core.records.plan_and_manifest import stored
from gradshard_core.records.privacy_ledger import read_ledger
from gradshard_core.s3.store import S3Store


class Work(NamedTuple):
    """The reports of a round's tasks, added up.

    Parameters
    ----------
    tasks
        Their records, as the manifest lists them.
    totals
        The sums of their seconds, requests and bytes.
    noisy_count
        In a private round with an adaptive clip, the number of updates that were not clipped, with
        noise.
    """

    tasks: Any
    totals: Any
    noisy_count: float | None


def completed_manifest(
    store: S3Store,
    keys: RoundKeys,
    plan: Plan,
    result: tuple[ObjectVersion, str],
    work: Work,
    version: Version | None,
    measuring: dict[str, Any],
) -> dict[str, Any]:
    """Return the manifest of a round that has completed.

    Parameters
    ----------
    store, keys, plan
        The round.
    result
        The object of the average, and its CRC-64/NVME.
    work
        The reports of its tasks, added up.
    version
        The version of the model that it made, if any.
    measuring
        Of a robust rule that measures, what the manifest has of the first pass.
    """
    finished_at = datetime.now(UTC)
    update, checksum = result
    planned = datetime.fromisoformat(plan.planned_at)
    opened = datetime.fromisoformat(plan.opened_at)
    return {
        "round": plan.round_id,
        "status": COMPLETED,
        "rule": plan.computation.rule,
        "topology": plan.computation.topology,
        "order": plan.computation.order,
        "weights": plan.computation.weights,
        "update": {
            "key": update.key,
            "version": update.version,
            "etag": update.etag,
            "nbytes": update.nbytes,
            "crc64nvme": checksum,
            "tensors": plan.layout.tensors,
        },
        "contributors": stored(store, keys, plan.senders, partial(_named, plan)),
        "codecs": _by_codec(plan),
        "rejected": stored(store, keys, plan.participants.rejected, vars),
        "missing": stored(store, keys, plan.participants.missing),
        "left_out": [contributor.client for contributor in plan.participants.left_out],
        "attempts": plan.attempt + 1,
        "shards": plan.computation.shards,
        "groups": [[stop - first for first, stop in level.groups] for level in plan.levels],
        "tasks": work.tasks,
        "totals": work.totals,
        "projected": plan.projected,
        "notes": plan.notes,
        "model": version and version.to_json(),
        "privacy": _privacy(store, plan, work.noisy_count),
        **_partial(plan),
        **_masked(plan),
        **measuring,
        "opened_at": plan.opened_at,
        "planned_at": plan.planned_at,
        "finished_at": finished_at.isoformat(),
        "waited_seconds": round((planned - opened).total_seconds(), 3),
        "seconds": round((finished_at - planned).total_seconds(), 3),
    }


def _named(plan: Plan, contributor: Contributor) -> dict[str, Any]:
    """Return what the manifest has of a contributor."""
    computation = plan.computation
    has_others = (
        plan.layout.layers or computation.robust or computation.dp is not None or plan.masking
    )
    return {
        "client": contributor.client,
        "samples": contributor.samples if plan.masking is None else None,
        # Partial updates have weights by layer, and those of robust rules would tell the norms of
        # others.
        "weight": None if has_others else contributor.weight,
        "key": contributor.source.key,
        "nbytes": contributor.source.nbytes,
        "codec": contributor.codec,
        "codec_error": contributor.codec_error,
        "etag": contributor.source.etag,
        "version": contributor.source.version,
        "staleness": contributor.staleness,
    }


def _masked(plan: Plan) -> dict[str, Any]:
    """Return what the manifest of a masked round has besides: terms, sum of counts, and masks."""
    if plan.masking is None:
        return {}
    masking = plan.masking
    return {
        "masked": masking.terms.to_json(),
        "samples": masking.total,
        "masks": masking.answer and masking.answer._asdict(),
    }


def _privacy(store: S3Store, plan: Plan, whole: float | None) -> dict[str, Any] | None:
    """Return what a private average was made with, and what its model has spent with it."""
    dp = plan.computation.dp if plan.masking is None else plan.masking.terms.dp
    if dp is None:
        return None
    cost = spent = dp.cost
    if plan.next_model is not None:
        ledger = read_ledger(store, plan.next_model.server_optimizer.model)
        spent = ledger.by_version([(plan.next_model.version, plan.round_id)]).popitem()[1]
        cost = ledger.cost_of(plan.round_id, cost)
    return {
        "cost": cost,
        "spent": spent if math.isfinite(spent) else None,
        **dp.to_json(),
        "clients": len(plan.senders),
        "deviation": dp.deviation(len(plan.contributors)),
        "step": dp.grid(count_elements(plan.layout.spans, 0, plan.layout.nbytes)).step,
        "whole": whole,
        "next_clip": dp.clip if whole is None else dp.next_clip(whole, len(plan.contributors)),
    }


def _by_codec(plan: Plan) -> dict[str, dict[str, int]]:
    """Return the number of updates of each codec, and their bytes."""
    found: dict[str, dict[str, int]] = {}
    for contributor in plan.contributors:
        if contributor.codec is not None:
            of_codec = found.setdefault(contributor.codec, {"updates": 0, "nbytes": 0})
            of_codec["updates"] += 1
            of_codec["nbytes"] += contributor.source.nbytes
    return found


def _partial(plan: Plan) -> dict[str, Any]:
    """Return what the manifest has of partial updates besides: layers, and who was expected."""
    if not plan.layout.layers:
        return {}
    clients = [contributor.client for contributor in plan.contributors]
    good = [contributor.client for contributor in plan.good]
    rejected = [rejection.client for rejection in plan.participants.rejected]
    expected = {*good, *plan.participants.missing, *rejected}
    return {
        "layers": [
            {
                "name": layer.name,
                "p": weighed.missed,
                "weights": {
                    client: weight
                    for client, weight in zip(clients, weighed.weights, strict=True)
                    if weight is not None
                }
                | {c.client: 0.0 for c in plan.participants.left_out if layer.is_in(c.runs)},
            }
            for layer, weighed in zip(plan.layout.layers, plan.computation.layers, strict=True)
        ],
        "expected": sorted(expected),
    }


def failed_manifest(
    store: S3Store, keys: RoundKeys, error: str, cause: str, plan: Plan | None
) -> dict[str, Any]:
    """Return the manifest of a round that failed, as far as it was planned."""
    participants = Participants() if plan is None else plan.participants
    return {
        "round": keys.round_id,
        "status": FAILED,
        "error": error,
        "cause": cause,
        "rejected": stored(store, keys, participants.rejected, vars),
        "missing": stored(store, keys, participants.missing),
        "finished_at": datetime.now(UTC).isoformat(),
    }
