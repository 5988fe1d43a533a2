"""``python -m benchmarks.cost_report``: write pages and plots from the cost model.

The pages are docs/cost.md and benchmarks/published.md. A test compares them with what this writes.
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
from gradshard_core.formats.codecs.registry import CODECS
from gradshard_core.planning import aws_prices, limits, planner, pricing, speeds, transfers
from gradshard_core.planning.bandwidth import BURST, Bandwidth
from gradshard_core.planning.lambda_config import DEFAULT_MEMORY_MB
from gradshard_core.planning.projection import Projection, client_requests
from gradshard_core.planning.spec import parse_spec
from gradshard_core.planning.spec_workload import workload_of
from gradshard_core.units import MIB

ROOT: Final = Path(__file__).parent.parent
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
    """Return the text of each file, by its path in the repository."""
    return {
        "docs/cost.md": _document(
            _head(),
            _prices_section(),
            _choices_section(),
            _budget_section(),
            _defaults_section(),
            _codecs_section(),
            _fan_out_section(),
            _events_section(),
            _assumptions_section(),
        ),
        "benchmarks/published.md": _document(
            _comparison_head(),
            _glance_section(),
            _systems_section(),
            _crossover_section(),
            _round_claims_section(),
            _trees_section(),
            _published_section(),
        ),
        "docs/cost-size.svg": _size_plot().svg(),
        "docs/cost-shards.svg": _shards_plot().svg(),
    }


def _document(*sections: str) -> str:
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
            120,
            drop_whitespace=True,
            subsequent_indent=" " * indent.end(),
            break_long_words=False,
            break_on_hyphens=False,
        )


def _head() -> str:
    return f"""
<!-- Written by `python -m benchmarks.cost_report`; change that, not this. -->

# What a round costs

See what a round costs, which settings change that, and how the price is made up. `gradshard plan`
computes the price for your size and number of clients. All figures are computed from AWS's prices
in us-east-1; this project measured nothing on AWS.
[Beside the published systems](../benchmarks/published.md) compares them with other systems.

Dollars are per thousand rounds of {measurements.CLIENTS} clients, unless a table says otherwise.
"""


def _prices_section() -> str:
    rows = []
    for model in measurements.MODELS:
        burst, published = (
            SYSTEMS["shards"](model.nbytes, replace(claims.DEFAULT.setting, bandwidth=bandwidth))
            for bandwidth in (BURST, PUBLISHED)
        )
        bill = burst.bill
        s3 = bill.s3_aggregators + bill.s3_clients
        amounts = (bill.lambda_, s3, bill.total - bill.lambda_ - s3, bill.total)
        rows.append(
            (
                model.name,
                format_size(model.nbytes),
                str(burst.shards),
                f"{burst.seconds:.0f}",
                *(f"{1000 * amount:.2f}" for amount in amounts),
                f"{1000 * published.bill.total:.2f}",
            )
        )
    titles = (
        *("model", "size", "M", "seconds", "Lambda", "S3 requests", "fees", "total"),
        "total on a slow network",
    )
    return f"""
## A round with the default settings

arm64, tasks of {DEFAULT_MEMORY_MB} MB, M chosen by the planner for a round of about a
minute.

{_table(titles, rows)}

*Lambda* is the tasks' GB-seconds. *S3 requests* are those of tasks and clients. *Fees* are Step
Functions, the functions around the tasks, S3's events, Lambda's fee per invocation, and cold
starts. *On a slow network* is the total at the bandwidth that the paper of GradsSharding measured
(*published*), {PUBLISHED.bytes_per_second / MIB:g} MiB/s a function. The other columns assume what
the planner assumes (*burst*): {speeds.SUSTAINED_BYTES_PER_SECOND // MIB} MiB/s after a burst.

![Dollars against size](cost-size.svg)

![Seconds against M](cost-shards.svg)
"""


def _choices_section() -> str:
    small = client_requests(measurements.VGG16.nbytes)
    large = client_requests(measurements.GPT2_LARGE.nbytes)
    cost = [
        1000
        * measurements.CLIENTS
        * (asked.puts * aws_prices.DOLLARS_PER_PUT + asked.gets * aws_prices.DOLLARS_PER_GET)
        for asked in (small, large)
    ]
    return f"""
## What you can do about it

| to pay less | how |
| --- | --- |
| Take more time | `--time-budget`: [what a time budget costs](#what-a-time-budget-costs) |
| Use arm64 | It is the default, and {100 * _discount():.0f} % cheaper per second than x86-64 |
| Choose tasks' memory | `AggregatorMemory`: [why 192 MB and a minute](#why-192-mb-and-a-minute) |
| Keep updates within {transfers.SINGLE_PUT_BYTES // MIB} MiB | {_PARTS} |
| Keep objects for fewer days | `RetentionDays`; storage is not in the figures |

The requests of {measurements.CLIENTS} clients cost ${cost[0]:.2f} with VGG-16 ({small.puts} PUT and
{small.gets} GETs each) and ${cost[1]:.2f} with GPT-2 Large ({large.puts} PUT-class requests and
{large.gets} GETs each). Large updates are sent and fetched in several requests, so that a broken
connection does not cost the whole transfer.
"""


_PARTS: Final = (
    "float16 or BF16 halve the size; a larger update is sent in parts, which are requests"
)


def _discount() -> float:
    prices = aws_prices.DOLLARS_PER_GB_SECOND
    return 1 - prices["arm64"] / prices["x86_64"]


def _comparison_head() -> str:
    return """
<!-- Written by `python -m benchmarks.cost_report`; change that, not this. -->

# Beside the published systems

Compare gradshard's price with that of the systems in the paper of GradsSharding: GradsSharding,
λ-FL and LIFL. The page also recomputes the paper's numbers. [Cost](../docs/cost.md) explains the
price and [what the figures assume](../docs/cost.md#what-the-figures-assume). Dollars are per
thousand rounds of 20 clients.

*full* is what the paper counts: Lambda's GB-seconds, and the S3 requests of aggregators
and clients. *total* adds the fees. Clients of the published systems make one PUT and one GET per
object, as the paper counts; gradshard's clients make [several
requests](../docs/cost.md#what-you-can-do-about-it). *Streamed* trees are those of λ-FL
and LIFL with gradshard's tasks, which hold blocks instead of whole updates.

Columns are named by bandwidth: *burst*, and *published* with 50 % to either side. ✓ holds, ✗ does
not.
"""


def _glance_section() -> str:
    variant = claims.DEFAULT
    rows = [
        (
            f"shards cost no more than {TITLES[rival]} from 43 MB up, {COUNTED[column]}",
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
            *(_money(claim.verdict(variant, bandwidth)) for bandwidth in BANDWIDTHS),
        )
        for claim in claims.ROUND_CLAIMS
    ]
    return f"""
## The claims

Tasks have {variant.label}. Ratios are the worst at any size, on x86-64, with the same clients'
requests for both systems. Rounds are on arm64, everything counted.

{_table(("claim", *_names()), rows)}
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
## The published numbers, recomputed

{table}

*From seconds*: the published memory and each function's own seconds (means of the eight warm runs
in the paper's replication package), priced. Billing the wall seconds instead would give
${_from_wall(measurements.RESNET18):.3f} and ${_from_wall(measurements.VGG16):.2f} for
GradsSharding's *agg* of ResNet-18 and VGG-16, because functions end at different times.

*Modelled*: seconds from {PUBLISHED.bytes_per_second / MIB:g} MiB/s, reading and writing,
{1000 * PUBLISHED.latency_seconds:g} ms a request (chosen to fit these cells) and
{speeds.TASK_START_SECONDS:g} s a start; memory from ⌈3·input + 450⌉. ResNet-18 was measured under
an earlier rule, ⌈2·input + 450⌉. The model's functions all take equally long.
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
        (
            "x86-64, at the published bandwidth. Prices and orchestration are the same for all "
            "systems. *Fees* are the difference between *full* and *total*."
        ),
    ]
    rows = [
        (model.name, *_row(estimate))
        for model in measurements.MODELS
        for system in SYSTEMS
        if (estimate := claims.estimate(system, model.nbytes, PAPER))
    ]
    titles = (
        *("model", "system", "M", "MB", "s", "Lambda", "S3 aggregators", "S3 clients", "full"),
        *("fees", "total"),
    )
    blocks.append(_table(titles, rows))
    most = limits.MAX_MEMORY_MB - published_systems.WHOLE_OVERHEAD_MB
    blocks.append(
        "A missing system cannot run: in 10,240 MB, functions that hold whole updates take at most "
        f"{most // published_systems.WHOLE_COPIES} MB of update. Streaming removes that limit for "
        "trees too, but they read and write partial sums, and levels wait for each other."
    )
    return "\n\n".join(blocks)


def _row(estimate: Estimate) -> tuple[str, ...]:
    bill = estimate.bill
    amounts = (
        *(bill.lambda_, bill.s3_aggregators, bill.s3_clients, bill.full),
        *(bill.total - bill.full, bill.total),
    )
    return (
        TITLES[estimate.system],
        str(estimate.shards),
        str(estimate.memory_mb),
        f"{estimate.seconds:.0f}",
        *(f"{1000 * amount:.2f}" for amount in amounts),
    )


def _crossover_section() -> str:
    pairs = (("gradssharding", "lambda_fl"), ("gradssharding", "lifl"))
    rows = [
        (
            f"{TITLES[first]} and {TITLES[second]}",
            COUNTED[column],
            TITLES[found.cheaper_first],
            format_size(crossover.nbytes),
            TITLES[crossover.cheaper_above],
        )
        for first, second in pairs
        for column in COLUMNS
        for found in [claims.compare(first, second, PAPER, column)]
        for crossover in found.crossovers
    ]
    return f"""
## Where they cross

At the published bandwidth. Straight lines through the paper's two cells put the crossing of
GradsSharding and λ-FL at {format_size(claims.published_crossover())}.
`gradshard papers cost --crossover A B` shows which parts of the bill decide.

{_table(("systems", "counted", "cheaper below", "size", "cheaper above"), rows)}

{_never_dearer()}
"""


def _never_dearer() -> str:
    """Say which systems gradshard's shards are cheaper than at every size."""
    rivals = ("lambda_fl", "lifl", "gradssharding")
    compared = [
        claims.compare("shards", rival, PAPER, column) for rival in rivals for column in COLUMNS
    ]
    if any(found.crossovers or found.cheaper_first != "shards" for found in compared):
        raise AssertionError("gradshard's shards are not the cheaper everywhere: say where")
    names = ", ".join(TITLES[rival] for rival in rivals[:-1])
    return (
        f"{TITLES['shards']} cost less than {names} and {TITLES[rivals[-1]]} at every size that "
        f"both can average, from {format_size(claims.SMALLEST_BYTES)} up, in both columns."
    )


def _trees_section() -> str:
    rows = [
        (TITLES[rival], column, *map(_ratio, _tree_verdicts(rival, column, claims.DEFAULT)))
        for rival in claims.RIVALS
        if rival.endswith("_streamed")
        for column in COLUMNS
    ]
    rows += [
        (
            f"{TITLES[rival]}, one request a client",
            column,
            *map(_ratio, _tree_verdicts(rival, column, claims.DEFAULT, alike=False)),
        )
        for rival in ("lambda_fl", "lifl")
        for column in COLUMNS
    ]
    table = _table(("sharding over", "column", *_names()), rows)
    others = max(
        verdict.value
        for rival in claims.RIVALS
        for variant in (claims.SMALLEST, claims.DOUBLE)
        for column in COLUMNS
        for verdict in _tree_verdicts(rival, column, variant)
    )
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

The worst ratio of sharding's dollars to the rival's, over all sizes from 43 MB to 10 GB that both
can average; x86-64. The claim holds if it is at most 1. *The claims* above has the trees as
published. In the last rows the tree's clients make one request each way, and gradshard's clients
their own requests.

{table}

With tasks of {claims.SMALLEST.label} and {claims.DOUBLE.label}, the worst of all ratios is
{others:.2f}. Sizes at which sharding costs more:

{_dearer(claims.RIVALS, BANDWIDTHS, alike=True)}

The same with one request each way for the tree's clients:

{_dearer(("lambda_fl", "lifl"), (BURST, PUBLISHED), alike=False)}

A streamed tree has no time budget. Without one for the shards either, the worst ratio (*total*) of
shards of {Setting().memory_mb} MB to the streamed λ-FL is {unhurried:.2f}.
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
    return "\n".join(lines) or "- none."


def _ratio(verdict: claims.Verdict) -> str:
    return f"{verdict.value:.2f} {_mark(verdict)}"


def _mark(verdict: claims.Verdict) -> str:
    return "✓" if verdict.holds else "✗"


def _names() -> list[str]:
    return [bandwidth.name for bandwidth in BANDWIDTHS]


def _round_claims_section() -> str:
    rows = [
        (
            f"{claim.model.name}, ${1000 * claim.bound:.2f}",
            variant.label,
            *(_money(claim.verdict(variant, bandwidth)) for bandwidth in BANDWIDTHS),
        )
        for claim in claims.ROUND_CLAIMS
        for variant in VARIANTS
        if variant is not claims.DEFAULT and not variant.warm
        if variant.setting.memory_mb <= DEFAULT_MEMORY_MB
    ]
    return f"""
## Claims: a whole round, in other settings

*total*; arm64 unless a row says otherwise; M chosen by the planner for a minute, or without a time
budget (*no hurry*).

{_table(("claim", "tasks", *_names()), rows)}

{_what_decides()}
"""


def _ordinal(fraction: int) -> str:
    return {10: "tenth", 15: "fifteenth"}[fraction]


def _money(verdict: claims.Verdict) -> str:
    if math.isinf(verdict.value):
        return f"– {_mark(verdict)}"
    return f"${1000 * verdict.value:.2f} {_mark(verdict)}"


def _what_decides() -> str:
    rows = []
    for claim in claims.ROUND_CLAIMS:
        for bandwidth in (BURST, PUBLISHED):
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
    transitions = aws_prices.ROUND_TRANSITIONS + aws_prices.LEVEL_TRANSITIONS
    gpt2 = SYSTEMS["shards"](measurements.GPT2_LARGE.nbytes, claims.DEFAULT.setting)
    once = aws_prices.DOLLARS_PER_PUT + aws_prices.DOLLARS_PER_GET
    return f"""
## What decides

With tasks of the default memory:

{_table(titles, rows)}

For GPT-2 Large and the synthetic 5 GB, Lambda's part decides. A slower network needs more shards
for the same minute, and each shard costs reads.

For VGG-16 the other charges decide: ${1000 * fixed:.2f} at *burst*, with a bound of
${1000 * claims.ROUND_CLAIMS[0].bound:.2f}. State transitions alone cost
${1000 * transitions * aws_prices.DOLLARS_PER_TRANSITION:.2f}, events
${1000 * vgg16.bill.events:.2f} ([why they are not filtered](../docs/cost.md#events)) and cold
starts ${1000 * vgg16.bill.starts:.2f}.

The bounds come from published numbers with one PUT and one GET per client and object:
${1000 * measurements.CLIENTS * once:.2f} with λ-FL. gradshard's clients pay
${1000 * vgg16.bill.s3_clients:.2f} a round of VGG-16 and ${1000 * gpt2.bill.s3_clients:.2f} above
{transfers.SINGLE_PUT_BYTES // MIB} MiB. *Clients as the paper counts* gives them one request of
each.
"""


def _budget_section() -> str:
    models = (measurements.VGG16, measurements.SYNTHETIC_5GB)
    columns = [claims.budgets(model, BURST) for model in models]
    rows = [
        (f"{budgets[0].time_budget:g} s", *(_choice(budget.choice) for budget in budgets))
        for budgets in zip(*columns, strict=True)
    ]
    return f"""
## What a time budget costs

The cheapest memory and M within the budget; arm64, total, at *burst*.

{_table(("time budget", *(model.name for model in models)), rows)}
"""


def _defaults_section() -> str:
    blocks = [
        f"## Why {DEFAULT_MEMORY_MB} MB and a minute",
        f"""
Lambda gives a function a share of a processor by its memory. At *burst*, a function of
{limits.MIN_MEMORY_MB} MB adds more slowly than its network delivers, and one of
{DEFAULT_MEMORY_MB} MB waits for the network: it costs the same, within 2 %, and takes up to 30 %
less time. 256 MB cost up to a fifth more and save hardly any time. Half a minute instead of a
minute costs up to 5 % more.

If the network is as slow as the paper measured, {DEFAULT_MEMORY_MB} MB save no time and cost up to
a third more than {limits.MIN_MEMORY_MB} MB. Compare the seconds of your first rounds with the
projected ones (`gradshard show`), and deploy with `AggregatorMemory={limits.MIN_MEMORY_MB}` if they
are much longer. Within a minute, arm64, *total*:
""",
    ]
    sizes = (limits.MIN_MEMORY_MB, DEFAULT_MEMORY_MB, 256)
    rows = [
        (
            model.name,
            bandwidth.name,
            *(
                _dollars_and_seconds(
                    SYSTEMS["shards"](
                        model.nbytes, Setting(bandwidth=bandwidth, memory_mb=memory_mb)
                    )
                )
                for memory_mb in sizes
            ),
        )
        for model in measurements.MODELS
        for bandwidth in (BURST, PUBLISHED)
    ]
    blocks.append(_table(("model", "bandwidth", *(f"{size} MB" for size in sizes)), rows))
    return "\n\n".join(blocks)


def _dollars_and_seconds(choice: Estimate) -> str:
    return f"${1000 * choice.bill.total:.2f}: M={choice.shards}, {choice.seconds:.1f} s"


def _choice(choice: Estimate | None) -> str:
    if choice is None:
        return "–"
    return (
        f"${1000 * choice.bill.total:.2f}: M={choice.shards}, {choice.memory_mb} MB, "
        f"{choice.seconds:.1f} s"
    )


VGG16_INT8_BOUND: Final = 0.75e-3
"""The price that a round of VGG-16 with ``int8`` was meant to have."""


def _codecs_section() -> str:
    models = (measurements.VGG16, measurements.GPT2_LARGE)
    rows, bills = [], {}
    for model in models:
        for codec in (None, *CODECS):
            projected = _compressed_round(model, codec)
            bill = bills[model, codec] = projected.bill
            s3 = bill.s3_aggregators + bill.s3_clients
            amounts = (bill.lambda_, s3, bill.total - bill.lambda_ - s3, bill.total)
            cells = (str(projected.shards), f"{projected.seconds:.0f}")
            rows.append(
                (
                    model.name,
                    "F32" if codec is None else f"`{codec}`",
                    *cells,
                    *(f"{1000 * amount:.2f}" for amount in amounts),
                )
            )
    bill = bills[measurements.VGG16, "int8"]
    verdict = claims.Verdict(bill.total, VGG16_INT8_BOUND)
    fixed = bill.total - bill.lambda_ - bill.s3_aggregators
    published = " and ".join(f"${_published(model):.2f} for {model.name}" for model in models)
    left = VGG16_INT8_BOUND - fixed
    return f"""
## Savings by compression

All clients [compress their updates](compression.md); tasks of {DEFAULT_MEMORY_MB} MB, M for a
minute, *burst*. The result that clients download is F32. `topk` keeps 1 %.

{_table(("model", "codec", "M", "seconds", "Lambda", "S3 requests", "fees", "total"), rows)}

With `int8`, Lambda's part is half of F32's, since tasks still decode and add every element. The
fees stay. GradsSharding's authors measured {published}, without fees.

**A round of VGG-16 with `int8` was meant to cost at most ${1000 * VGG16_INT8_BOUND:.2f}:
{_money(verdict)}.** Its fees and its clients' requests are ${1000 * fixed:.2f} with any codec and
any M, which leaves ${1000 * left:.2f} for the tasks. Of these,
${1000 * bill.step_functions:.2f} are state transitions and the Express execution,
${1000 * bill.round_:.2f} the functions around the tasks and their requests,
${1000 * bill.s3_clients:.2f} the clients' requests, ${1000 * bill.events:.2f} events, and
${1000 * bill.starts:.2f} cold starts.
"""


def _compressed_round(model: measurements.Model, codec: str | None) -> Projection:
    spec = parse_spec({"clients": measurements.CLIENTS, "codecs": list(CODECS)})
    load = workload_of(spec, model.nbytes, measurements.CLIENTS, codec=codec)
    return planner.choose(load, claims.DEFAULT.setting.aggregator())[0]


def _published(model: measurements.Model) -> float:
    """Return what the paper measured for GradsSharding, in dollars per thousand rounds."""
    return next(
        cell.full_dollars
        for cell in measurements.MEASUREMENTS
        if (cell.model, cell.system) == (model, "gradssharding")
    )


def _fan_out_section() -> str:
    seconds = SYSTEMS["shards"](measurements.VGG16.nbytes, claims.DEFAULT.setting).task_seconds
    # An Express child's seconds cost what a second transition would.
    even = (aws_prices.DOLLARS_PER_TRANSITION - aws_prices.DOLLARS_PER_EXPRESS_REQUEST) / (
        aws_prices.EXPRESS_MEMORY_GB * aws_prices.DOLLARS_PER_EXPRESS_GB_SECOND
    )
    rows = [
        (way.label, *(f"{1000 * amount:.3f}" for amount in way.dollars))
        for way in claims.fan_outs(seconds)
    ]
    titles = ("", *(f"M={m}" for m in claims.FAN_OUT_SHARDS))
    return f"""
## What starting tasks costs

Step Functions charges for starting the tasks of a level. The table compares ways to start tasks of
{seconds:.0f} s; the round's {aws_prices.ROUND_TRANSITIONS} other transitions and
{aws_prices.LEVEL_TRANSITIONS} per level are extra.

{_table(titles, rows)}

A child of a Standard machine costs two transitions, and an Express child its seconds: per task,
that costs more for tasks of more than {even:.0f} s. gradshard therefore runs up to
{limits.INLINE_ITERATIONS} tasks in one Express child
([decision 5](decisions/0005-express-children-of-forty-tasks.md)).
"""


def _events_section() -> str:
    vgg16 = SYSTEMS["shards"](measurements.VGG16.nbytes, claims.DEFAULT.setting)
    count = pricing.events([vgg16.shards], measurements.CLIENTS)
    return f"""
## Events

S3 sends EventBridge an event of every change to the bucket's objects, and EventBridge charges
${1e6 * aws_prices.DOLLARS_PER_EVENT:.2f} per million
([AWS](https://aws.amazon.com/eventbridge/pricing/)). An object of a round has
{aws_prices.EVENTS_PER_EXPIRING_OBJECT} events: it is created, it expires, and its version is
deleted a day later. A round of VGG-16 has {count} events, ${1000 * vgg16.bill.events:.2f} per
thousand rounds. {measurements.CLIENTS} of them, the updates' arrivals, call a function.

**Why they are not filtered.** EventBridge gets all of a bucket's events or none
([AWS]({ALL_EVENTS})). S3's free, filtered notifications are no replacement:

- *Lambda*: if S3 cannot call the function, no queue keeps the event, and the round waits for its
  deadline unnoticed. Bucket and function would also name each other, which CloudFormation deploys
  only with a helper function or a fixed bucket name ([AWS]({CIRCLE})).
- *SQS*: Lambda polls an empty queue all the time and each request is charged, so waiting would cost
  something.
"""


def _assumptions_section() -> str:
    return f"""
## What the figures assume

- Bandwidth *published*: {PUBLISHED.bytes_per_second / MIB:g} MiB/s, the middle of the paper's 44 to
  57. *burst*: {speeds.SUSTAINED_BYTES_PER_SECOND // MIB} MiB/s after {speeds.BURST_BYTES // MIB}
  MiB at {speeds.BURST_BYTES_PER_SECOND // MIB} MiB/s (Bodner et al., arXiv 2501.07771). Both hold
  for every system, although the published ones read one object after another on one connection.
- {speeds.CPU_SECONDS_PER_GB} CPU-seconds per GB received and added, for every system; a processor
  is {limits.MB_PER_VCPU} MB.
- Each function of a round starts cold once. Lambda bills the INIT phase
  ([AWS]({INIT_BILLED})): {speeds.RUNTIME_INIT_SECONDS:g} s of the runtime (assumed), and
  {speeds.TASK_INIT_CPU_SECONDS:g} (tasks) or {speeds.SMALL_INIT_CPU_SECONDS:g} CPU-seconds of
  imports (measured), at the processor's share of the memory. *Seconds* are those of warm functions.
- Not counted: storage, logs, traces, deleting versions of models, clients' polling, and the
  deadline's schedule ($0.001 per thousand rounds).
- All tasks of a level start at once, so the account's concurrency is at least M. Updates' headers
  are within 64 KiB, and nothing is retried.
- Streamed trees may use Lambda's {measurements.TIMEOUT_SECONDS:.0f} s per task, but are charged as
  Express children, which end after five minutes. Beyond 5 GiB they are cut as S3 demands, which the
  planner rejects.
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
        (ROOT / name).write_text(text, encoding="utf-8")
        print(ROOT / name)
