"""The sections of benchmarks/published.md."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from benchmarks.cost_text import PAPER, format_table, mark_of, money
from gradshard.cli.papers_cost import describe, reproduction
from gradshard.papers import SYSTEMS, claims, published_figures, published_systems
from gradshard.papers.claims import BANDWIDTHS, VARIANTS
from gradshard.papers.estimate import PUBLISHED, TITLES, Estimate, Setting
from gradshard.utils.text import format_size
from gradshard_core.costs import assumed_speeds, aws_prices
from gradshard_core.costs.bandwidth_model import BURST, Bandwidth
from gradshard_core.costs.lambda_config import DEFAULT_MEMORY_MB
from gradshard_core.limits import aws_limits
from gradshard_core.s3 import client_transfers
from gradshard_core.units import MIB

COLUMNS: Final[tuple[claims.Column, ...]] = ("full", "total")

COUNTED: Final = {"full": "as the paper counts", "total": "everything counted"}


def sections() -> tuple[str, ...]:
    """Return the sections in their order."""
    return (
        _comparison_head(),
        _glance_section(),
        _systems_section(),
        _crossover_section(),
        _round_claims_section(),
        _trees_section(),
        _published_section(),
    )


def _comparison_head() -> str:
    return f"""
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
and LIFL with gradshard's tasks, which hold blocks instead of whole updates. They may use Lambda's
{published_figures.TIMEOUT_SECONDS:.0f} s per task, but are charged as Express children, which end
after five minutes. Beyond 5 GiB they are cut as S3 demands, which the planner rejects.

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
            *(money(claim.verdict(variant, bandwidth)) for bandwidth in BANDWIDTHS),
        )
        for claim in claims.ROUND_CLAIMS
    ]
    return f"""
## The claims

Tasks have {variant.label}. Ratios are the worst at any size, on x86-64, with the same clients'
requests for both systems. Rounds are on arm64, everything counted.

{format_table(("claim", *_names()), rows)}
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
    table = format_table(
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
${_from_wall(published_figures.RESNET18):.3f} and ${_from_wall(published_figures.VGG16):.2f} for
GradsSharding's *agg* of ResNet-18 and VGG-16, because functions end at different times.

*Modelled*: seconds from {PUBLISHED.bytes_per_second / MIB:g} MiB/s, reading and writing,
{1000 * PUBLISHED.latency_seconds:g} ms a request (chosen to fit these cells) and
{assumed_speeds.TASK_START_SECONDS:g} s a start; memory from ⌈3·input + 450⌉. ResNet-18 was
measured under an earlier rule, ⌈2·input + 450⌉. The model's functions all take equally long.
"""


def _from_wall(model: published_figures.Model) -> float:
    cell = published_figures.measured(model, "gradssharding")
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
        for model in published_figures.MODELS
        for system in SYSTEMS
        if (estimate := claims.estimate(system, model.nbytes, PAPER))
    ]
    titles = (
        *("model", "system", "M", "MB", "s", "Lambda", "S3 aggregators", "S3 clients", "full"),
        *("fees", "total"),
    )
    blocks.append(format_table(titles, rows))
    most = aws_limits.MAX_MEMORY_MB - published_systems.WHOLE_OVERHEAD_MB
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

{format_table(("systems", "counted", "cheaper below", "size", "cheaper above"), rows)}

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
    table = format_table(("sharding over", "column", *_names()), rows)
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
    return f"{verdict.value:.2f} {mark_of(verdict)}"


def _names() -> list[str]:
    return [bandwidth.name for bandwidth in BANDWIDTHS]


def _round_claims_section() -> str:
    rows = [
        (
            f"{claim.model.name}, ${1000 * claim.bound:.2f}",
            variant.label,
            *(money(claim.verdict(variant, bandwidth)) for bandwidth in BANDWIDTHS),
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

{format_table(("claim", "tasks", *_names()), rows)}

{_what_decides()}
"""


def _ordinal(fraction: int) -> str:
    return {10: "tenth", 15: "fifteenth"}[fraction]


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
                    f"{1000 * claim.bound:.2f} {mark_of(claims.Verdict(bill.total, claim.bound))}",
                )
            )
    titles = (
        *("model", "bandwidth", "M", "Lambda", "S3 aggregators", "S3 clients", "requests"),
        *("Step Functions", "round", "events", "cold starts", "all but Lambda", "total", "bound"),
    )
    vgg16 = SYSTEMS["shards"](published_figures.VGG16.nbytes, claims.DEFAULT.setting)
    fixed = vgg16.bill.total - vgg16.bill.lambda_
    transitions = aws_prices.ROUND_TRANSITIONS + aws_prices.LEVEL_TRANSITIONS
    gpt2 = SYSTEMS["shards"](published_figures.GPT2_LARGE.nbytes, claims.DEFAULT.setting)
    once = aws_prices.DOLLARS_PER_PUT + aws_prices.DOLLARS_PER_GET
    return f"""
## What decides

With tasks of the default memory:

{format_table(titles, rows)}

For GPT-2 Large and the synthetic 5 GB, Lambda's part decides. A slower network needs more shards
for the same minute, and each shard costs reads.

For VGG-16 the other charges decide: ${1000 * fixed:.2f} at *burst*, with a bound of
${1000 * claims.ROUND_CLAIMS[0].bound:.2f}. State transitions alone cost
${1000 * transitions * aws_prices.DOLLARS_PER_TRANSITION:.2f}, messages
${1000 * vgg16.bill.events:.2f} ([who sends them](../docs/cost.md#what-the-fees-are)) and cold
starts ${1000 * vgg16.bill.starts:.2f}.

The bounds come from published numbers with one PUT and one GET per client and object:
${1000 * published_figures.CLIENTS * once:.2f} with λ-FL. gradshard's clients pay
${1000 * vgg16.bill.s3_clients:.2f} a round of VGG-16 and ${1000 * gpt2.bill.s3_clients:.2f} above
{client_transfers.SINGLE_PUT_BYTES // MIB} MiB. *Clients as the paper counts* gives them one request
of each.
"""


def _beside(value: float, reference: float, digits: int) -> str:
    return f"{value:.4g} ({value / reference - 1:+.{digits}%})"
