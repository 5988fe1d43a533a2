"""The values of a training's records that are exported: by name, round and time."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple


class Value(NamedTuple):
    """A value.

    Parameters
    ----------
    name
        Such as ``training/loss``, ``evaluation/accuracy`` or ``gradshard/dollars``.
    step
        The number of the round.
    at
        The time at which the round ended.
    value
        The value.
    """

    name: str
    step: int
    at: datetime
    value: float


def values_of(records: Sequence[Mapping[str, Any]]) -> Iterator[Value]:
    """Yield the values of a training's completed rounds, in their order.

    Beside the clients' metrics these are the contributors and the dollars of each round of
    training, and all dollars so far, those of evaluations included.
    """
    total = 0.0
    for record in records:
        at = datetime.fromisoformat(record["closed_at"])
        total += record["dollars"]
        if not record["is_completed"]:
            continue
        kind = "evaluation" if record["is_evaluation"] else "training"
        for name, value in record["metrics"].items():
            yield Value(f"{kind}/{name}", record["number"], at, value)
        if not record["is_evaluation"]:
            clients = float(len(record["contributors"]))
            yield Value("gradshard/contributors", record["number"], at, clients)
            yield Value("gradshard/dollars", record["number"], at, record["dollars"])
            yield Value("gradshard/dollars in all", record["number"], at, total)
