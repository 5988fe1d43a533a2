"""A plan as JSON: one flat object, as it is stored in ``plan.json``."""

from array import array
from collections.abc import Sequence
from typing import Any

from gradshard_core.aggregation.gram_sample import Sample
from gradshard_core.aggregation.privacy import parse_privacy
from gradshard_core.aggregation.robust_rules import parse_robust_rule
from gradshard_core.aggregation.server_optimizers import parse_server_optimizer
from gradshard_core.formats.encoded import EncodedRuns
from gradshard_core.formats.keys import ObjectVersion, StoredTensors
from gradshard_core.formats.layout import Runs, Span
from gradshard_core.formats.masked import Share
from gradshard_core.planning.masking import Masking
from gradshard_core.planning.outputs import NextModel, StoredHeader
from gradshard_core.planning.plan import (
    Computation,
    Contributor,
    LayerRanges,
    Level,
    Participants,
    Plan,
    PlannedLayerWeights,
    PlannedLayout,
    Rejection,
    Stage,
)


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON."""
    tables = _Tables()
    participants, computation, layout = plan.participants, plan.computation, plan.layout
    return {
        "round": plan.round_id,
        "attempt": plan.attempt,
        "entered_at": plan.stage.entered_at,
        "stage": plan.stage.number,
        "stage_groups": plan.stage.groups,
        "awaited": plan.stage.awaited,
        "contributors": [_contributor_to_json(c, tables) for c in participants.contributors],
        "rejected": [vars(rejection) for rejection in participants.rejected],
        "missing": participants.missing,
        "left_out": [_contributor_to_json(c, tables) for c in participants.left_out],
        "encodings": tables.written,
        "topology": computation.topology,
        "order": computation.order,
        "weights": computation.weights,
        "rule": computation.rule,
        "robust": computation.robust and computation.robust.to_json(),
        "measures": computation.measures,
        "measured": computation.measured,
        "dp": computation.dp and computation.dp.to_json(),
        "sample": computation.sample and computation.sample.to_json(),
        "allow_nonfinite": computation.allow_nonfinite,
        "shards": computation.shards,
        "levels": [vars(level) for level in computation.levels],
        "layers": [
            (*layer, *weighed)
            for layer, weighed in zip(layout.layers, computation.layers, strict=True)
        ],
        "spans": layout.spans,
        "nbytes": layout.nbytes,
        "tensors": layout.tensors,
        "header": layout.header,
        "state_header": layout.state_header,
        "buffers": layout.buffers,
        "upload_id": plan.upload_id,
        "next_model": plan.next_model and _next_model_to_json(plan.next_model),
        "masking": plan.masking and plan.masking.to_json(),
        "assignments": plan.assignments,
        "notes": plan.notes,
        "projected": plan.projected,
        "opened_at": plan.opened_at,
        "planned_at": plan.planned_at,
    }


def parse_plan(written: dict[str, Any]) -> Plan:
    """Read what :func:`plan_to_json` wrote.

    Raises
    ------
    KeyError, TypeError, ValueError
        The JSON is no plan.
    """
    groups = written["stage_groups"]
    tables = [array("q", numbers) for numbers in written["encodings"]]
    return Plan(
        round_id=written["round"],
        participants=Participants(
            contributors=tuple(_parse_contributor(c, tables) for c in written["contributors"]),
            rejected=tuple(Rejection(**rejection) for rejection in written["rejected"]),
            missing=tuple(written["missing"]),
            left_out=tuple(_parse_contributor(c, tables) for c in written["left_out"]),
        ),
        computation=Computation(
            levels=tuple(_parse_level(level) for level in written["levels"]),
            shards=written["shards"],
            topology=written["topology"],
            order=written["order"],
            weights=written["weights"],
            rule=written["rule"],
            robust=written["robust"] and parse_robust_rule(written["robust"]),
            measures=written["measures"],
            measured=written["measured"],
            dp=written["dp"] and parse_privacy(written["dp"]),
            sample=written["sample"] and Sample.from_json(written["sample"]),
            layers=tuple(
                PlannedLayerWeights(missed, tuple(weights))
                for _, _, missed, weights in written["layers"]
            ),
            allow_nonfinite=written["allow_nonfinite"],
        ),
        layout=PlannedLayout(
            spans=tuple(Span(*span) for span in written["spans"]),
            nbytes=written["nbytes"],
            tensors=written["tensors"],
            header=StoredHeader(*written["header"]),
            layers=tuple(
                LayerRanges(name, _pairs(ranges)) for name, ranges, _, _ in written["layers"]
            ),
            state_header=StoredHeader(*written["state_header"]),
            buffers=_pairs(written["buffers"]),
        ),
        attempt=written["attempt"],
        stage=Stage(
            entered_at=written["entered_at"],
            number=written["stage"],
            groups=None if groups is None else tuple(groups),
            awaited=tuple(written["awaited"]),
        ),
        upload_id=written["upload_id"],
        next_model=written["next_model"] and _parse_next_model(written["next_model"]),
        masking=written["masking"] and Masking.from_json(written["masking"]),
        assignments=written["assignments"],
        notes=tuple(written["notes"]),
        projected=written["projected"],
        opened_at=written["opened_at"],
        planned_at=written["planned_at"],
    )


class _Tables:
    """The runs of compressed updates, each table once, however many contributors have it."""

    def __init__(self) -> None:
        self.written: list[list[int]] = []
        self._numbers: dict[bytes, int] = {}

    def number(self, runs: EncodedRuns) -> int:
        """Return the number of the table that some runs have."""
        key = runs.table.tobytes()
        if key not in self._numbers:
            self._numbers[key] = len(self.written)
            self.written.append(runs.to_json())
        return self._numbers[key]


def _runs_to_json(runs: Runs, tables: _Tables) -> Any:
    if isinstance(runs, EncodedRuns):
        return {"codec": runs.codec, "table": tables.number(runs), "shift": runs.shift}
    return runs.to_json()


def _parse_runs(written: Any, tables: Sequence["array[int]"]) -> Runs:
    if isinstance(written, dict):
        return EncodedRuns(written["codec"], tables[written["table"]], written["shift"])
    return Runs(written)


def _contributor_to_json(contributor: Contributor, tables: _Tables) -> dict[str, Any]:
    return vars(contributor) | {
        "source": contributor.source._asdict(),
        "runs": _runs_to_json(contributor.runs, tables),
    }


def _parse_contributor(written: dict[str, Any], tables: Sequence["array[int]"]) -> Contributor:
    return Contributor(
        written["client"],
        ObjectVersion(**written["source"]),
        written["samples"],
        written["weight"],
        _parse_runs(written["runs"], tables),
        written["report"],
        written["staleness"],
        written["codec_error"],
        written["share"] and Share.of_json(written["share"]),
    )


def _parse_level(written: dict[str, Any]) -> Level:
    return Level(_pairs(written["groups"]), tuple(written["order"]))


def _next_model_to_json(new: NextModel) -> dict[str, Any]:
    return vars(new) | {
        "server_optimizer": new.server_optimizer.to_json(),
        "model": new.model.to_json(),
        "state": [stored.to_json() for stored in new.state],
    }


def _parse_next_model(written: dict[str, Any]) -> NextModel:
    return NextModel(
        server_optimizer=parse_server_optimizer(written["server_optimizer"]),
        version=written["version"],
        step=written["step"],
        model=StoredTensors.from_json(written["model"]),
        state=tuple(StoredTensors.from_json(stored) for stored in written["state"]),
        uploads=tuple(written["uploads"]),
    )


def _pairs(written: list[list[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((first, second) for first, second in written)
