"""What a round is asked for: checked once here, for the command line and the function alike."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gradshard.errors import SpecError, UpdateError
from gradshard.keys import check_id
from gradshard.layout import Layout

MAX_CLIENTS: Final = 64
"""Streams a task may hold open at once, and so contributors of a one-level plan."""

MAX_SHARDS: Final = 10_000
"""Parts that S3 takes in one upload."""

MAX_DEADLINE: Final = 7 * 24 * 3600
DEFAULT_DEADLINE: Final = 3600

_FIELDS: Final = {
    "clients",
    "min_clients",
    "deadline",
    "shards",
    "within",
    "layout",
    "allow_nonfinite",
}


@dataclass(frozen=True)
class RoundSpec:
    """The terms of a round.

    Parameters
    ----------
    clients
        The ids of the expected clients, sorted, or how many are expected, whoever they are.
    min_clients
        The quorum: with fewer valid updates at the deadline the round fails.
    deadline
        Seconds from the opening of the round after which no more updates are awaited.
    shards
        M, or None to let the planner choose.
    within
        Seconds the aggregation should take at most; the planner then buys time with shards.
    layout
        The layout every update must have; None: that of the majority.
    allow_nonfinite
        Average NaN and infinities instead of refusing the update that holds them.
    """

    clients: tuple[str, ...] | int
    min_clients: int = 1
    deadline: int = DEFAULT_DEADLINE
    shards: int | None = None
    within: float | None = None
    layout: Layout | None = None
    allow_nonfinite: bool = False

    @property
    def expected(self) -> int:
        """How many clients are expected."""
        return self.clients if isinstance(self.clients, int) else len(self.clients)

    def expects(self, client: str) -> bool:
        """Whether an update of ``client`` may take part."""
        return isinstance(self.clients, int) or client in self.clients

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

    def to_json(self) -> dict[str, Any]:
        """Return the spec as the JSON that :func:`parse_spec` reads."""
        layout = self.layout and {
            t.name: {"dtype": t.dtype, "shape": list(t.shape)} for t in self.layout.tensors
        }
        fields = {
            "clients": self.clients if isinstance(self.clients, int) else list(self.clients),
            "min_clients": self.min_clients,
            "deadline": self.deadline,
            "shards": self.shards,
            "within": self.within,
            "layout": layout,
            "allow_nonfinite": self.allow_nonfinite or None,
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
    unknown = sorted(fields.keys() - _FIELDS)
    if unknown:
        raise SpecError(f"unknown field {unknown[0]!r}; a spec has {', '.join(sorted(_FIELDS))}")
    clients = _parse_clients(fields.get("clients"))
    expected = clients if isinstance(clients, int) else len(clients)
    min_clients = _whole("min_clients", fields.get("min_clients", 1), 1, MAX_CLIENTS)
    if min_clients > expected:
        raise SpecError(f"min_clients is {min_clients}, over the {expected} expected clients")
    shards, within = fields.get("shards"), fields.get("within")
    if shards is not None and within is not None:
        raise SpecError("give shards or within, not both: one decides the other")
    if shards is not None:
        shards = _whole("shards", shards, 1, MAX_SHARDS)
    if within is not None and (
        isinstance(within, bool) or not isinstance(within, int | float) or not 0 < within < 1e6
    ):
        raise SpecError(f"within is {within!r}, not a number of seconds above zero")
    allow_nonfinite = fields.get("allow_nonfinite", False)
    if not isinstance(allow_nonfinite, bool):
        raise SpecError(f"allow_nonfinite is {allow_nonfinite!r}, not true or false")
    return RoundSpec(
        clients=clients,
        min_clients=min_clients,
        deadline=_whole("deadline", fields.get("deadline", DEFAULT_DEADLINE), 1, MAX_DEADLINE),
        shards=shards,
        within=within,
        layout=_parse_layout(fields.get("layout")),
        allow_nonfinite=allow_nonfinite,
    )


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


def _parse_layout(layout: Any) -> Layout | None:
    if layout is None:
        return None
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


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SpecError(f"{name} is {value!r}, not a whole number from {low} to {high}")
    return value
