"""The first pass of a large round: tasks read the headers of the updates.

``plan_round`` reads 4,096 headers at most itself. Of more updates it freezes the versions in a plan
whose tasks read the headers, a piece of the plan each, and write what planning needs of them into
their task records. ``finalize_round`` then answers ``replan``, as after the pass that measures, and
the next planning admits the updates by what was read.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, Final, NamedTuple

from gradshard_core.aggregation.arithmetic import STEPS
from gradshard_core.errors import ChangedObjectError, PlanError, UnreadableObjectError, UpdateError
from gradshard_core.formats import client_metrics
from gradshard_core.formats.compressed_updates import EncodedLayout, parse_codec_error, parse_update
from gradshard_core.formats.headers import FIRST_READ_BYTES, header_length, parse_samples
from gradshard_core.formats.object_keys import ObjectVersion, RoundKeys
from gradshard_core.formats.tensor_layout import PREFIX_BYTES
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_parts import Contributor, Task
from gradshard_core.rounds.seen_layouts import Digests, digests_of
from gradshard_core.s3.parallel_reads import HEADER_READERS
from gradshard_core.s3.store import S3Store
from gradshard_core.s3.task_client import TaskS3Client
from gradshard_core.stragglers.client_report import Report, parse_report

LARGE_HEADER: Final = 256 * 1024
"""Bytes of a header that a task leaves to ``plan_round``, which has more memory. As bytes, text and
JSON a header takes up to 20 times its size."""


class Surveyed(NamedTuple):
    """What a task has read of a good update.

    Parameters
    ----------
    samples, data_offset, codec_error
        As of :class:`gradshard_core.planning.plan_parts.Contributor`, and where its tensors begin.
    digests
        Those of its layout.
    report
        Its report on its training, if the round uses it.
    """

    samples: int
    data_offset: int
    codec_error: float | None
    digests: Digests
    report: Report | None


Facts = Surveyed | str | None
"""Of an update: what was read, the reason why it is bad, or None if ``plan_round`` has to look."""


def survey(s3: TaskS3Client, plan: Plan, task: Task) -> dict[str, Any]:
    """Read the headers of a task's updates; return what its record has of them.

    Metrics that they have are stored apart, for the training: later tasks replace the record.

    Raises
    ------
    StoreError
        S3 failed at every retry, which is no client's fault: the machine runs the task again.
    """
    layouts: dict[Digests, int] = {}
    contributors = plan.contributors[task.first : task.stop]
    reports = plan.computation.weights == STEPS or plan.assignments is not None
    with ThreadPoolExecutor(HEADER_READERS) as pool:
        read = list(pool.map(lambda c: _read(s3, c.source, reports=reports), contributors))
    entries = [_entry(facts, layouts) for facts, _ in read]
    sent = {c.client: found for c, (_, found) in zip(contributors, read, strict=True)}
    if any(found != {} for found in sent.values()):
        keys = RoundKeys(plan.round_id)
        s3.put_json(keys.surveyed_metrics(task.number), client_metrics.of_clients_to_json(sent))
    found = [[digest.hex() for digest in digests] for digests in layouts]
    return {"updates": entries, "layouts": found}


def read_survey(store: S3Store, keys: RoundKeys, plan: Plan) -> Iterator[tuple[Contributor, Facts]]:
    """Read what the tasks of a plan have found out of each of its updates.

    Raises
    ------
    PlanError
        A task has not reported.
    """

    def read(task: Task) -> list[Facts]:
        report = store.get_json(keys.task_report(task.level, task.number), _parse_found)
        if report is None or len(report) != task.stop - task.first:
            raise PlanError(f"task {task.number} has not read its updates' headers")
        return report

    for task in plan.tasks(0):
        # One by one, as the pieces of the plan: all at once would take their memory, too.
        yield from zip(plan.contributors[task.first : task.stop], read(task), strict=True)


def _read(
    s3: TaskS3Client, source: ObjectVersion, *, reports: bool
) -> tuple[Facts, client_metrics.Found]:
    try:
        data = s3.get_range(source, 0, min(source.nbytes, FIRST_READ_BYTES))
        end = PREFIX_BYTES + header_length(data, source.nbytes)
        if end > LARGE_HEADER:
            return None, None
        if end > len(data):
            data = s3.get_range(source, 0, end)
        header = parse_update(data[PREFIX_BYTES:end], source.nbytes)
        samples = parse_samples(header.metadata)
    except (UpdateError, ChangedObjectError) as error:
        return f"{source.key}: {error}", {}
    except UnreadableObjectError as error:
        return str(error), {}
    compressed = isinstance(header.layout, EncodedLayout)
    surveyed = Surveyed(
        samples,
        header.data_offset,
        parse_codec_error(header.metadata) if compressed else None,
        digests_of(header.layout),
        parse_report(samples, header.metadata) if reports else None,
    )
    return surveyed, client_metrics.find(header.metadata)


def _entry(facts: Facts, layouts: dict[Digests, int]) -> Any:
    if not isinstance(facts, Surveyed):
        return facts
    number = layouts.setdefault(facts.digests, len(layouts))
    report = None if facts.report is None else asdict(facts.report)
    return [facts.samples, facts.data_offset, facts.codec_error, number, report]


def _parse_found(report: dict[str, Any]) -> list[Facts]:
    layouts = [Digests(*map(bytes.fromhex, stated)) for stated in report["layouts"]]

    def parse(entry: Any) -> Facts:
        if entry is None or isinstance(entry, str):
            return entry
        samples, data_offset, error, number, stated = entry
        reported = stated and Report.from_json(stated)
        return Surveyed(samples, data_offset, error, layouts[number], reported)

    return [parse(entry) for entry in report["updates"]]
