"""Write docs/cost.md and its plots from the cost model: ``python -m benchmarks.cost_report``.

Everything in them is computed; a test compares the files with what this writes.
"""

import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks.cost_plots import Plot, Series
from gradshard.cli.papers_cost import describe, reproduction
from gradshard.papers import SYSTEMS, claims, measurements, published_systems
from gradshard.papers.claims import BANDWIDTHS, VARIANTS
from gradshard.papers.estimate import PUBLISHED, TITLES, Estimate, Setting
from gradshard.utils.text import format_size
from gradshard_core.planning import limits, planner, pricing, transfers
from gradshard_core.planning.bandwidth import BURST, Bandwidth
from gradshard_core.units import MIB

DOCS: Final = Path(__file__).parent.parent / "docs"
PAPER: Final = Setting(bandwidth=PUBLISHED, architecture=measurements.ARCHITECTURE)
ALL_EVENTS: Final = (
    "https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/"
    "aws-properties-s3-bucket-eventbridgeconfiguration.html"
)
CIRCLE: Final = (
    "https://aws.amazon.com/blogs/mt/resolving-circular-dependency-in-provisioning-of-amazon-s3-"
    "buckets-with-aws-lambda-event-notifications/"
)
INIT_BILLED: Final = (
    "https://aws.amazon.com/blogs/compute/aws-lambda-standardizes-billing-for-init-phase"
)
COLUMNS: Final[tuple[claims.Column, ...]] = ("full", "total")
COUNTED: Final = {"full": "as the paper counts", "total": "everything counted"}
SIDE_BY_SIDE: Final = ("shards", "gradssharding", "lambda_fl", "lifl")


def files() -> dict[str, str]:
    """Return the text of each file, by name."""
    return {
        "cost.md": _document(),
        "cost-size.svg": _size_plot().svg(),
        "cost-shards.svg": _shards_plot().svg(),
    }


def _document() -> str:
    sections = [
        _head(),
        _glance_section(),
        _published_section(),
        _systems_section(),
        _crossover_section(),
        _trees_section(),
        _round_claims_section(),
        _budget_section(),
        _defaults_section(),
        _fan_out_section(),
        _events_section(),
        _assumptions_section(),
    ]
    return "\n\n".join(_filled(section) for section in sections) + "\n"


def _filled(section: str) -> str:
    """Wrap paragraphs again, now that numbers stand in them; leave tables, lists and headings."""
    blocks = re.split(r"\n{2,}", section.strip("\n"))
    return "\n\n".join(
        block if block.startswith(("#", "|", "<", "!", "  ")) else "\n".join(_items(block))
        for block in blocks
    )


def _items(block: str) -> Iterator[str]:
    for item in re.split(r"\n(?=(?:  )?- )", block):
        indent = re.match(r" *(?:- )?", item)
        assert indent is not None
        yield textwrap.fill(
            indent.group() + " ".join(item[indent.end() :].split()),
            100,
            drop_whitespace=True,
            subsequent_indent=" " * indent.end(),
            break_long_words=False,
            break_on_hyphens=False,
        )


def _head() -> str:
    most = len(transfers.client_ranges(measurements.VGG16.nbytes))
    return f"""
<!-- Written by `python -m benchmarks.cost_report`; change that, not this. -->

# What a round costs

Dollars are per thousand rounds of {measurements.CLIENTS} clients, prices those of us-east-1. *full*
is what the paper of GradsSharding counts: Lambda's GB-seconds and the S3 requests of aggregators
and clients. *total* adds what it leaves out: the request fee, Step Functions, the small functions
around a round, EventBridge's price of S3's events, and cold starts. `gradshard papers cost`
computes all of this for any size; nothing here was measured on AWS by this project.

Clients' requests are counted as each system's clients make them. The published systems' make one
PUT and one GET for an object, as the paper counts. gradshard's send an update of up to
{transfers.SINGLE_PUT_BYTES // MIB} MiB in one PUT, a larger one in {most} parts with three requests
more, so that a broken connection does not cost the whole; above
{transfers.CLIENT_RANGE_BYTES // MIB} MiB they fetch the result in up to {most} ranges, for the same
reason.

![Dollars against size](cost-size.svg)

![Seconds against M](cost-shards.svg)
"""


def _glance_section() -> str:
    rows = []
    for variant in (claims.DEFAULT, claims.SMALLEST, claims.DOUBLE):
        rows += [
            (
                f"shards cost no more than {TITLES[rival]} from 43 MB up, {COUNTED[column]}",
                variant.label,
                *(_ratio(v) for v in _tree_verdicts(rival, column, variant)),
            )
            for rival in ("lambda_fl", "lifl")
            for column in COLUMNS
        ]
        rows += [
            (
                (
                    f"a {claim.model.name} round costs at most ${1000 * claim.bound:.2f}, "
                    f"a {_ordinal(claim.fraction)} of {TITLES[claim.rival]}'s published"
                ),
                variant.label,
                *(_money(claim.verdict(variant, bandwidth)) for bandwidth in BANDWIDTHS),
            )
            for claim in claims.ROUND_CLAIMS
        ]
    return f"""
## The claims, as deployed

By bandwidth: *burst* is what the planner assumes, *published* what the paper measured, 50 % to
either side. Ratios are the worst at any size, with the same clients' requests for both systems;
rounds are arm64, everything counted, clients as they are built. ✓ holds, ✗ does not.

{_table(("claim", "tasks of", *_names()), rows)}

Of the whole rounds, with tasks of the default memory:

{chr(10).join(map(_in_words, claims.ROUND_CLAIMS))}

The sections below have the working, and what decides where a claim does not hold.
"""


def _tree_verdicts(
    rival: str, column: claims.Column, variant: claims.Variant, *, alike: bool = True
) -> list[claims.Verdict]:
    memory_mb = variant.setting.memory_mb
    return [
        claims.no_crossover(rival, bandwidth, column, memory_mb=memory_mb, alike=alike)
        for bandwidth in BANDWIDTHS
    ]


def _published_section() -> str:
    rows = []
    for row in reproduction():
        cells, seconds, model, left = (
            row[name] for name in ("published", "from_published_seconds", "modelled", "left_out")
        )
        rows.append(
            (
                row["model"],
                TITLES[row["system"]],
                *(f"{cells[column]:.4g}" for column in ("agg", "full")),
                *(_beside(seconds[column], cells[column], 1) for column in ("agg", "full")),
                *(_beside(model[column], cells[column], 0) for column in ("agg", "full")),
                f"{cells['seconds']:g}",
                _beside(model["seconds"], cells["seconds"], 0),
                *(f"{left[name]:.3f}" for name in ("requests", "step_functions")),
            )
        )
    table = _table(
        (
            *("model", "system", "agg", "full", "agg from seconds", "full from seconds"),
            *("agg modelled", "full modelled", "wall s", "wall s modelled"),
            *("request fee", "Step Functions"),
        ),
        rows,
    )
    return f"""
## The published numbers, again

{table}

*From seconds*: the published memory and each function's own seconds, priced. The wall seconds
are not
what is billed: functions end at different times, and the paper bills each for its own clock
(means of
the eight warm runs in its replication package). Billing the wall seconds instead would give
${_from_wall(measurements.RESNET18):.3f} and ${_from_wall(measurements.VGG16):.2f} for
GradsSharding's *agg*
of ResNet-18 and VGG-16. *full* is printed to cents, which is up to 0.8 % of ResNet-18's.

*Modelled*: seconds from {PUBLISHED.bytes_per_second / MIB:g} MiB/s, reading and writing,
{1000 * PUBLISHED.latency_seconds:g} ms a request and {limits.TASK_START_SECONDS:g} s a start;
memory
from ⌈3·input + 450⌉. ResNet-18 was measured under an earlier rule, ⌈2·input + 450⌉, hence its
472 and
536 MB. The latency was chosen with these cells in view; it matters to ResNet-18's shards
alone. Modelled wall seconds have every function alike, where the published ones wait for the
slowest.
"""


def _from_wall(model: measurements.Model) -> float:
    cell = measurements.measured(model, "gradssharding")
    assert cell is not None
    (level,) = cell.levels
    wall = replace(cell, levels=(replace(level, mean_seconds=cell.wall_seconds),))
    return 1000 * published_systems.measured_bill(wall).aggregators


def _systems_section() -> str:
    blocks = [
        "## Side by side",
        "The same x86-64 prices, bandwidth and orchestration for all; clients' requests as built.",
    ]
    for bandwidth in (PUBLISHED, BURST):
        setting = replace(PAPER, bandwidth=bandwidth)
        rows = [
            (model.name, *_row(estimate))
            for model in measurements.MODELS
            for system in SYSTEMS
            if (estimate := claims.estimate(system, model.nbytes, setting))
        ]
        titles = (
            *("model", "system", "M", "MB", "s", "Lambda", "S3 aggregators", "S3 clients", "full"),
            *("requests", "Step Functions", "round", "events", "cold starts", "total"),
        )
        blocks += [f"### Bandwidth: {bandwidth.name}", _table(titles, rows)]
    most = limits.MAX_MEMORY_MB - published_systems.WHOLE_OVERHEAD_MB
    blocks.append(
        "Where a system is missing it cannot run: at 10,240 MB what holds whole updates ends at "
        f"{most // published_systems.WHOLE_COPIES} MB of "
        "update. Streaming lifts that ceiling for trees as well; they then read "
        "(N + L)/N as much, L the number of partial sums, write every partial sum, and wait for "
        "one level after another."
    )
    return "\n\n".join(blocks)


def _row(estimate: Estimate) -> tuple[str, ...]:
    bill = estimate.bill
    amounts = (
        *(bill.lambda_, bill.s3_aggregators, bill.s3_clients, bill.full),
        *(bill.requests, bill.step_functions, bill.round_, bill.events, bill.starts, bill.total),
    )
    return (
        TITLES[estimate.system],
        str(estimate.shards),
        str(estimate.memory_mb),
        f"{estimate.seconds:.0f}",
        *(f"{1000 * amount:.2f}" for amount in amounts),
    )


def _crossover_section() -> str:
    pairs = (
        ("gradssharding", "lambda_fl"),
        ("gradssharding", "lifl"),
        ("shards", "lambda_fl"),
        ("shards", "lifl"),
        ("shards", "gradssharding"),
    )
    lines = [
        f"- {TITLES[first]} and {TITLES[second]}, {line.strip()}"
        if index == 0
        else f"  - {line.strip()}"
        for first, second in pairs
        for column in COLUMNS
        for index, line in enumerate(describe(claims.compare(first, second, PAPER, column)))
    ]
    return f"""
## Where they cross

At the published bandwidth, with the terms that decide just above the crossing. Straight lines
through
the paper's own two cells put GradsSharding and λ-FL at {format_size(claims.published_crossover())}.

{chr(10).join(lines)}
"""


def _trees_section() -> str:
    rows = [
        (TITLES[rival], variant.label, column, *map(_ratio, _tree_verdicts(rival, column, variant)))
        for rival in claims.RIVALS
        for variant in (claims.DEFAULT, claims.SMALLEST, claims.DOUBLE)
        for column in COLUMNS
    ]
    rows += [
        (
            f"{TITLES[rival]}, one request a client",
            claims.DEFAULT.label,
            column,
            *map(_ratio, _tree_verdicts(rival, column, claims.DEFAULT, alike=False)),
        )
        for rival in ("lambda_fl", "lifl")
        for column in COLUMNS
    ]
    table = _table(("sharding over", "tasks of", "column", *_names()), rows)
    unhurried = max(
        claims.compare(
            "shards",
            "lambda_fl_streamed",
            replace(PAPER, bandwidth=bandwidth, time_budget=math.inf),
            "total",
            smallest=claims.FROM_BYTES,
        ).worst_ratio
        for bandwidth in BANDWIDTHS
    )
    return f"""
## Claim: sharding costs no more than the trees from 43 MB up

One object per client, ranged reads; x86-64, bandwidth, orchestration and clients' requests the same
for all. The worst ratio of sharding's dollars to the rival's over all sizes from 43 MB to 10 GB
that both can average. It holds where that is at most 1. In the last rows like is not counted with
like: the tree's clients make one request each way, gradshard's their several.

{table}

Where sharding is dearer, with tasks of the default memory and clients alike:

{_dearer(claims.RIVALS, BANDWIDTHS, alike=True)}

And with the tree's clients making one request each way:

{_dearer(("lambda_fl", "lifl"), (BURST, PUBLISHED), alike=False)}

The shards' M is the planner's, the cheapest within a minute, while a streamed tree takes as long as
it takes. With no time budget for either, everything counted, the worst ratio of shards of
{Setting().memory_mb} MB to the streamed λ-FL at any of these bandwidths is {unhurried:.2f}.
"""


def _dearer(rivals: Iterable[str], bandwidths: Iterable[Bandwidth], *, alike: bool) -> str:
    """List the sizes at which sharding is the dearer, for each case in which there are any."""
    lines = []
    for rival in rivals:
        for bandwidth in bandwidths:
            for column in COLUMNS:
                compared = claims.compare(
                    "shards",
                    rival,
                    replace(PAPER, bandwidth=bandwidth),
                    column,
                    smallest=claims.FROM_BYTES,
                    alike=alike,
                )
                if compared.worst_ratio > 1:
                    first, *rest = describe(compared)
                    lines.append(f"- {TITLES[rival]}, {bandwidth.name}, {first}")
                    lines += [f"  - {line.strip()}" for line in rest]
    return "\n".join(lines) or "- nowhere."


def _ratio(verdict: claims.Verdict) -> str:
    return f"{verdict.value:.2f} {_mark(verdict)}"


def _mark(verdict: claims.Verdict) -> str:
    return "✓" if verdict.holds else "✗"


def _names() -> list[str]:
    return [bandwidth.name for bandwidth in BANDWIDTHS]


def _round_claims_section() -> str:
    blocks = [
        "## Claims: a whole round, everything counted",
        "arm64 unless it says otherwise; the planner's M, within a minute.",
    ]
    for claim in claims.ROUND_CLAIMS:
        rows = [
            (
                variant.label,
                *(_money(claim.verdict(variant, bandwidth)) for bandwidth in BANDWIDTHS),
            )
            for variant in VARIANTS
        ]
        blocks += [
            (
                f"### {claim.model.name}: at most a {_ordinal(claim.fraction)} of "
                f"{TITLES[claim.rival]}'s published ${1000 * claim.fraction * claim.bound:.2f}, "
                f"${1000 * claim.bound:.2f}"
            ),
            _table(("", *_names()), rows),
        ]
    return "\n\n".join([*blocks, _what_decides()])


def _ordinal(fraction: int) -> str:
    return {10: "tenth", 15: "fifteenth"}[fraction]


def _money(verdict: claims.Verdict) -> str:
    if math.isinf(verdict.value):
        return f"– {_mark(verdict)}"
    return f"${1000 * verdict.value:.2f} {_mark(verdict)}"


def _in_words(claim: claims.RoundClaim) -> str:
    """Say at which bandwidths a claim holds as deployed."""
    verdicts = [
        (bandwidth.name, claim.verdict(claims.DEFAULT, bandwidth)) for bandwidth in BANDWIDTHS
    ]
    holds = ", ".join(name for name, verdict in verdicts if verdict.holds)
    fails = ", ".join(
        f"{name} (${1000 * (verdict.value - verdict.bound):.2f} over)"
        for name, verdict in verdicts
        if not verdict.holds
    )
    found = [f"holds at {holds}"] if holds else []
    found += [f"does not hold at {fails}"] if fails else []
    return f"- {claim.model.name} at ${1000 * claim.bound:.2f} {'; it '.join(found)}."


def _what_decides() -> str:
    rows = []
    for claim in claims.ROUND_CLAIMS:
        for bandwidth in BANDWIDTHS:
            estimate = SYSTEMS["shards"](
                claim.model.nbytes, replace(claims.DEFAULT.setting, bandwidth=bandwidth)
            )
            bill = estimate.bill
            amounts = (
                *(bill.lambda_, bill.s3_aggregators, bill.s3_clients, bill.requests),
                *(bill.step_functions, bill.round_, bill.events, bill.starts),
                *(bill.total - bill.lambda_, bill.total),
            )
            rows.append(
                (
                    claim.model.name,
                    bandwidth.name,
                    str(estimate.shards),
                    *(f"{1000 * amount:.2f}" for amount in amounts),
                    f"{1000 * claim.bound:.2f} {_mark(claims.Verdict(bill.total, claim.bound))}",
                )
            )
    titles = (
        *("model", "bandwidth", "M", "Lambda", "S3 aggregators", "S3 clients", "requests"),
        *("Step Functions", "round", "events", "cold starts", "all but Lambda", "total", "bound"),
    )
    vgg16 = SYSTEMS["shards"](measurements.VGG16.nbytes, claims.DEFAULT.setting)
    fixed = vgg16.bill.total - vgg16.bill.lambda_
    listings = measurements.CLIENTS * limits.DOLLARS_PER_PUT
    transitions = limits.ROUND_TRANSITIONS + limits.LEVEL_TRANSITIONS
    gpt2 = SYSTEMS["shards"](measurements.GPT2_LARGE.nbytes, claims.DEFAULT.setting)
    parts = planner.client_requests(measurements.GPT2_LARGE.nbytes)
    once = limits.DOLLARS_PER_PUT + limits.DOLLARS_PER_GET
    return f"""
### What decides

What it is paid for, with tasks of the default memory:

{_table(titles, rows)}

For GPT-2 Large and the synthetic 5 GB Lambda's part decides. Functions that wait for S3 are paid
for waiting, and slower ones need more shards to be done within a minute, each with its reads; at
*burst* they hardly do, and more bandwidth changes nothing for the smallest, whose processor's share
decides. What
the minute costs shows in *no hurry*, what sending in parts costs in *clients as the paper counts*.

For VGG-16 the fees beside Lambda's decide: ${1000 * fixed:.2f} at *burst*, where the bound is
${1000 * claims.ROUND_CLAIMS[0].bound:.2f}. A round's states alone are
${1000 * transitions * limits.DOLLARS_PER_TRANSITION:.2f}. Each arrival looks
for a few of the other clients before it lists them all: a listing at every one would be
${1000 * listings:.2f} more. Events are ${1000 * vgg16.bill.events:.2f} and cold starts
${1000 * vgg16.bill.starts:.2f}: [Events](#events) says why they are not filtered.

The published numbers that the bounds are taken from count one PUT and one GET a client and object:
${1000 * measurements.CLIENTS * once:.2f} with λ-FL. gradshard's clients pay
${1000 * vgg16.bill.s3_clients:.2f} a round of VGG-16, one PUT and {parts.gets} GETs each, and
${1000 * gpt2.bill.s3_clients:.2f} beyond {transfers.SINGLE_PUT_BYTES // MIB} MiB: {parts.puts}
PUT-class requests and {parts.gets} GETs, whatever the size. *Clients as the paper counts* gives
them one of each, which S3 takes up to 5 GiB and which a broken connection would cost whole.
"""


def _budget_section() -> str:
    blocks = ["## What a time budget costs", "The cheapest memory and M; arm64, total."]
    for model in (measurements.VGG16, measurements.SYNTHETIC_5GB):
        columns = [claims.budgets(model, bandwidth) for bandwidth in (BURST, PUBLISHED)]
        rows = [
            (f"{budgets[0].time_budget:g} s", *(_choice(budget.choice) for budget in budgets))
            for budgets in zip(*columns, strict=True)
        ]
        blocks += [f"### {model.name}", _table(("time budget", BURST.name, PUBLISHED.name), rows)]
    return "\n\n".join(blocks)


def _defaults_section() -> str:
    blocks = [
        f"## Why {planner.DEFAULT_MEMORY_MB} MB and a minute",
        "What rounds of 20 clients cost with functions of each size, arm64, total.",
    ]
    sizes = (limits.MIN_MEMORY_MB, planner.DEFAULT_MEMORY_MB, 256)
    time_budgets = (planner.UNHURRIED_SECONDS, planner.UNHURRIED_SECONDS / 2)
    for bandwidth in (BURST, PUBLISHED):
        rows = [
            (
                model.name,
                f"{budget:g} s",
                *(
                    _choice(
                        SYSTEMS["shards"](
                            model.nbytes,
                            Setting(bandwidth=bandwidth, memory_mb=memory_mb, time_budget=budget),
                        )
                    )
                    for memory_mb in sizes
                ),
            )
            for model in measurements.MODELS
            for budget in time_budgets
        ]
        titles = ("model", "time budget", *(f"{memory_mb} MB" for memory_mb in sizes))
        blocks += [f"### Functions of each size, bandwidth: {bandwidth.name}", _table(titles, rows)]
    blocks.append(
        f"""
A function has a share of a processor by its memory. With {limits.MIN_MEMORY_MB} MB it adds up less
than the network of the planner's assumption (*burst*) brings; with {planner.DEFAULT_MEMORY_MB} MB
it waits for the network. So {planner.DEFAULT_MEMORY_MB} MB are the default: they cost the same,
within 2 %, and take up to 30 % less time, while 256 MB cost up to a fifth more and hardly save
any. A minute is the default budget: half a minute costs up to 5 % more.

Where functions' networks are as slow as the paper measured, more memory buys no time, and
{planner.DEFAULT_MEMORY_MB} MB cost up to a third more than {limits.MIN_MEMORY_MB}: the seconds of
the first rounds on AWS tell which it is (`gradshard show` has those projected beside), and
`AggregatorMemory={limits.MIN_MEMORY_MB}` is all it takes.
"""
    )
    return "\n\n".join(blocks)


def _choice(choice: Estimate | None) -> str:
    if choice is None:
        return "–"
    return (
        f"${1000 * choice.bill.total:.2f}: M={choice.shards}, {choice.memory_mb} MB, "
        f"{choice.seconds:.1f} s"
    )


def _fan_out_section() -> str:
    seconds = SYSTEMS["shards"](measurements.VGG16.nbytes, claims.DEFAULT.setting).task_seconds
    # An Express child's seconds cost what a second transition would.
    even = (limits.DOLLARS_PER_TRANSITION - limits.DOLLARS_PER_EXPRESS_REQUEST) / (
        limits.EXPRESS_MEMORY_GB * limits.DOLLARS_PER_EXPRESS_GB_SECOND
    )
    rows = [
        (way.label, *(f"{1000 * amount:.3f}" for amount in way.dollars))
        for way in claims.fan_outs(seconds)
    ]
    titles = ("", *(f"M={m}" for m in claims.FAN_OUT_SHARDS))
    saved = [_saved_by_batches(model) for model in measurements.MODELS]
    return f"""
## The fan-out's own fee

Of tasks of {seconds:.0f} s, beside the round's other {limits.ROUND_TRANSITIONS} transitions and
{limits.LEVEL_TRANSITIONS} for the level.

{_table(titles, rows)}

A child of a Standard machine costs two transitions whatever it lasts, an Express one its seconds:
for tasks of more than {even:.0f} s an Express child of its own costs more. As deployed, children
take up to {limits.INLINE_ITERATIONS} tasks each and run them in an inline Map, which is free there.
For M ≤ {limits.INLINE_ITERATIONS} that is one transition, one request and the slowest task's
seconds once. What it saves over an Express child for each task:

{_table(("model", "M", "one child a task", "as deployed", "saved"), saved)}

It was run on the local engine, not on AWS.
"""


def _saved_by_batches(model: measurements.Model) -> tuple[str, ...]:
    estimate = SYSTEMS["shards"](model.nbytes, claims.DEFAULT.setting)
    ways = claims.fan_outs(estimate.task_seconds, (estimate.shards,))
    each, batched = ways[claims.EXPRESS_EACH].dollars[0], ways[claims.AS_DEPLOYED].dollars[0]
    amounts = (f"{1000 * amount:.2f}" for amount in (each, batched, each - batched))
    return (model.name, str(estimate.shards), *amounts)


def _events_section() -> str:
    vgg16 = SYSTEMS["shards"](measurements.VGG16.nbytes, claims.DEFAULT.setting)
    count = pricing.events([vgg16.shards], measurements.CLIENTS)
    return f"""
## Events

S3 tells EventBridge of all that happens to the bucket's objects, and EventBridge asks
${1e6 * limits.DOLLARS_PER_EVENT:.2f} a million for such events
([AWS](https://aws.amazon.com/eventbridge/pricing/)). An object of a round is
{limits.EVENTS_PER_EXPIRING_OBJECT} of them: it is created, it expires, and its version is deleted a
day later. A round of VGG-16 is {count} events, ${1000 * vgg16.bill.events:.2f} per thousand rounds;
{measurements.CLIENTS} of them, the updates' arrivals, call a function.

**They are not filtered at the source.** For EventBridge a bucket's events are on or off
([AWS]({ALL_EVENTS})). Notifications to Lambda, SQS and SNS are free, and are filtered by kind of
event, prefix and suffix. They were considered and not taken, for what they lose:

- *To Lambda.* EventBridge tries for 24 hours to call collect_update, and then puts the event into a
  queue that an alarm watches. S3's own notifications have no such queue: where S3 cannot call the
  function, nobody is told, and the round waits for its deadline. Also, the bucket would name the
  function, and the function's role and environment name the bucket. CloudFormation deploys such a
  circle only with a function that sets the notification afterwards, or with a bucket name that is
  fixed beforehand ([AWS]({CIRCLE})); the bucket stays when its stack is deleted, so the next
  deployment would collide with it.
- *To SQS, and from there to Lambda.* The queue keeps what fails, but Lambda asks an empty queue for
  messages all the time, and each request is paid for: waiting would cost something.
"""


def _assumptions_section() -> str:
    return f"""
## What this rests on

- Bandwidth *published*: {PUBLISHED.bytes_per_second / MIB:g} MiB/s, the middle of the paper's
44 to 57;
  *burst*: {limits.SUSTAINED_BYTES_PER_SECOND // MIB} MiB/s after {limits.BURST_BYTES // MIB} MiB at
  {limits.BURST_BYTES_PER_SECOND // MIB} MiB/s (Bodner et al., arXiv 2501.07771). Both for every
  system alike, though the published ones read one object after another on one connection.
- {limits.CPU_SECONDS_PER_GB} CPU-seconds a GB received and added, for every system alike; a
processor
  is {limits.MB_PER_VCPU} MB.
- Each function of a round starts cold once: every task, and the functions around them,
  collect_update twice, for the arrivals and for the deadline. Lambda bills the INIT phase since
  August 2025 ([AWS]({INIT_BILLED})). It is taken to be {limits.RUNTIME_INIT_SECONDS:g} s of the
  runtime and {limits.TASK_INIT_CPU_SECONDS:g} or {limits.SMALL_INIT_CPU_SECONDS:g} CPU-seconds of
  importing, measured here, at the processor's share that the memory gives: an upper bound, as far
  as Lambda gives the INIT phase more. *Seconds* are those of warm functions.
- Storage, logs, traces and what clients pay to wait are not counted, nor is a round's schedule,
  $0.001 per thousand. Models are kept: what deleting their versions costs is not counted either.
- Every function of a level starts at once: the account's concurrency is at least M. Updates'
  headers are within 64 KiB, and nothing is tried twice.
- Tasks of the streamed trees are held to Lambda's {measurements.TIMEOUT_SECONDS:.0f} s, not to the
  five minutes of an Express child, and are charged as its children all the same; beyond 5 GiB they
  are cut as often as S3 demands, which the planner rejects.
"""


def _beside(value: float, reference: float, digits: int) -> str:
    return f"{value:.4g} ({value / reference - 1:+.{digits}%})"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _size_plot() -> Plot:
    series = [
        Series(
            TITLES[system],
            color,
            [
                (nbytes, 1000 * estimate.bill.full)
                for nbytes in claims.sizes(20_000_000)
                if (estimate := claims.estimate(system, nbytes, PAPER))
            ],
            [
                (cell.model.nbytes, cell.full_dollars)
                for cell in measurements.MEASUREMENTS
                if cell.system == system
            ],
        )
        for color, system in enumerate(SIDE_BY_SIDE)
    ]
    total = [
        (nbytes, 1000 * estimate.bill.total)
        for nbytes in claims.sizes(20_000_000)
        if (estimate := claims.estimate("shards", nbytes, PAPER))
    ]
    return Plot(
        "Dollars per 1,000 rounds as the paper counts; dots: published",
        "size of an update",
        "dollars per 1,000 rounds",
        (20e6, 10e9),
        (0.1, 500),
        [(43e6, "43 MB"), (200e6, "200 MB"), (537e6, "537 MB"), (2e9, "2 GB"), (5.4e9, "5.4 GB")],
        [(0.1, "0.1"), (1, "1"), (10, "10"), (100, "100")],
        [*series, Series("shards, everything", 0, total, dashed=True)],
    )


def _shards_plot() -> Plot:
    model = measurements.VGG16
    shard_counts = [*range(1, 17), *range(18, 101, 2)]
    ours = Setting(memory_mb=limits.MB_PER_VCPU)

    def line(system: str, setting: Setting) -> list[tuple[float, float]]:
        return [
            (m, estimate.seconds)
            for m in shard_counts
            if (estimate := claims.estimate(system, model.nbytes, replace(setting, shards=m)))
        ]

    return Plot(
        "VGG-16, 20 clients: seconds against M; dots: published (3,008 MB)",
        "M",
        "seconds",
        (1, 100),
        (1, 300),
        [(m, str(m)) for m in (1, 2, 4, 8, 16, 36, 100)],
        [(s, str(s)) for s in (1, 3, 10, 30, 100, 300)],
        [
            Series(
                "GradsSharding, modelled",
                1,
                line("gradssharding", PAPER),
                list(measurements.SHARD_SWEEP_SECONDS.items()),
            ),
            Series("shards, published MB/s", 0, line("shards", replace(ours, bandwidth=PUBLISHED))),
            Series("shards, burst", 0, line("shards", ours), dashed=True),
        ],
    )


if __name__ == "__main__":
    for name, text in files().items():
        (DOCS / name).write_text(text, encoding="utf-8")
        print(DOCS / name)
