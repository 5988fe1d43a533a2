"""The plan of a round: who contributes with which weight, and which task does what."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from gradshard.arithmetic import weights_of
from gradshard.keys import ObjectVersion
from gradshard.layout import Run, Span
from gradshard.planning import Shard

RULE: Final = "fedavg"
TOPOLOGY: Final = "shards"
ORDER: Final = "sequential"


@dataclass(frozen=True)
class Contributor:
    """A client frozen into the plan.

    Parameters
    ----------
    client
        Its id.
    source
        The version of its update that is averaged, whatever it uploads later.
    samples
        n, the number of samples it trained on.
    weight
        p = n / Σn.
    runs
        Where the layout's bytes stand in its object.
    """

    client: str
    source: ObjectVersion
    samples: int
    weight: float
    runs: tuple[Run, ...]

    def ranges(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the byte ranges of the object that hold the layout's [start, end)."""
        return [
            (
                run.offset + max(run.start, start) - run.start,
                run.offset + min(run.end, end) - run.start,
            )
            for run in self.runs
            if run.start < end and start < run.end
        ]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "client": self.client,
            "source": self.source._asdict(),
            "samples": self.samples,
            "weight": self.weight,
            "runs": self.runs,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote."""
        return cls(
            fields["client"],
            ObjectVersion(**fields["source"]),
            fields["samples"],
            fields["weight"],
            tuple(Run(*run) for run in fields["runs"]),
        )


@dataclass(frozen=True)
class Refusal:
    """An update that does not take part, and the reason its sender reads.

    ``late`` ones came after planning: an earlier one of the same client may well take part.
    """

    client: str
    reason: str
    etag: str = ""
    late: bool = False


@dataclass(frozen=True)
class Plan:
    """What :func:`gradshard.rounds.plan_round` freezes and every task reads.

    Parameters
    ----------
    round_id, attempt
        Whose plan, and how often contributors were refused while their updates were read: each
        time the round is planned again without them.
    contributors
        In the order of their additions, which is that of their ids.
    spans
        The layout's element types.
    nbytes, tensors
        Size of the layout, and the number of its tensors.
    header_bytes
        Size of the result's header, which the first task writes.
    upload_id
        The multipart upload that becomes the result.
    shards
        The tasks.
    allow_nonfinite
        Whether NaN and infinities are averaged.
    refused, missing
        Who does not take part.
    notes
        What was decided otherwise than asked for.
    projected
        What the round was expected to take.
    opened_at, planned_at
        Times in ISO 8601.
    """

    round_id: str
    attempt: int
    contributors: tuple[Contributor, ...]
    spans: tuple[Span, ...]
    nbytes: int
    tensors: int
    header_bytes: int
    upload_id: str
    shards: tuple[Shard, ...]
    allow_nonfinite: bool
    refused: tuple[Refusal, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    projected: dict[str, Any]
    opened_at: str
    planned_at: str

    def tasks(self) -> list[dict[str, Any]]:
        """Return the items of the machine's Map: one task each."""
        return [
            {"round": self.round_id, "attempt": self.attempt, "shard": shard._asdict()}
            for shard in self.shards
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON."""
        return {
            "round": self.round_id,
            "attempt": self.attempt,
            "rule": RULE,
            "topology": TOPOLOGY,
            "order": ORDER,
            "contributors": [contributor.to_json() for contributor in self.contributors],
            "spans": self.spans,
            "nbytes": self.nbytes,
            "tensors": self.tensors,
            "header_bytes": self.header_bytes,
            "upload_id": self.upload_id,
            "shards": self.shards,
            "allow_nonfinite": self.allow_nonfinite,
            "refused": [vars(refusal) for refusal in self.refused],
            "missing": self.missing,
            "notes": self.notes,
            "projected": self.projected,
            "opened_at": self.opened_at,
            "planned_at": self.planned_at,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote."""
        return cls(
            round_id=fields["round"],
            attempt=fields["attempt"],
            contributors=tuple(Contributor.from_json(c) for c in fields["contributors"]),
            spans=tuple(Span(*span) for span in fields["spans"]),
            nbytes=fields["nbytes"],
            tensors=fields["tensors"],
            header_bytes=fields["header_bytes"],
            upload_id=fields["upload_id"],
            shards=tuple(Shard(*shard) for shard in fields["shards"]),
            allow_nonfinite=fields["allow_nonfinite"],
            refused=tuple(Refusal(**refusal) for refusal in fields["refused"]),
            missing=tuple(fields["missing"]),
            notes=tuple(fields["notes"]),
            projected=fields["projected"],
            opened_at=fields["opened_at"],
            planned_at=fields["planned_at"],
        )


def weigh(contributors: Sequence[Contributor]) -> tuple[Contributor, ...]:
    """Put contributors in their order and normalise their weights."""
    ordered = sorted(contributors, key=lambda contributor: contributor.client)
    weights = weights_of([contributor.samples for contributor in ordered])
    return tuple(
        replace(contributor, weight=weight)
        for contributor, weight in zip(ordered, weights, strict=True)
    )
