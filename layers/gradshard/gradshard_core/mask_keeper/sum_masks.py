"""One task of the keeper: add the key streams of some seeds over one byte range."""

from functools import partial
from typing import Any

from gradshard_core.aggregation import kernel
from gradshard_core.aggregation.kernel import Source, WeightedRange
from gradshard_core.aggregation.masked_sum import ADDED, RingSum
from gradshard_core.errors import UnsentError
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.mask_keeper.check_request import context_of
from gradshard_core.mask_keeper.records import KeeperKeys, Work, read_private_key
from gradshard_core.mask_keeper.tasks import Stream
from gradshard_core.masking.key_stream import KeyStream
from gradshard_core.masking.sealing import unseal
from gradshard_core.privacy.masked_noise import RingNoise, noise_key
from gradshard_core.s3.retries import TASK_WRITE_ATTEMPTS, Retries
from gradshard_core.s3.store import S3Store
from gradshard_core.s3.task_client import TaskS3Client


def sum_masks(store: S3Store, answers: TaskS3Client, round_id: str, task: int) -> dict[str, Any]:
    """Sum the masks over the task's range into its part of the answer; safe to repeat.

    Seeds are opened here and kept nowhere. A key stream is a source of the kernel, and so is the
    noise of a round with differential privacy.

    Parameters
    ----------
    store
        The keeper's bucket.
    answers
        The aggregator's bucket.
    round_id, task
        The round, and the number of the task in it.
    """
    work = store.get_json(KeeperKeys(round_id).work, Work.from_json)
    if work is None:  # a late repetition: the answer was given
        return {"round": round_id, "task": task, "is_late": True}
    private_key, request = read_private_key(store), work.request
    seeds = [
        unseal(bytes.fromhex(seed.sealed_seed), private_key, context_of(request, seed.client))
        for seed in request.contributors
    ]
    stream = Stream.of(request.encoding)
    shard = stream.shards(work.tasks)[task]
    weighted_ranges = [
        WeightedRange(shard.start, shard.end, [ADDED] * (len(seeds) + bool(stream.noise_terms)))
    ]
    retries = Retries(answers.meter, attempts=TASK_WRITE_ATTEMPTS)
    while True:
        sources: list[Source] = [KeyStream(seed, shard.start, shard.end) for seed in seeds]
        if stream.noise_terms:
            sources.append(
                RingNoise(
                    noise_key(seeds),
                    stream.noise_terms,
                    shard.start,
                    stream.elements,
                    stream.ring_bits,
                )
            )
        part = answers.part(
            RoundKeys(round_id).masks, work.upload_id, task + 1, shard.end - shard.start
        )
        try:
            with part as writer:
                kernel.aggregate(sources, weighted_ranges, RingSum(), stream.spans, writer.write)
        except UnsentError as error:
            retries.record_failure(str(error), partial(_last_error, error))
        else:
            return {
                "round": round_id,
                "task": task,
                "bytes": len(seeds) * (shard.end - shard.start),
            }


def _last_error(error: UnsentError, _attempts: int, _reasons: str) -> UnsentError:
    return error  # no KeeperError, which the state machine does not retry
