"""The sections of docs/cost.md, and its plots."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from benchmarks.cost_plots import Plot, Series
from benchmarks.cost_text import PAPER, format_table
from gradshard.papers import SYSTEMS, claims, published_figures
from gradshard.papers.estimate import PUBLISHED, TITLES, Estimate, Setting
from gradshard.utils.text import format_size
from gradshard_core.costs import assumed_speeds, aws_prices, request_counts, round_cost
from gradshard_core.costs.bandwidth_model import BURST
from gradshard_core.costs.lambda_config import DEFAULT_MEMORY_MB
from gradshard_core.costs.round_projection import Projection
from gradshard_core.costs.workload_from_spec import workload_of
from gradshard_core.formats.codecs.registry import CODECS
from gradshard_core.limits import aws_limits
from gradshard_core.limits.aws_limits import MB_PER_VCPU
from gradshard_core.planning import shard_count
from gradshard_core.s3 import client_transfers
from gradshard_core.specs.round_spec_checks import parse_spec
from gradshard_core.units import MIB

SIDE_BY_SIDE: Final = ("shards", "gradssharding", "lambda_fl", "lifl")


def sections() -> tuple[str, ...]:
    """Return the sections in their order."""
    return (
        _head(),
        _prices_section(),
        _choices_section(),
        _budget_section(),
        _defaults_section(),
        _codecs_section(),
        _fees_section(),
        _assumptions_section(),
    )


def _head() -> str:
    return f"""
<!-- Written by `python -m benchmarks.cost_report`; change that, not this. -->

# What a round costs

See what a round costs, and which settings change that. `gradshard plan` computes the price of
your rounds. All figures are computed from AWS's prices in us-east-1; nothing was measured on AWS.
[Other systems](../benchmarks/published.md) have a page of their own.

Dollars are per thousand rounds of {published_figures.CLIENTS} clients, given by id.
{_unnamed()}
"""


def _unnamed() -> str:
    """Say what a round pays that knows only the number of its clients."""
    named, counted = (
        request_counts.count_requests(
            [1], published_figures.CLIENTS, lists=request_counts.Lists(is_named=is_named)
        )
        for is_named in (True, False)
    )
    more = round_cost.US_EAST_1.s3(counted) - round_cost.US_EAST_1.s3(named)
    return f"Rounds that know only the number of clients cost ${1000 * more:.2f} more."


def _prices_section() -> str:
    rows = []
    for model in published_figures.MODELS:
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

{format_table(titles, rows)}

- *Lambda*: the tasks' GB-seconds.
- *S3 requests*: those of tasks and clients.
- *Fees*: [all else](#what-the-fees-are).
- *On a slow network*: the total with the [bandwidth](#what-the-figures-assume) *published*. The
  other columns are with *burst*.

![Dollars against size](cost-size.svg)

![Seconds against M](cost-shards.svg)
"""


def _choices_section() -> str:
    return f"""
## What you can do about it

- Take [more time](#what-a-time-budget-costs): `--time-budget`.
- Use arm64, the default: it is {100 * _discount():.0f} % cheaper per second than x86-64.
- Choose [tasks' memory](#why-192-mb-and-a-minute): `AggregatorMemory`.
- Send less: [compress](#savings-by-compression), or train in BF16. An update over
  {client_transfers.SINGLE_PUT_BYTES // MIB} MiB is sent in parts, and each part is a request.
- Keep objects for fewer days: `RetentionDays`.
"""


def _discount() -> float:
    prices = aws_prices.DOLLARS_PER_GB_SECOND
    return 1 - prices["arm64"] / prices["x86_64"]


SHOWN_BUDGETS: Final = (120.0, 60.0, 30.0, 15.0, 5.0)


def _budget_section() -> str:
    model = published_figures.SYNTHETIC_5GB
    rows = [
        (f"{budget.time_budget:g} s", *_choice(budget.choice))
        for budget in claims.budgets(model, BURST)
        if budget.time_budget in SHOWN_BUDGETS
    ]
    return f"""
## What a time budget costs

The total for {model.name} with the cheapest memory and M within the budget; arm64, *burst*:

{format_table(("time budget", "total", "M", "MB", "seconds"), rows)}
"""


def _defaults_section() -> str:
    small, default = Setting(memory_mb=aws_limits.MIN_MEMORY_MB), Setting()
    half = Setting(time_budget=30.0)
    slow = [replace(setting, bandwidth=PUBLISHED) for setting in (small, default)]
    dearest = [
        1000 * SYSTEMS["shards"](published_figures.SYNTHETIC_5GB.nbytes, setting).bill.total
        for setting in slow
    ]
    return f"""
## Why {DEFAULT_MEMORY_MB} MB and a minute

For the models above:

- With *burst*, tasks of {DEFAULT_MEMORY_MB} MB instead of {small.memory_mb} MB change the total
  by about {_most(_dollars, small, default):.0f} %, and save up to
  {_most(_seconds, small, default):.0f} % of the time. Rounds of half a minute cost up to
  {_most(_dollars, default, half):.0f} % more.
- On a slow network, {DEFAULT_MEMORY_MB} MB save no time and cost up to
  {_most(_dollars, *slow):.0f} % more: for 5 GB ${dearest[1]:.2f} instead of ${dearest[0]:.2f}. If
  your first rounds take much longer than projected (`gradshard show`), deploy with
  `AggregatorMemory={aws_limits.MIN_MEMORY_MB}`.
"""


def _most(value: Callable[[Estimate], float], before: Setting, after: Setting) -> float:
    """Return by how much a value changes at most from one setting to another, in percent."""
    pairs = (
        [value(SYSTEMS["shards"](model.nbytes, setting)) for setting in (before, after)]
        for model in published_figures.MODELS
    )
    return max(100 * abs(new / old - 1) for old, new in pairs)


def _dollars(estimate: Estimate) -> float:
    return estimate.bill.total


def _seconds(estimate: Estimate) -> float:
    return estimate.seconds


def _dollars_and_seconds(choice: Estimate | Projection) -> str:
    return f"${1000 * choice.bill.total:.2f}, {choice.seconds:.0f} s"


def _choice(choice: Estimate | None) -> tuple[str, str, str, str]:
    if choice is None:
        return ("–", "–", "–", "–")
    return (
        f"{1000 * choice.bill.total:.2f}",
        str(choice.shards),
        str(choice.memory_mb),
        f"{choice.seconds:.0f}",
    )


def _fees_section() -> str:
    vgg16 = SYSTEMS["shards"](published_figures.VGG16.nbytes, claims.DEFAULT.setting)
    bill = vgg16.bill
    ways = claims.fan_outs(vgg16.task_seconds)
    plain, deployed = (1000 * ways[place].dollars[-1] for place in (0, claims.AS_DEPLOYED))
    return f"""
## What the fees are

With the dollars of a round of {published_figures.VGG16.name}:

- **Step Functions**, {1000 * bill.step_functions:.2f}: {aws_prices.ROUND_TRANSITIONS} transitions
  of the round, {aws_prices.LEVEL_TRANSITIONS} for each level, and an Express execution for each
  {aws_limits.INLINE_ITERATIONS} tasks. Starting {claims.FAN_OUT_SHARDS[-1]} tasks of
  {vgg16.task_seconds:.0f} s costs ${deployed:.2f}; with a Standard execution for each, it
  would be ${plain:.2f} ([decision 5](decisions/0005-express-children-of-forty-tasks.md)).
- **Functions around the tasks**, {1000 * (bill.round_ + bill.requests):.2f}: their seconds, their
  requests to S3, and Lambda's fee per invocation.
- **Cold starts**, {1000 * bill.starts:.2f}.
- **Notifications**, {1000 * bill.events:.2f}: {round_cost.notifications(published_figures.CLIENTS)}
  messages of S3 to an SNS topic, and one event of EventBridge.
"""


def _codecs_section() -> str:
    models = (published_figures.VGG16, published_figures.GPT2_LARGE)
    rows = []
    for codec in (None, *(name for name in CODECS if name != "fp8")):
        rounds = [_compressed_round(model, codec) for model in models]
        rows.append(("F32" if codec is None else f"`{codec}`", *map(_dollars_and_seconds, rounds)))
    return f"""
## Savings by compression

All clients [compress their updates](compression.md); tasks of {DEFAULT_MEMORY_MB} MB, M for a
minute, *burst*. `fp8` costs what `int8` costs, `topk` keeps 1 %, and clients download F32.

{format_table(("codec", *(model.name for model in models)), rows)}
"""


def _compressed_round(model: published_figures.Model, codec: str | None) -> Projection:
    names = [f"client-{number}" for number in range(published_figures.CLIENTS)]
    spec = parse_spec({"clients": names, "codecs": list(CODECS)})
    load = workload_of(spec, model.nbytes, published_figures.CLIENTS, codec=codec)
    return shard_count.choose(load, claims.DEFAULT.setting.aggregator())[0]


def _assumptions_section() -> str:
    return f"""
## What the figures assume

- Bandwidth of a function: with *burst*, as the planner assumes,
  {assumed_speeds.SUSTAINED_BYTES_PER_SECOND // MIB} MiB/s after
  {assumed_speeds.BURST_BYTES // MIB} MiB at {assumed_speeds.BURST_BYTES_PER_SECOND // MIB} MiB/s
  (Bodner et al., arXiv 2501.07771); with *published*,
  {PUBLISHED.bytes_per_second / MIB:g} MiB/s, the middle of what the paper of
  [GradsSharding](../benchmarks/published.md) measured.
- {assumed_speeds.CPU_SECONDS_PER_GB} CPU-seconds per GB received and added; a function of
  {MB_PER_VCPU} MB has one processor. The same is assumed for the other systems.
- Each function of a round starts cold once, which Lambda bills. *Seconds* are those of warm
  functions.
- Not counted: data transfer out of AWS, storage, logs, traces, deleting versions of models,
  clients' polling, and the deadline's schedule ($0.001 per thousand rounds).
- One warm function handles all arrivals of a round. All tasks of a level start at once, so the
  account's concurrency is at least M. Updates' headers are within 64 KiB, and nothing is retried.
"""


def size_plot() -> Plot:
    """Plot the cost of a round by the size of its updates."""
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
                for cell in published_figures.MEASUREMENTS
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


def shards_plot() -> Plot:
    """Plot the time of a round by its number of shards."""
    model = published_figures.VGG16
    shard_counts = [*range(1, 17), *range(18, 101, 2)]
    ours = Setting(memory_mb=MB_PER_VCPU)

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
                list(published_figures.SHARD_SWEEP_SECONDS.items()),
            ),
            Series("shards, published MB/s", 0, line("shards", replace(ours, bandwidth=PUBLISHED))),
            Series("shards, burst", 0, line("shards", ours), dashed=True),
        ],
    )
