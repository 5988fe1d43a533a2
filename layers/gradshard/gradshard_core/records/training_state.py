"""A training's progress in the bucket: one object, which only its functions and operators change.

``state.json`` says which round a training is at. It is changed by conditional writes alone, so of
two functions that run at once one sees what the other has done. Each change by the state machine
raises ``step``: a function that is called twice for a step answers twice and changes it once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any, Final, Self

from gradshard_core.errors import TrainingNotFoundError
from gradshard_core.formats.long_lists import Get, StoredList, is_in_pieces
from gradshard_core.formats.object_keys import MEMBER_SUFFIX, TrainingKeys, is_client
from gradshard_core.privacy.noise_tree import NoiseTree, Place
from gradshard_core.privacy.privacy_mechanism import PrivacyMechanism
from gradshard_core.privacy.secret_client_sampling import SecretDraw
from gradshard_core.records.plan_and_manifest import piece_reader, store_kept
from gradshard_core.s3.retries import conditional_write_attempts
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.option_parsers import encode_clients
from gradshard_core.specs.round_spec import RoundSpec
from gradshard_core.specs.training_spec import TrainingSpec
from gradshard_core.specs.training_spec_checks import parse_training_spec

RUNNING: Final = "running"
PAUSED: Final = "paused"
ENDED: Final = "ended"

PAUSE: Final = "pause"
STOP: Final = "stop"
"""The requests of operators; they take effect when the current round has ended."""


@dataclass(frozen=True)
class Invitation:
    """A round of a training, as its clients read it.

    Parameters
    ----------
    round_id
        The round.
    number
        Of the round, from 1; of an evaluation, that of the round whose version is evaluated.
    repetition
        The number of failures of a round of this number, and of rounds by others of its names.
    is_evaluation
        Whether clients evaluate the model, instead of training it.
    clients
        The invited clients, sorted; none in a buffered training, where everybody may train. Of
        many, those near to the one that is asked for are loaded.
    awaited
        The number of clients that the round waits for.
    version
        The version of the model that they fetch.
    settings
        The settings that the clients train with.
    """

    round_id: str
    number: int
    repetition: int
    is_evaluation: bool
    clients: Sequence[str]
    awaited: int
    version: int
    settings: Mapping[str, Any]

    @property
    def is_open(self) -> bool:
        """Whether everybody may answer, as in a buffered training."""
        return not self.clients

    def invites(self, client: str) -> bool:
        """Return whether a client is invited; to train in a buffered training, everybody is."""
        near = self.clients.near(client) if isinstance(self.clients, StoredList) else self.clients
        return self.is_open or client in near

    def answered_to(self, keys: TrainingKeys) -> str:
        """Return the round that clients send their updates to: in buffered mode, an inbox."""
        return keys.inbox(self.version).round_id if self.is_open else self.round_id

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON, of clients in pieces with the names of these."""
        return vars(self) | {"clients": encode_clients(self.clients)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], get: Get | None = None) -> Self:
        """Read an invitation from a state; ``get`` loads a piece of a long list of clients."""
        return cls(**{**fields, "clients": _listed(fields["clients"], get)})


def _listed(clients: Any, get: Get | None) -> Sequence[str]:
    """Return ids as a state has them: all, or the names of the pieces."""
    if get is not None and is_in_pieces(clients):
        return StoredList[str](clients, get)
    return tuple(clients)


class StoredCounts(Mapping[str, int]):
    """Numbers by client, of which a state holds the names of the pieces; loaded when needed."""

    def __init__(self, stored: StoredList[list[Any]]) -> None:
        self.written = stored.written
        self._stored = stored

    @cached_property
    def _counts(self) -> dict[str, int]:
        return {client: int(count) for client, count in self._stored}

    def __getitem__(self, client: str) -> int:
        return self._counts[client]

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._stored)


@dataclass(frozen=True)
class Best:
    """The best version of the model so far, by the metric of the stop rule."""

    version: int
    number: int
    metric: str
    value: float


@dataclass(frozen=True)
class TrainingState:
    """The progress of a training.

    Parameters
    ----------
    status
        ``running``, ``paused`` or ``ended``.
    run
        Number of the execution that the training goes on in, from 1.
    step
        The number of changes of the state by the state machine.
    first_step
        The step with which the execution began.
    completed
        The number of completed rounds.
    version
        The version of the model that the next round begins from; None for the current one.
    first_version
        In buffered mode, the version with which the training began, or which others have made
        since: updates from earlier ones do not count.
    settled_before
        In buffered mode, the version before which every update has counted or was rejected.
    counted
        In buffered mode, which updates have counted: by the version from which they began and by
        client, the first characters of their ETags. Versions that are too old are left out.
    repeated_round
        In buffered mode, the round whose updates the next one takes, because it failed after it had
        been planned.
    last_round
        The id of the last completed round; None before the first one.
    clip
        The clip of the next private round, if it adapts; None for that of the training's options.
    tree
        Where the training is in its tree of noise, if it has one.
    dropped_keys
        The rounds whose keys of noise no round needs from this state on: they are deleted when the
        state has been written, and once more before it is replaced.
    drawn
        The clients that were drawn in secret for a round that has failed: they repeat it.
    invitation
        The round that is under way.
    failures
        The number of failures of the next round since the training was last resumed.
    repetition
        The number of its failures in all, and of rounds by others that have its names; part of its
        id.
    redraws
        The number of times that its clients were drawn anew.
    waits_until
        The time until which the training waits, ISO 8601; None if the next round can begin.
    lacks_members_since
        The time since which too few clients have joined for a round, ISO 8601.
    evaluated
        The number of the last round after which the model was evaluated.
    best, values_since_best
        The best version, and how many values of the metric since then were no better.
    dollars
        The cost of all rounds so far, and of the last one.
    last_dollars
        The cost of the last round of each kind, by ``train`` and ``evaluate``.
    silent
        Clients that have not answered their last invitations, and how many of those.
    suspects
        In buffered mode, the clients whose updates were found bad in failed rounds of this number:
        theirs are taken last.
    request, reason
        The operator's request, and its reason.
    cause
        The reason why the training has paused or ended.
    started_at, changed_at
        ISO 8601.
    """

    status: str
    run: int
    step: int
    version: int | None
    started_at: str
    changed_at: str
    first_step: int = 0
    completed: int = 0
    last_round: str | None = None
    invitation: Invitation | None = None
    failures: int = 0
    repetition: int = 0
    redraws: int = 0
    waits_until: str | None = None
    lacks_members_since: str | None = None
    evaluated: int = 0
    best: Best | None = None
    values_since_best: int = 0
    dollars: float = 0.0
    last_dollars: Mapping[str, float] = field(default_factory=dict)
    silent: Mapping[str, int] = field(default_factory=dict)
    first_version: int = 1
    settled_before: int = 1
    counted: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    repeated_round: str | None = None
    suspects: tuple[str, ...] = ()
    clip: float | None = None
    tree: NoiseTree | None = None
    dropped_keys: tuple[str, ...] = ()
    drawn: Sequence[str] = ()
    request: str | None = None
    reason: str | None = None
    cause: str | None = None

    def oldest_version(self, max_staleness: int) -> int:
        """Return the oldest version from which updates count, in buffered mode."""
        return max(self.first_version, (self.version or self.first_version) - max_staleness)

    @property
    def noise_rounds(self) -> frozenset[str]:
        """The rounds of a tree of noise whose keys the training keeps."""
        if self.tree is None:
            return frozenset()
        under_way = self.invitation if self.status == RUNNING else None
        if under_way is None or under_way.is_evaluation:
            return self.tree.rounds
        return self.tree.rounds | {under_way.round_id}

    def to_json(self) -> dict[str, Any]:
        """Return the state as JSON; of lists that were read in pieces, with the names of these."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        silent = self.silent.written if isinstance(self.silent, StoredCounts) else self.silent
        return plain | {
            "invitation": self.invitation and self.invitation.to_json(),
            "best": self.best and asdict(self.best),
            "tree": self.tree and asdict(self.tree),
            "silent": silent,
            "drawn": encode_clients(self.drawn),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], get: Get | None = None) -> Self:
        """Read what :meth:`to_json` wrote; ``get`` loads a piece of a long list."""
        invitation, best = fields["invitation"], fields["best"]
        tree, silent = fields.get("tree"), fields["silent"]
        if get is not None and is_in_pieces(silent):
            silent = StoredCounts(StoredList[list[Any]](silent, get))
        return cls(
            **{
                **fields,
                "invitation": invitation and Invitation.from_json(invitation, get),
                "silent": silent,
                "suspects": tuple(fields.get("suspects", ())),
                "dropped_keys": tuple(fields.get("dropped_keys", ())),
                "best": best and Best(**best),
                "tree": tree and NoiseTree.from_json(tree),
                "drawn": _listed(fields.get("drawn", ()), get),
            }
        )


def synchronous_round(keys: TrainingKeys, spec: TrainingSpec, state: TrainingState) -> RoundSpec:
    """Return the spec of the round of training to which a state invites."""
    invitation = state.invitation
    assert invitation is not None  # noqa: S101 - for mypy: the callers have looked
    stated: Place | SecretDraw | None = None
    if state.tree is not None:
        stated = state.tree.place(keys.name, state.started_at, int(spec.sample or 1))
    elif spec.secret_sample is not None:
        draw = f"{state.started_at} {invitation.number}"
        stated = SecretDraw(keys.name, draw, *spec.secret_sample)
    return spec.round_spec(
        invitation.clients, invitation.awaited, state.last_round, state.clip, stated
    )


def read_training_spec(store: S3Store, keys: TrainingKeys) -> TrainingSpec | None:
    """Return the options of a training; None if there is no such training."""
    return store.get_json(keys.spec, lambda record: parse_training_spec(record["spec"]))


def read_state(store: S3Store, keys: TrainingKeys) -> TrainingState | None:
    """Return how far a training is; None if there is no such training."""
    return store.get_json(
        keys.state, partial(TrainingState.from_json, get=piece_reader(store, keys.piece))
    )


def _in_pieces(store: S3Store, keys: TrainingKeys, state: TrainingState) -> dict[str, Any]:
    """Return the state as JSON, with long lists stored in pieces: every client reads the state."""
    document = state.to_json()
    if document["invitation"] and not is_in_pieces(document["invitation"]["clients"]):
        document["invitation"]["clients"] = store_kept(
            store, keys, document["invitation"]["clients"]
        )
    if not is_in_pieces(document["drawn"]):
        document["drawn"] = store_kept(store, keys, document["drawn"])
    if not isinstance(state.silent, StoredCounts):
        listed = store_kept(store, keys, sorted(state.silent.items()))
        if is_in_pieces(listed):
            document["silent"] = listed
    return document


def keeps_noise_key(store: S3Store, round_id: str, dp: PrivacyMechanism | None) -> bool:
    """Return whether the key of a completed round's noise is kept, for later rounds of its tree.

    Not if its training has paused meanwhile, or ended: then nobody would delete the key.
    """
    if dp is None or dp.tree is None:
        return False
    state = read_state(store, TrainingKeys(dp.tree.training))
    return state is not None and round_id in state.noise_rounds


def list_members(store: S3Store, keys: TrainingKeys) -> tuple[str, ...]:
    """List the clients that have joined, sorted; objects with other names are ignored."""
    listed = (entry.key.removeprefix(keys.members) for entry in store.list_objects(keys.members))
    names = (key.removesuffix(MEMBER_SUFFIX) for key in listed)
    return tuple(sorted(name for name in names if is_client(name)))


def change_state(
    store: S3Store, keys: TrainingKeys, change: Callable[[TrainingState], TrainingState]
) -> TrainingState:
    """Change a training's state, whoever else does so at the same time.

    Parameters
    ----------
    store, keys
        The training.
    change
        Returns the next state; called again if the state was changed meanwhile. If it returns the
        same state, nothing is written.

    Raises
    ------
    TrainingNotFoundError
        There is no such training.
    """
    state: TrainingState | None = None
    for _ in conditional_write_attempts(keys.state):
        # Looked at before it is read: if it is replaced meanwhile, the write fails.
        head = store.head(keys.state)
        before = read_state(store, keys)
        if head is None or before is None:
            raise TrainingNotFoundError.of(keys.name)
        state = change(before)
        if state == before:
            break
        if store.put_json(keys.state, _in_pieces(store, keys, state), replaces=head.etag):
            break
    assert state is not None  # noqa: S101 - for mypy: the loop raises, or sets it
    return state


def requested(state: TrainingState, request: str, reason: str) -> TrainingState:
    """Return a state in which an operator asks for a pause or for the end."""
    return replace(state, request=request, reason=reason)
