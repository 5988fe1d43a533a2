"""Decide on a request for the sum of some masks: answer it, once, or refuse it."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from gradshard_core.errors import SpecError
from gradshard_core.formats.masked_updates import PROTOCOL, roster_digest
from gradshard_core.formats.object_keys import RoundKeys, is_client
from gradshard_core.mask_keeper.records import (
    KeeperKeys,
    Work,
    client_key,
    parse_request_key,
    read_private_key,
    seed_digest,
    seed_key,
)
from gradshard_core.mask_keeper.request import Refusal, Request, SealedSeed
from gradshard_core.mask_keeper.tasks import Stream
from gradshard_core.masking.sealing import SealContext, SealError, unseal
from gradshard_core.masking.signing import verify
from gradshard_core.s3.parallel_reads import SMALL_OBJECT_READERS
from gradshard_core.s3.store import S3Store

NOTHING: Final[dict[str, Any]] = {"round": "", "tasks": []}
"""The answer of the function for a request that is not answered now: no tasks."""


class RefusedError(Exception):
    """A request is not answered; ``bad`` names the clients because of whom, if it is that."""

    def __init__(self, reason: str, bad: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.bad = dict(bad or {})


def context_of(request: Request, client: str) -> SealContext:
    """Return what a client's seed must have been sealed for."""
    return SealContext(
        request.round_id,
        client,
        _digest_of_roster(request.clients),
        request.min_clients,
        request.encoding,
    )


@lru_cache(maxsize=4)  # each seed was sealed with it
def _digest_of_roster(clients: tuple[str, ...]) -> str:
    return roster_digest(clients)


def check_request(
    store: S3Store, answers: S3Store, key: str, *, least_clients: int
) -> dict[str, Any]:
    """Decide on a request, and write what was decided before anything is summed; safe to repeat.

    Parameters
    ----------
    store
        The keeper's bucket.
    answers
        The aggregator's bucket.
    key
        The key of the request.
    least_clients
        The fewest masks that this keeper sums, whatever the clients agreed to.

    Returns
    -------
    dict
        ``round`` and ``tasks``: nothing of both if the request is refused, and no tasks if it was
        answered before.
    """
    round_id = parse_request_key(key)
    if round_id is None:
        return NOTHING
    keys = KeeperKeys(round_id)
    request = store.get_json(keys.request, Request.from_json)
    if request is None:  # answered before
        return {"round": round_id, "tasks": []}
    if request.round_id != round_id:
        return NOTHING
    try:
        work = _decide(store, answers, keys, request, least_clients)
    except RefusedError as error:
        refusal = Refusal(request.digest, str(error), error.bad)
        store.put_json(f"refusals/{round_id}/{request.digest}.json", refusal.to_json())
        answers.put_json(RoundKeys(round_id).refusal, refusal.to_json())
        return NOTHING
    tasks = 0
    # Nothing is left to sum if the answer is complete, and its giving was cut off.
    if work and answers.list_parts(RoundKeys(round_id).masks, work.upload_id) is not None:
        tasks = work.tasks
    return {
        "round": round_id,
        "tasks": [
            {"round": round_id, "task": {"level": 0, "number": number}} for number in range(tasks)
        ],
    }


def _decide(
    store: S3Store, answers: S3Store, keys: KeeperKeys, request: Request, least_clients: int
) -> Work | None:
    """Check a request, record that it is answered, and return what its tasks need.

    None if the answer was given before.
    """
    decided = store.get_json(keys.record, lambda record: str(record["request"]))
    if decided is None:
        stream = _check_terms(request, least_clients)
        digests = _check_seeds(store, request)
        _claim(store, request.round_id, digests)
        record = {
            "round": request.round_id,
            "request": request.digest,
            "decided_at": datetime.now(UTC).isoformat(),
            "clients": list(request.clients),
            "min_clients": request.min_clients,
            "encoding": request.encoding,
            "summed": digests,
        }
        store.put_json(keys.record, record, replaces=None)
        decided = store.get_json(keys.record, lambda record: str(record["request"]))
    if decided != request.digest:
        raise RefusedError("this round was answered for other contributors or other terms")
    if store.head(keys.given) is not None:
        return None
    stream = Stream.of(request.encoding)
    return _begin(store, answers, keys, request, stream.tasks(len(request.contributors)))


def _begin(
    store: S3Store, answers: S3Store, keys: KeeperKeys, request: Request, tasks: int
) -> Work:
    """Begin the upload of the answer, once, and write what the tasks read."""
    work = store.get_json(keys.work, Work.from_json)
    if work is not None:
        return work
    answer = RoundKeys(request.round_id).masks
    work = Work(request, tasks, answers.create_upload(answer))
    if not store.put_json(keys.work, work.to_json(), replaces=None):
        answers.abort_upload(answer, work.upload_id)
        return store.get_json(keys.work, Work.from_json) or work
    return work


def _check_terms(request: Request, least_clients: int) -> Stream:
    """Check what all clients have agreed to."""
    if request.protocol != PROTOCOL:
        raise RefusedError(
            f"the aggregator speaks {request.protocol!r}, and this keeper {PROTOCOL!r}: deploy "
            "both stacks from one version of gradshard"
        )
    names = [seed.client for seed in request.contributors]
    strangers = sorted(set(names) - set(request.clients))
    if strangers:
        raise RefusedError(f"client {strangers[0]!r} is not on the roster")
    if len(set(names)) != len(names):
        raise RefusedError("a client contributes twice")
    least = max(least_clients, request.min_clients)
    if len(names) < least:
        raise RefusedError(
            f"{len(names)} masks are to be summed, fewer than the least {least} "
            f"(min_clients is {request.min_clients}, the keeper's own minimum {least_clients})"
        )
    if not all(map(is_client, request.clients)):
        raise RefusedError("the roster has a name that is no client's id")
    try:
        return Stream.of(request.encoding)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RefusedError(f"the terms are not those of this protocol: {error}") from None


def _check_seeds(store: S3Store, request: Request) -> dict[str, str]:
    """Open all seeds; return the SHA-256 of each client's."""
    private_key = read_private_key(store)

    def check(seed: SealedSeed) -> str | SealError:
        try:
            return _check_seed(store, private_key, request, seed)
        except SealError as error:
            return error

    with ThreadPoolExecutor(SMALL_OBJECT_READERS) as pool:
        found = list(pool.map(check, request.contributors))
    named = dict(zip((seed.client for seed in request.contributors), found, strict=True))
    bad = {client: str(result) for client, result in named.items() if isinstance(result, SealError)}
    digests = {client: result for client, result in named.items() if isinstance(result, str)}
    owners: dict[str, str] = {}
    for client, digest in sorted(digests.items()):
        if owners.setdefault(digest, client) != client:
            bad[client] = f"its seed is that of {owners[digest]}, too"
    if bad:
        raise RefusedError(f"{len(bad)} seeds cannot be used", bad)
    return digests


def _check_seed(store: S3Store, private_key: bytes, request: Request, seed: SealedSeed) -> str:
    """Check one client's seed, and return its digest."""
    try:
        enrolled = store.get_json(client_key(seed.client), lambda entry: str(entry["key"]))
        sealed, signature = bytes.fromhex(seed.sealed_seed), bytes.fromhex(seed.signature)
        key = bytes.fromhex(enrolled or "")
    except (ValueError, SpecError) as error:
        raise SealError(f"{seed.client}: {error}") from None
    if enrolled is None:
        raise SealError(f"client {seed.client!r} is not enrolled with the keeper")
    context = context_of(request, seed.client)
    verify(key, signature, sealed, context)
    digest = seed_digest(unseal(sealed, private_key, context))
    summed_in = store.get_json(seed_key(digest), lambda entry: str(entry["round"]))
    if summed_in not in {None, request.round_id}:
        raise SealError(f"the seed of {seed.client} was summed in round {summed_in!r}")
    return digest


def _claim(store: S3Store, round_id: str, digests: Mapping[str, str]) -> None:
    """Note that the seeds are summed in this round, and in no other one ever."""

    def claim(client: str) -> bool:
        return store.put_json(seed_key(digests[client]), {"round": round_id}, replaces=None)

    with ThreadPoolExecutor(SMALL_OBJECT_READERS) as pool:
        claimed = dict(zip(digests, pool.map(claim, digests), strict=True))
    bad = {
        client: f"the seed of {client} is summed in another round"
        for client, is_ours in claimed.items()
        if not is_ours
    }
    if bad:
        raise RefusedError(f"{len(bad)} seeds cannot be used", bad)
