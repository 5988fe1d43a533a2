"""Parsers of the options of a round whose values are more than a number or a name."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from gradshard_core.errors import SpecError, UpdateError
from gradshard_core.formats.codecs.registry import CODECS
from gradshard_core.formats.long_lists import Get, StoredList, is_in_pieces
from gradshard_core.formats.object_keys import check_id
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.limits.own_limits import MAX_CLIENTS
from gradshard_core.robust.rules import ROBUST_RULES, RobustRule, parse_robust_rule
from gradshard_core.specs.option_kinds import WholeNumber
from gradshard_core.stragglers.assignment_settings import (
    AssignmentSettings,
    parse_assignment_settings,
)
from gradshard_core.stragglers.salf import RULES, SALF, PartialRule
from gradshard_core.stragglers.salf import parse_rule as parse_partial_rule

SALF_EXAMPLE: Final = '{"name": "salf", "p": 0.2}'
ROBUST_EXAMPLE: Final = '{"name": "trimmed_mean", "beta": 0.2}'


def parse_clients(clients: Any, get: Get | None = None) -> Sequence[str] | int:
    """Check the expected clients: ids, which are returned sorted, or their number.

    Parameters
    ----------
    clients
        The ids, their number, or the names of the pieces in which the ids are stored, sorted.
    get
        Loads a piece, when it is needed. :func:`check_stored_clients` checks all.
    """
    if clients is None:
        raise SpecError("clients is missing: give the expected clients' ids, or how many they are")
    if isinstance(clients, int):
        return WholeNumber(1, MAX_CLIENTS).parse("clients", clients)
    if is_in_pieces(clients) and get is not None:
        return _parse_stored_clients(clients, get)
    if isinstance(clients, str) or not isinstance(clients, Sequence):
        raise SpecError(f"clients is {clients!r}, neither a list of ids nor a number")
    ids = tuple(sorted(check_id("client", client) for client in clients))
    if not 1 <= len(ids) <= MAX_CLIENTS:
        raise SpecError(f"clients has {len(ids)} ids; a round takes 1 to {MAX_CLIENTS}")
    twice = next((a for a, b in itertools.pairwise(ids) if a == b), None)
    if twice is not None:
        raise SpecError(f"client {twice!r} is expected twice")
    return ids


def encode_clients(clients: Sequence[str] | int) -> Any:
    """Return expected clients as :func:`parse_clients` reads them."""
    if isinstance(clients, int):
        return clients
    return clients.written if isinstance(clients, StoredList) else list(clients)


def _parse_stored_clients(written: Mapping[str, Any], get: Get) -> StoredList[str]:
    try:
        stored = StoredList[str](dict(written), get)
    except (KeyError, TypeError, ValueError) as error:
        raise SpecError(f"clients does not say in which pieces its ids are: {error}") from None
    if not 1 <= len(stored) <= MAX_CLIENTS:
        raise SpecError(f"clients has {len(stored)} ids; a round takes 1 to {MAX_CLIENTS}")
    return stored


def check_stored_clients(clients: StoredList[str]) -> None:
    """Check that the ids of expected clients are stored sorted, each once, and can be found.

    Raises
    ------
    SpecError
        They are not.
    StoreError
        A piece is missing.
    """
    before = ""
    try:
        for number, client in enumerate(clients):
            check_id("client", client)
            if client <= before:
                raise SpecError(
                    f"clients are stored sorted, each once: {client!r} follows {before!r}"
                )
            before = client
            if not number % clients.written["size"] and client not in clients.near(client):
                raise SpecError(
                    f"clients has a piece that begins with {client!r}: name it in firsts"
                )
    except (KeyError, TypeError, ValueError) as error:
        raise SpecError(f"clients has a piece that is no list of ids: {error}") from None


def parse_layout(layout: Any) -> Layout:
    """Read a layout from ``{name: {"dtype": …, "shape": […]}}``."""
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


def parse_codecs(stated: Any) -> tuple[str, ...]:
    """Check the names of codecs: a list, or one name."""
    names = [stated] if isinstance(stated, str) else stated
    if not isinstance(names, Sequence):
        raise SpecError(f"codecs is {stated!r}, not a list of names such as ['int8']")
    for name in names:
        if not isinstance(name, str) or name not in CODECS:
            raise SpecError(
                f"codec {name!r} is unknown; there are {', '.join(CODECS)}. Give several as a "
                'list: ["int8", "int4"]'
            )
    return tuple(sorted(set(names)))


def parse_rule(rule: Any) -> PartialRule | RobustRule:
    """Read a rule for partial updates, or a robust one: its name, or a JSON object."""
    names = (*RULES, *ROBUST_RULES)
    if isinstance(rule, str):
        rule = {"name": rule}
    if not isinstance(rule, Mapping):
        raise SpecError(f"rule is {rule!r}, neither {', '.join(names)} nor {{name: …, …}}")
    if rule.get("name", SALF) not in names:
        raise SpecError(f"rule is {rule['name']!r}, not one of {', '.join(names)}")
    if rule.get("name") in ROBUST_RULES:
        return parse_robust_rule(rule)
    if rule.get("name") == SALF and rule.get("p") is None:
        raise SpecError(
            f"rule salf needs p, the probability that no client reaches a layer, or a model that "
            f"gives it, for example {SALF_EXAMPLE}"
        )
    return parse_partial_rule(rule)


class AssignmentSpec(NamedTuple):
    """The settings from which a round computes what each client should train next.

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


def parse_assignment_spec(stated: Any) -> AssignmentSpec:
    """Read the settings of assignments: the fields of :class:`AssignmentSettings`, and ``after``.

    Raises
    ------
    SpecError
        A field is unknown, missing or out of its bounds.
    """
    if not isinstance(stated, Mapping):
        raise SpecError(f"assignments is {stated!r}, not {{batch_size: …, epochs: …, …}}")
    fields = dict(stated)
    after = fields.pop("after", None)
    return AssignmentSpec(
        parse_assignment_settings(fields), None if after is None else check_id("round", after)
    )
