"""How rounds are run differently as they get larger, and which of AWS's quotas bounds them."""

from typing import Final, NamedTuple

from gradshard_core.costs import assumed_speeds
from gradshard_core.formats.long_lists import PIECE
from gradshard_core.limits import aws_limits
from gradshard_core.s3.parallel_reads import HEADER_READERS, SMALL_OBJECT_READERS

READ_AT_ONCE: Final = 4096
"""Headers that ``plan_round`` reads itself; of more updates, tasks read them before."""

SECONDS_PER_REPORT: Final = max(
    assumed_speeds.REQUEST_SECONDS / SMALL_OBJECT_READERS,
    assumed_speeds.REPORT_CPU_SECONDS * aws_limits.MB_PER_VCPU / assumed_speeds.FINALIZE_MEMORY_MB,
)
"""How much longer ``finalize_round`` takes for each report."""

MAX_TASKS: Final = int(assumed_speeds.FINALIZE_TIMEOUT_SECONDS / 2 / SECONDS_PER_REPORT)
"""Tasks whose reports ``finalize_round`` can read in half of its timeout. The other half is left
for S3, which may take minutes to complete an upload."""


def is_recorded(clients: int) -> bool:
    """Return whether arrivals are marked, because one listing does not show all updates."""
    return clients > aws_limits.LISTED_ENTRIES


def is_surveyed(clients: int) -> bool:
    """Return whether tasks read the headers, in a pass of their own."""
    return clients > READ_AT_ONCE


def pieces(entries: int) -> int:
    """Return in how many objects of its own a list is stored."""
    return 0 if entries <= PIECE else -(-entries // PIECE)


def control_seconds(clients: int, *, measures: bool = False, assigns: bool = False) -> float:
    """Return how long planning and finalizing a surveyed round take, beyond those of others.

    Each processor second is stretched by the share that the template's memory gives. Pages of a
    listing are read one after another. A pass that measures, and assignments, take more.
    """
    if not is_surveyed(clients):
        return 0.0
    pages = -(-clients // aws_limits.LISTED_ENTRIES)
    # Two listings; pieces are written twice and read three times, the last time for the manifest.
    # A decision takes as many as a plan, and its contributors are written once more.
    requests = 2 * pages + (6 + 6 * measures) * pieces(clients)
    cpu_seconds = (
        (
            assumed_speeds.PLAN_CPU_SECONDS_PER_CLIENT
            + assumed_speeds.DECIDE_CPU_SECONDS_PER_CLIENT * measures
        )
        * clients
        + assumed_speeds.LISTED_CPU_SECONDS * 2 * clients
        + assumed_speeds.REQUEST_CPU_SECONDS * requests
    )
    share = assumed_speeds.PLAN_MEMORY_MB / aws_limits.MB_PER_VCPU
    assigning = assumed_speeds.ASSIGN_CPU_SECONDS_PER_CLIENT * clients * assigns
    finalizing = assigning / (assumed_speeds.FINALIZE_MEMORY_MB / aws_limits.MB_PER_VCPU)
    return cpu_seconds / share + finalizing + requests * assumed_speeds.REQUEST_SECONDS


def report_seconds(tasks: int) -> float:
    """Return how long ``finalize_round`` reads the reports of a pass, beyond the first few.

    Those are read side by side, in the time that every round takes around its tasks.
    """
    return max(0, tasks - SMALL_OBJECT_READERS) * SECONDS_PER_REPORT


def survey_seconds(memory_mb: int) -> float:
    """Return how long a task takes that reads the headers of a piece."""
    share = min(1.0, memory_mb / aws_limits.MB_PER_VCPU)
    return (
        assumed_speeds.TASK_START_SECONDS
        + PIECE * assumed_speeds.REQUEST_SECONDS / HEADER_READERS
        + PIECE * assumed_speeds.REQUEST_CPU_SECONDS / share
    )


class Quota(NamedTuple):
    """A quota of AWS, and what it means for a round.

    Parameters
    ----------
    name
        The quota, with its default.
    per_second
        The arrivals that fit into it in a second.
    """

    name: str
    per_second: float


def arrival_quotas(clients: int, topic_messages: int = aws_limits.TOPIC_MESSAGES) -> list[Quota]:
    """Return the quotas that bound how fast updates may arrive, the tightest first.

    S3 counts requests by prefix, and divides a busy prefix only after some time.

    Parameters
    ----------
    clients
        The number of clients.
    topic_messages
        The messages a second that SNS takes in the region: one for each update.
    """
    # spec, plan, manifest, header, an earlier rejection, the marks, and a listing of them.
    gets = 7 if is_recorded(clients) else 5
    # The client's and the marks'.
    puts = 2 if is_recorded(clients) else 1
    quotas = [
        Quota(
            f"S3's {aws_limits.PREFIX_GETS:,} GET requests a second and prefix",
            aws_limits.PREFIX_GETS / gets,
        ),
        Quota(
            f"S3's {aws_limits.PREFIX_PUTS:,} PUT requests a second and prefix",
            aws_limits.PREFIX_PUTS / puts,
        ),
        Quota(
            f"Lambda's {aws_limits.CONCURRENT_FUNCTIONS:,} functions at once",
            aws_limits.CONCURRENT_FUNCTIONS / assumed_speeds.COLLECT_SECONDS,
        ),
        Quota(f"SNS's {topic_messages:,} messages a second", topic_messages),
    ]
    return sorted(quotas, key=lambda quota: quota.per_second)


def notes(clients: int, most_tasks: int) -> list[str]:
    """Say which quota is the limit of a large round, if it is large enough to reach one.

    Parameters
    ----------
    clients
        The number of clients.
    most_tasks
        The tasks of the level with the most.
    """
    found = []
    if is_recorded(clients):
        tightest = arrival_quotas(clients)[0]
        found.append(
            f"{clients:,} updates may arrive within {clients / tightest.per_second:.0f} s, "
            f"{tightest.per_second:,.0f} a second: the limit is {tightest.name}; requests beyond "
            "it are tried again"
        )
        smallest = arrival_quotas(clients, aws_limits.LEAST_TOPIC_MESSAGES)[0]
        if smallest.per_second < tightest.per_second:
            found.append(
                f"In the smallest regions it is {clients / smallest.per_second:.0f} s: the limit "
                f"is {smallest.name}; the console's Service Quotas shows that of your region"
            )
    if most_tasks > aws_limits.CONCURRENT_FUNCTIONS:
        started = aws_limits.TRANSITIONS * aws_limits.INLINE_ITERATIONS
        found.append(
            f"{most_tasks:,} tasks are more than the {aws_limits.CONCURRENT_FUNCTIONS:,} functions "
            "that Lambda's default quota runs at once: deploy with MapConcurrency="
            f"{aws_limits.CONCURRENT_FUNCTIONS} or less, or have the quota raised; then the limit "
            f"is Step Functions' {aws_limits.TRANSITIONS:,} state transitions a second, which "
            f"start {started:,} tasks"
        )
    return found
