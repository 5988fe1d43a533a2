"""The names of the objects of rounds, models and trainings, and the ids allowed in them."""

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Self

from gradshard_core.errors import SpecError

ROUNDS: Final = "rounds/"
MODELS: Final = "models/"
TRAININGS: Final = "trainings/"

DEFAULT_MODEL: Final = "model"
"""The id of the model, if none is named."""

UPDATE_SUFFIX: Final = ".safetensors"
MEMBER_SUFFIX: Final = ".joined"
NOTICE_SUFFIX: Final = ".notice"
RENEWAL_SUFFIX: Final = ".renewal"
"""Not ``.json``: in policies ``*`` matches slashes, so ``trainings/*/state.json`` would match the
object of a client called ``state``."""

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Step Functions logs no execution whose name has other characters (API_StartExecution, `name`).
_ROUND_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
# Shorter, since the ids of its rounds begin with it.
_TRAINING_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_FORMS: Final = {"round": _ROUND_ID, "training": _TRAINING_ID}
_UPDATE_KEY: Final = re.compile(
    rf"{ROUNDS}(?P<round>{_ROUND_ID.pattern})/updates/(?P<client>.+){re.escape(UPDATE_SUFFIX)}",
    re.DOTALL,
)
_RENEWAL_KEY: Final = re.compile(
    rf"{TRAININGS}(?P<training>{_TRAINING_ID.pattern})/"
    rf"(?:state\.json|(?:renewals/(?P<client>{_ID.pattern})"
    rf"|holders/(?P<first>{_ID.pattern})@(?P<last>{_ID.pattern})){re.escape(RENEWAL_SUFFIX)})"
)

_ANSWER_KEY: Final = re.compile(
    rf"{ROUNDS}(?P<round>{_ROUND_ID.pattern})/keeper/(masks|refusal\.json)"
)

RESERVED_CLIENTS: Final = frozenset(
    {
        *("assignments", "callback", "counted", "deadline", "layout", "manifest", "plan", "spec"),
        *("state-layout", "update"),
    }
)
"""Ids that no client may have: the names of the objects directly in a round's folder.

In policies ``*`` matches slashes, so ``rounds/*/update.safetensors`` would match the update of a
client called ``update`` too, and ``rounds/*/spec.json`` the rejection of one called ``spec``.
"""

_INBOX: Final = re.compile(rf"(?P<training>{_TRAINING_ID.pattern})-from-(?P<version>[0-9]{{8}})")
_REPORT: Final = re.compile(r"(?P<level>[0-9]{1,3})/[0-9]{5,}\.json")


def is_id(kind: str, name: str) -> bool:
    """Return whether a name has the form of the id of a ``kind``, as :func:`check_id` states it."""
    return bool(_FORMS.get(kind, _ID).fullmatch(name))


def check_id(kind: str, name: object) -> str:
    """Return ``name`` if it may name a ``kind``: a round, a client, a model or a training.

    Ids become parts of S3 keys and schedule names, so they hold only what is plain in both:
    letters, digits, dots, underscores and hyphens, 64 at most. The ids of rounds and trainings are
    names of executions, too, which may have no dot: Step Functions would not log it. The id of
    a training has 40 at most, since the ids of its rounds begin with it.

    Raises
    ------
    SpecError
        The name is not allowed.
    """
    if not isinstance(name, str) or not is_id(kind, name):
        dots = "" if kind in _FORMS else "dots, "
        most = 40 if kind == "training" else 64
        shown = name if not isinstance(name, str) or len(name) <= 80 else name[:79] + "…"
        raise SpecError(
            f"{kind} id {shown!r} is not 1 to {most} ASCII letters, digits, {dots}underscores or "
            "hyphens that begin with a letter or digit"
        )
    if kind == "client" and name in RESERVED_CLIENTS:
        raise SpecError(
            f"client id {name!r} is the name of an object that every round has; choose another"
        )
    return name


def is_client(name: str) -> bool:
    """Return whether ``name`` may name a client."""
    return _ID.fullmatch(name) is not None and name not in RESERVED_CLIENTS


def entry_id(client: str, version: int) -> str:
    """Return how a round names one of several updates of a client, by the version it began from.

    It has a character that no id has.
    """
    return f"{client}@{version:08}"


def sender_of(contributor: str) -> str:
    """Return the client that sent an update, from its name in a round."""
    return contributor.partition("@")[0]


class ObjectVersion(NamedTuple):
    """One immutable version of an object; ``version`` is empty in a bucket without versions."""

    key: str
    version: str
    etag: str
    nbytes: int


class StoredTensors(NamedTuple):
    """A safetensors object, and where in it the tensors' bytes begin."""

    source: ObjectVersion
    data_offset: int

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {**self.source._asdict(), "data_offset": self.data_offset}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote."""
        source = {name: fields[name] for name in ObjectVersion._fields}
        return cls(ObjectVersion(**source), fields["data_offset"])


class UpdateKey(NamedTuple):
    """Round and client of an update's key."""

    round_id: str
    client: str


def parse_answer_key(key: str) -> str | None:
    """Read the round from the key of a keeper's answer; None if it is no such key."""
    match = _ANSWER_KEY.fullmatch(key)
    return match and match["round"]


def parse_update_key(key: str) -> UpdateKey | None:
    """Read round and client from the key of an update; None if it is no update's key."""
    match = _UPDATE_KEY.fullmatch(key)
    return UpdateKey(match["round"], match["client"]) if match else None


class RenewalKey(NamedTuple):
    """A training, and the clients whose notices are renewed, as the key of a request names them.

    These are from the first to the last one; in the key of a state, both are None.
    """

    training: str
    first: str | None
    last: str | None


def parse_renewal_key(key: str) -> RenewalKey | None:
    """Read what the key of a request for renewal, or of a state, names; None for other keys."""
    match = _RENEWAL_KEY.fullmatch(key)
    if match is None:
        return None
    first, last = match["client"] or match["first"], match["client"] or match["last"]
    if not all(client is None or is_client(client) for client in (first, last)):
        return None
    return RenewalKey(match["training"], first, last)


class InboxId(NamedTuple):
    """The parts of an inbox's id: a buffered training, and a version of its model."""

    training: str
    version: int


def parse_inbox_id(round_id: str) -> InboxId | None:
    """Read what the id of an inbox names; None if it is no inbox's."""
    match = _INBOX.fullmatch(round_id)
    return InboxId(match["training"], int(match["version"])) if match else None


def base_version(key: str) -> int | None:
    """Return the version from which the update under a key began; None if it is in no inbox."""
    parsed = parse_update_key(key)
    inbox = parse_inbox_id(parsed.round_id) if parsed else None
    return inbox.version if inbox else None


class RoundKeys:
    """The keys of one round's objects."""

    def __init__(self, round_id: str) -> None:
        self.round_id = check_id("round", round_id)
        self.root = root = f"{ROUNDS}{self.round_id}/"
        self.spec = f"{root}spec.json"
        self.callback = f"{root}callback.json"
        self.deadline = f"{root}deadline.json"
        self.updates = f"{root}updates/"
        self.partial_updates = f"{root}partial-updates/"
        self.rejections = f"{root}rejections/"
        self.replans = f"{root}replans/"
        self.measurements = f"{root}measurements/"
        self.decisions = f"{root}decisions/"
        self.secrets = f"{root}secrets/"
        self.noise_key = f"{self.secrets}noise.json"
        self.plan = f"{root}plan.json"
        self._pieces = f"{root}pieces/"
        self._expected = f"{root}clients/"
        self.arrived = f"{root}arrived/"
        self.layout = f"{root}layout.header"
        self.state_layout = f"{root}state-layout.header"
        self.task_reports = f"{root}task-reports/"
        self.metrics = f"{root}metrics/"
        self.partial_sums = f"{root}partial-sums/"
        self._tasks = f"{root}tasks/"
        self.result = f"{root}update.safetensors"
        self.manifest = f"{root}manifest.json"
        self.assignments = f"{root}assignments.json"
        self.counted = f"{root}counted.json"
        self.keeper = f"{root}keeper/"
        self.masks = f"{self.keeper}masks"
        self.refusal = f"{self.keeper}refusal.json"

    def update(self, client: str) -> str:
        """Return the key of a client's update."""
        return f"{self.updates}{check_id('client', client)}{UPDATE_SUFFIX}"

    def partial_update(self, client: str) -> str:
        """Return the key of what a client has so far; counted if no update follows in time."""
        return f"{self.partial_updates}{check_id('client', client)}{UPDATE_SUFFIX}"

    def rejection(self, client: str) -> str:
        """Return the key under which a client reads why its update was rejected."""
        return f"{self.rejections}{check_id('client', client)}.json"

    def replan(self, attempt: int) -> str:
        """Return the key of whom an attempt found to be bad, and the next one leaves out."""
        return f"{self.replans}{attempt}.json"

    def measurement(self, attempt: int) -> str:
        """Return the key of the inner products that an attempt measured."""
        return f"{self.measurements}{attempt}.json"

    def decision(self, attempt: int) -> str:
        """Return the key of the weights that a robust rule decided on for an attempt."""
        return f"{self.decisions}{attempt}.json"

    def decided(self, name: str) -> str:
        """Return the key of a piece of the list of a decision, which clients may not read."""
        return f"{self.decisions}{name}.json"

    def piece(self, name: str) -> str:
        """Return the key of a piece of a long list."""
        return f"{self._pieces}{name}.json"

    def expected(self, name: str) -> str:
        """Return the key of a piece of the list of expected clients."""
        return f"{self._expected}{name}.json"

    def arrivals(self, number: int) -> str:
        """Return the key of a part of the record of who has arrived in a large round."""
        return f"{self.arrived}{number:04d}"

    def tasks(self, level: int) -> str:
        """Return the key of what a level's map reads."""
        return f"{self._tasks}{level}.json"

    def task_report(self, level: int, task: int) -> str:
        """Return the key of what a task has to say of its work."""
        return f"{self.task_reports}{level}/{task:05d}.json"

    def surveyed_metrics(self, task: int) -> str:
        """Return the key of the metrics that a task has read, which clients may not read."""
        return f"{self.metrics}{task:05d}.json"

    def reported_level(self, key: str) -> int | None:
        """Return the level of the task whose report has this key; None if it is no report's."""
        match = _REPORT.fullmatch(key.removeprefix(self.task_reports))
        return int(match["level"]) if match else None

    def partial_sum(self, attempt: int, level: int, task: int) -> str:
        """Return the key of the partial sum that a task of any but the last level writes."""
        return f"{self.partial_sums}{attempt}/{level}/{task:05d}"


class ModelKeys:
    """The keys of one model's objects."""

    def __init__(self, name: str) -> None:
        self.name = check_id("model", name)
        root = f"{MODELS}{self.name}/"
        self.current = f"{root}current.json"
        self.training = f"{root}training.json"
        self.ledger = f"{root}ledger.json"
        self.versions = f"{root}versions/"
        self._rounds = f"{root}rounds/"
        self._puts = f"{root}puts/"

    def version(self, number: int) -> str:
        """Return the key of a version's record."""
        return f"{self.versions}{number:08}.json"

    def made_by(self, round_id: str) -> str:
        """Return the prefix of what a round makes."""
        return f"{self._rounds}{check_id('round', round_id)}/"

    def next_model(self, round_id: str) -> str:
        """Return the key of the model that a round makes."""
        return f"{self.made_by(round_id)}model{UPDATE_SUFFIX}"

    def state(self, round_id: str, name: str) -> str:
        """Return the key of what the optimizer keeps after a round."""
        return f"{self.made_by(round_id)}{name}{UPDATE_SUFFIX}"

    def put(self, name: str) -> str:
        """Return the key of a model that was put there whole."""
        return f"{self._puts}{name}{UPDATE_SUFFIX}"


class TrainingKeys:
    """The keys of one training's objects, and the ids of its rounds."""

    def __init__(self, name: str) -> None:
        self.name = check_id("training", name)
        self.root = root = f"{TRAININGS}{self.name}/"
        self.spec = f"{root}spec.json"
        self.state = f"{root}state.json"
        self.members = f"{root}members/"
        self.records = f"{root}rounds/"
        self.notices = f"{root}notices/"
        self._pieces = f"{root}pieces/"
        self.inboxes = f"{ROUNDS}{self.name}-from-"

    def notice(self, client: str) -> str:
        """Return the key of what the holder of a client's ticket reads of the training."""
        return f"{self.notices}{check_id('client', client)}{NOTICE_SUFFIX}"

    def renewal(self, client: str) -> str:
        """Return the key that a ticket's holder writes, to have its notice renewed."""
        return f"{self.root}renewals/{check_id('client', client)}{RENEWAL_SUFFIX}"

    def renewal_for(self, first: str, last: str) -> str:
        """Return the key that a function writes, to have the notices of many clients written.

        No id has the character between them.
        """
        check_id("client", first)
        return f"{self.root}holders/{first}@{check_id('client', last)}{RENEWAL_SUFFIX}"

    def member(self, client: str) -> str:
        """Return the key by whose object a client has joined."""
        return f"{self.members}{check_id('client', client)}{MEMBER_SUFFIX}"

    def piece(self, name: str) -> str:
        """Return the key of a piece of a long list: in its state, or in a record."""
        return f"{self._pieces}{name}.json"

    def record(self, round_id: str) -> str:
        """Return the key of the record of one of its rounds."""
        return f"{self.records}{check_id('round', round_id)}.json"

    def round_id(self, number: int, repetition: int, *, is_evaluation: bool = False) -> str:
        """Return the id of a round; sorted, ids are in the order of the rounds.

        Parameters
        ----------
        number
            Of the round, from 1; of an evaluation, that of the round before.
        repetition
            The number of rounds of this number before it.
        is_evaluation
            Whether clients evaluate the model in it, instead of training it.
        """
        again = f"-again{repetition}" if repetition else ""
        return f"{self.name}-{number:05}{'-eval' if is_evaluation else ''}{again}"

    def inbox(self, version: int) -> RoundKeys:
        """Return the keys under which a buffered training gets updates from a version.

        They are those of a round that is never opened, so that clients, tickets, policies and
        lifecycle rules treat its updates and rejections as those of any round.
        """
        return RoundKeys(f"{self.inboxes.removeprefix(ROUNDS)}{version:08}")

    def execution(self, run: int) -> str:
        """Return the name of an execution of the training, of which there may be several."""
        return self.name if run == 1 else f"{self.name}-run{run}"
