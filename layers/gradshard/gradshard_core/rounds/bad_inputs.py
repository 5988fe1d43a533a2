"""Find the inputs because of which a task cannot write its sum.

Updates may hold NaN or infinities, may add up to too large sums (:mod:`.overflow`), or may have
been deleted since planning.
"""

from gradshard_core.aggregation import kernel
from gradshard_core.aggregation.block_sizes import MAX_ELEMENT_BYTES, ROW_BYTES
from gradshard_core.aggregation.sharding import aligned
from gradshard_core.errors import ChangedObjectError
from gradshard_core.formats.codecs.topk import TopK
from gradshard_core.planning.plan_parts import Rejection
from gradshard_core.robust.inner_products import bound_of
from gradshard_core.rounds.sum_overflow import element_at, reject_largest
from gradshard_core.rounds.task_inputs import TaskInputs

_OR_TOO_LARGE = ", or this update is too large there to be measured"
_OR_MALFORMED = ", or its entries there are not in order or not as many as is stated"


def reject_nonfinite(inputs: TaskInputs, position: int) -> list[Rejection]:
    """Reject the updates that make the sum a NaN or an infinity at a byte of the layout.

    These are the updates that hold a NaN or an infinity. If there are none, the sum overflows, and
    the largest contributions are rejected. A task that measures makes no sum: there, all numbers
    that are too large to be measured are bad, whatever they would weigh.
    """
    s3, plan, task = inputs.s3, inputs.plan, inputs.task
    found: dict[int, int] = {}
    measures = plan.computation.measures
    if task.level == 0:
        # Rules that hold all inputs look at one after another: before this element, the next ones
        # may have bad elements, too.
        before = max(0, position - ROW_BYTES - MAX_ELEMENT_BYTES)
        start = max(task.start, aligned(inputs.spans, before))
        with inputs.opened(start) as streams:
            found = kernel.find_nonfinite(
                streams,
                inputs.weighted_ranges(start),
                inputs.reduction,
                inputs.spans,
                bound_of if measures else kernel.no_bound,
            )
    if not found:
        return reject_largest(s3, plan, task, position)
    average = plan.outputs[0]
    layout = average.read_layout(s3)
    rejected = []
    for index, byte in sorted(found.items()):
        contributor = inputs.contributors[index]
        tensor, element = element_at(layout, byte)
        reason = (
            f"{contributor.source.key}: tensor {tensor!r} holds a NaN or an infinity at "
            f"element {element}{_OR_TOO_LARGE if measures else ''}"
            f"{_OR_MALFORMED if contributor.codec == TopK.name else ''}"
        )
        rejected.append(Rejection(contributor.client, reason, contributor.source.etag))
    return rejected


def reject_unreadable(inputs: TaskInputs) -> list[Rejection]:
    """Reject the contributors whose planned version can no longer be read."""
    rejected = []
    for contributor in inputs.contributors:
        stream = inputs.update_stream(contributor, inputs.task.start)
        try:
            stream.open()
        except ChangedObjectError as error:
            rejected.append(Rejection(contributor.client, str(error), contributor.source.etag))
        finally:
            stream.close()
    return rejected


def is_rejected_below(inputs: TaskInputs) -> bool:
    """Return whether a partial sum is missing because a task one level below rejected an update."""
    level, attempt = inputs.task.level, inputs.plan.attempt
    if level == 0:
        return False
    keys = (inputs.keys.task_report(level - 1, number) for number in inputs.numbers)
    reports = (inputs.s3.get_json(key) for key in keys)
    return any(r and r["attempt"] == attempt and not r["is_written"] for r in reports)
