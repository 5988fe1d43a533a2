"""A plan as JSON: one flat object, as it is stored in ``plan.json``."""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from functools import partial
from typing import Any, TypeVar

from gradshard_core.aggregation.server_optimizers import parse_server_optimizer
from gradshard_core.formats.compressed_updates import EncodedRuns
from gradshard_core.formats.long_lists import PIECE, Get, ListWriter, Put, StoredList, is_in_pieces
from gradshard_core.formats.masked_updates import Share
from gradshard_core.formats.object_keys import ObjectVersion, StoredTensors
from gradshard_core.formats.tensor_layout import Runs, Span
from gradshard_core.planning.output_objects import NextModel, StoredHeader
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_parts import (
    Computation,
    Contributor,
    LayerRanges,
    Level,
    Participants,
    PlannedLayerWeights,
    PlannedLayout,
    Rejection,
    Stage,
)
from gradshard_core.privacy.privacy_mechanism import parse_privacy
from gradshard_core.robust.measured_sample import Sample
from gradshard_core.robust.rules import parse_robust_rule
from gradshard_core.specs.masking_options import Masking
from gradshard_core.stragglers.client_report import Report

T = TypeVar("T")


def plan_to_json(plan: Plan, put: Put | None = None) -> dict[str, Any]:
    """Return a plan as JSON.

    Parameters
    ----------
    plan
        The plan.
    put
        Stores the pieces of long lists. Without it, the JSON has all of them whole.
    """
    tables = _Tables()
    participants, computation, layout = plan.participants, plan.computation, plan.layout

    def listed(
        entries: Sequence[T], of_entry: Callable[[T, _Tables], Any], name_of: Callable[[T], str]
    ) -> Any:
        if put is None or len(entries) <= PIECE:
            return [of_entry(entry, tables) for entry in entries]
        writer = ListWriter(put, partial(_piece, of_entry), name_of)
        for entry in entries:
            writer.add(entry)
        return writer.to_json()

    return {
        "round": plan.round_id,
        "attempt": plan.attempt,
        "entered_at": plan.stage.entered_at,
        "stage": plan.stage.number,
        "stage_groups": plan.stage.groups,
        "awaited": plan.stage.awaited,
        "contributors": listed(participants.contributors, _contributor_to_json, _client),
        "samples": plan.samples,
        "rejected": listed(participants.rejected, lambda found, _: vars(found), _client),
        "missing": listed(participants.missing, lambda client, _: client, str),
        "left_out": [_contributor_to_json(c, tables) for c in participants.left_out],
        "encodings": tables.written,
        "topology": computation.topology,
        "order": computation.order,
        "weights": computation.weights,
        "rule": computation.rule,
        "robust": computation.robust and computation.robust.to_json(),
        "measures": computation.measures,
        "measured": computation.measured,
        "surveys": computation.surveys,
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


def parse_plan(written: dict[str, Any], get: Get | None = None) -> Plan:
    """Read what :func:`plan_to_json` wrote.

    Parameters
    ----------
    written
        The JSON.
    get
        Loads a piece of a long list, when it is needed.

    Raises
    ------
    KeyError, TypeError, ValueError
        The JSON is no plan.
    """
    groups = written["stage_groups"]
    tables = _read_tables(written)

    def listed(name: str, parse: Callable[[Any, _Read], T]) -> Sequence[T]:
        listed = written[name]
        if get is None or not is_in_pieces(listed):
            return tuple(parse(entry, tables) for entry in listed)
        return StoredList(listed, get, partial(_parse_piece, parse))

    return Plan(
        round_id=written["round"],
        participants=Participants(
            contributors=listed("contributors", _parse_contributor),
            rejected=listed("rejected", lambda found, _: Rejection(**found)),
            missing=listed("missing", lambda client, _: str(client)),
            left_out=listed("left_out", _parse_contributor),
            samples=written["samples"],
        ),
        computation=_parse_computation(written),
        layout=_parse_layout(written),
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


def _parse_computation(written: dict[str, Any]) -> Computation:
    return Computation(
        levels=tuple(_parse_level(level) for level in written["levels"]),
        shards=written["shards"],
        topology=written["topology"],
        order=written["order"],
        weights=written["weights"],
        rule=written["rule"],
        robust=written["robust"] and parse_robust_rule(written["robust"]),
        measures=written["measures"],
        measured=written["measured"],
        surveys=written["surveys"],
        dp=written["dp"] and parse_privacy(written["dp"]),
        sample=written["sample"] and Sample.from_json(written["sample"]),
        layers=tuple(
            PlannedLayerWeights(missed, tuple(weights))
            for _, _, missed, weights in written["layers"]
        ),
        allow_nonfinite=written["allow_nonfinite"],
    )


def _parse_layout(written: dict[str, Any]) -> PlannedLayout:
    return PlannedLayout(
        spans=tuple(Span(*span) for span in written["spans"]),
        nbytes=written["nbytes"],
        tensors=written["tensors"],
        header=StoredHeader(*written["header"]),
        layers=tuple(LayerRanges(name, _pairs(ranges)) for name, ranges, _, _ in written["layers"]),
        state_header=StoredHeader(*written["state_header"]),
        buffers=_pairs(written["buffers"]),
    )


def _client(entry: Contributor | Rejection) -> str:
    return entry.client


def _piece(of_entry: "Callable[[T, _Tables], Any]", entries: Sequence[T]) -> dict[str, Any]:
    """Return the JSON of a piece, with the tables that its entries refer to."""
    tables = _Tables()
    return {"entries": [of_entry(e, tables) for e in entries], "encodings": tables.written}


def _parse_piece(parse: "Callable[[Any, _Read], T]", piece: dict[str, Any]) -> list[T]:
    tables = _read_tables(piece)
    return [parse(entry, tables) for entry in piece["entries"]]


_Read = Sequence["array[int]"]
"""The tables of runs that entries refer to."""


def _read_tables(written: dict[str, Any]) -> "_Read":
    return [array("q", numbers) for numbers in written["encodings"]]


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


def _parse_runs(written: Any, tables: _Read) -> Runs:
    if isinstance(written, dict):
        return EncodedRuns(written["codec"], tables[written["table"]], written["shift"])
    return Runs(written)


def _contributor_to_json(contributor: Contributor, tables: _Tables) -> dict[str, Any]:
    plain = {field.name: getattr(contributor, field.name) for field in fields(contributor)}
    return plain | {
        "source": contributor.source._asdict(),
        "runs": _runs_to_json(contributor.runs, tables),
        "report": contributor.report and asdict(contributor.report),
    }


def _parse_contributor(written: dict[str, Any], tables: _Read) -> Contributor:
    return Contributor(
        written["client"],
        ObjectVersion(**written["source"]),
        written["samples"],
        written["weight"],
        _parse_runs(written["runs"], tables),
        written["report"] and Report.from_json(written["report"]),
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
