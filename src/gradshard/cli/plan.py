"""``gradshard plan``: project the time and cost of a round that does not exist yet."""

from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console
from rich.table import Table

from gradshard.cli.option_types import SizeType, WholeNumberType
from gradshard.cli.options import (
    connect,
    debuggable,
    json_option,
    option,
    verbose_option,
    where_options,
)
from gradshard.cli.options_from_spec import round_options
from gradshard.cli.output import cell, dollars, print_json
from gradshard.client.keeper_cost import KeeperCost
from gradshard.deployment.defaults import STACK
from gradshard.utils.text import format_size, pluralize
from gradshard_core.aggregation.topologies import TOPOLOGIES
from gradshard_core.costs import aws_prices, large_round_limits, memory_projection
from gradshard_core.costs.lambda_config import DEFAULT_MEMORY_MB, MEMORIES_MB, LambdaConfig
from gradshard_core.costs.round_projection import Projection
from gradshard_core.costs.workload import Workload
from gradshard_core.costs.workload_from_spec import workload_of
from gradshard_core.formats.codecs.registry import CODECS
from gradshard_core.limits import aws_limits
from gradshard_core.limits.own_limits import MAX_CLIENTS
from gradshard_core.planning import shard_count
from gradshard_core.specs.masking_options import check_unused
from gradshard_core.specs.round_spec import RoundSpec
from gradshard_core.specs.round_spec_checks import parse_spec
from gradshard_core.units import MIB

if TYPE_CHECKING:
    from gradshard.client.stack import Stack

DEFAULT_ARCHITECTURE: Final = "arm64"

MAX_TIME_RATIO: Final = 0.85
"""A row of the table takes at most this fraction of the time of the one below it."""

ROWS: Final = 5
"""Rows of the table without --all."""


@click.command()
@click.option(
    "--size",
    type=SizeType(),
    required=True,
    metavar="SIZE",
    help="Size of one update, for example 512MB, 1GiB or 5e9.",
)
@click.option(
    "--clients",
    type=WholeNumberType(1, MAX_CLIENTS),
    required=True,
    metavar="N",
    help="Number of clients.",
)
@round_options(
    "rule",
    "measure_one_in",
    "dp",
    "topology",
    "fan_in",
    "order",
    "shards",
    "time_budget",
    "server_optimizer",
)
@option(
    "--memory",
    type=WholeNumberType(aws_limits.MIN_MEMORY_MB, aws_limits.MAX_MEMORY_MB),
    metavar="MB",
    help="Memory of the function that runs a task, in MB.",
    default_text=f"that of the stack, else {DEFAULT_MEMORY_MB}",
)
@option(
    "--architecture",
    type=click.Choice(sorted(aws_prices.DOLLARS_PER_GB_SECOND)),
    help="Processor of the functions.",
    default_text=f"that of the stack, else {DEFAULT_ARCHITECTURE}",
)
@option(
    "--codec",
    type=click.Choice(list(CODECS)),
    help="Plan for updates that are compressed with this codec. --size is the size without "
    "compression.",
    default_text="no compression",
)
@option(
    "--ring",
    type=click.Choice(["32", "64"]),
    help="Plan for masked updates whose elements have this number of bits. --size is the size of "
    "the update in F32, before it is masked.",
    default_text="updates are not masked",
)
@click.option(
    "--all", "show_all", is_flag=True, help=f"Show all rows of the table instead of {ROWS}."
)
@option(
    "--stack",
    metavar="NAME",
    help="Plan for the functions of this CloudFormation stack.",
    default_text="none; no request is sent to AWS",
)
@where_options
@json_option
@verbose_option
@debuggable
def plan(
    size: int,
    clients: int,
    memory: int | None,
    architecture: str | None,
    codec: str | None,
    ring: str | None,
    stack: str | None,
    region: str | None,
    profile: str | None,
    local: bool,
    port: int,
    show_all: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Show the time and cost of a round before you open it.

    The table has the combinations of shards and memory that no other beats in both time and cost.
    Without --stack and --local, the command sends no requests.
    """
    spec = parse_spec({"clients": clients, **options})
    name, _ = spec.levels(clients)
    if codec is not None and ring is not None:
        raise click.UsageError("Masked updates are not compressed: give --codec or --ring.")
    if ring is not None:
        check_unused({name for name, value in options.items() if value is not None})
    ring_bits = None if ring is None else int(ring)
    load = workload_of(spec, size, clients, codec=codec, ring_bits=ring_bits)
    outputs = None
    if stack or local:
        outputs = connect(
            stack or STACK, region=region, profile=profile, local=local, port=port
        ).stack
    aggregator = _aggregator_of(outputs, memory, architecture)
    choice, notes = shard_count.choose(
        load, aggregator, shards=spec.shards, time_budget=spec.time_budget
    )
    frontier = shard_count.frontier(
        load,
        aggregator,
        memories=sorted({*MEMORIES_MB, aggregator.memory_mb}),
        shards=spec.shards,
    )
    keeper = _keeper_of(spec, size, ring_bits, aggregator)
    notes = [*notes, *_notes(spec, load, choice, keeper)]
    if as_json:
        print_json(
            {
                "nbytes": size,
                "sent_bytes": round(load.update_bytes),
                "clients": clients,
                "architecture": aggregator.architecture,
                "topology": name,
                "levels": load.levels,
                "choice": choice.to_json(),
                "notes": notes,
                **({"keeper": keeper._asdict()} if keeper else {}),
                "frontier": [projection.to_json() for projection in frontier],
            }
        )
        return
    updates = f"{pluralize(clients, 'update')} of {format_size(round(load.update_bytes))}"
    answer = _answer(updates, aggregator, name, choice)
    _print([answer, *notes], frontier, choice, show_all=show_all)


def _keeper_of(
    spec: RoundSpec, size: int, ring_bits: int | None, aggregator: LambdaConfig
) -> KeeperCost | None:
    """Return what the keeper of a masked round costs; None if updates are not masked."""
    if ring_bits is None:
        return None
    price = aws_prices.DOLLARS_PER_GB_SECOND[aggregator.architecture]
    return KeeperCost.of(size, spec.expected, ring_bits, price, has_noise=spec.dp is not None)


def _notes(
    spec: RoundSpec, load: Workload, choice: Projection, keeper: KeeperCost | None
) -> list[str]:
    """Return what the planner's choice leaves open."""
    clients, most_tasks = spec.expected, choice.shards * max(map(len, load.levels))
    notes = [*large_round_limits.notes(clients, most_tasks)]
    if keeper is not None:
        notes.append(_keeper_note(keeper))
    if spec.compares_layers:
        notes.append(_layers_note(clients))
    return notes


def _layers_note(clients: int) -> str:
    """Return what a plan leaves out of a round that compares partial updates."""
    each = memory_projection.compared_layer_bytes(clients)
    return (
        f"the memory is that of one layer, because the plan does not know the layers: each further "
        f"one takes up to {each / MIB:.3g} MB of a task, and four times as much in F64"
    )


def _aggregator_of(
    stack: "Stack | None", memory: int | None, architecture: str | None
) -> LambdaConfig:
    """Return what the options say of the function; the rest is the stack's, or the default."""
    if stack is not None:
        memory = memory or int(stack.output("AggregatorMemory"))
        architecture = architecture or stack.output("Architecture")
    return LambdaConfig(memory or DEFAULT_MEMORY_MB, architecture or DEFAULT_ARCHITECTURE)


def _answer(updates: str, aggregator: LambdaConfig, topology: str, choice: Projection) -> str:
    """Return the line that says what the planner takes."""
    return (
        f"{updates} on {aggregator.architecture}: "
        f"at {aggregator.memory_mb} MB the planner takes M={choice.shards} "
        f"({TOPOLOGIES[topology].title}, {pluralize(choice.tasks, 'task')}), "
        f"{choice.seconds:.1f} s, {dollars(choice.total_dollars)}"
    )


def _keeper_note(keeper: KeeperCost) -> str:
    noise = " and noise" if keeper.noise_cpu_seconds else ""
    return (
        f"the mask keeper makes {format_size(keeper.streamed_bytes)} of key streams{noise} in "
        f"{keeper.cpu_seconds:.1f} s of a processor, {dollars(keeper.dollars)}"
    )


def _print(
    lines: list[str], frontier: list[Projection], choice: Projection, *, show_all: bool
) -> None:
    """Print lines, then the table of the combinations."""
    console = Console()
    for line in lines:
        console.print(cell(line))
    rows = _thin_out(frontier, choice)
    shown = rows if show_all else _few(rows, choice)
    console.print(_table(shown, choice))
    if len(shown) < len(rows):
        console.print(cell(f"{len(rows) - len(shown)} more with --all"))


def _thin_out(frontier: list[Projection], choice: Projection) -> list[Projection]:
    """Return the choice and the rows of the frontier that differ enough from their neighbours."""
    kept: list[Projection] = []
    for projection in reversed(frontier):
        if not kept or projection.seconds <= MAX_TIME_RATIO * kept[-1].seconds:
            kept.append(projection)
    fastest = frontier[:1]
    rows = {(p.memory_mb, p.shards): p for p in [*kept, *fastest, choice]}
    return sorted(rows.values(), key=lambda p: (p.seconds, p.total_dollars))


def _few(rows: list[Projection], choice: Projection) -> list[Projection]:
    """Return the choice, the first and the last row, and others at even distances between."""
    if len(rows) <= ROWS:
        return rows
    last, chosen = len(rows) - 1, rows.index(choice)
    spread = [round(last * n / (ROWS - 1)) for n in range(ROWS)]
    if chosen not in spread:
        between = spread[1:-1]
        spread[spread.index(min(between, key=lambda row: abs(row - chosen)))] = chosen
    return [rows[row] for row in sorted(spread)]


def _table(rows: list[Projection], choice: Projection) -> Table:
    table = Table()
    for title in ("", "M", "memory MB", "used MB", "task s", "round s", "$ per 1000"):
        table.add_column(title, justify="right")
    for row in rows:
        chosen = (row.memory_mb, row.shards) == (choice.memory_mb, choice.shards)
        table.add_row(
            "→" if chosen else "",
            str(row.shards),
            str(row.memory_mb),
            f"{row.needed_mb:.0f}",
            f"{row.task_seconds:.1f}",
            f"{row.seconds:.1f}",
            f"{1000 * row.total_dollars:.2f}",
            style="bold" if chosen else "",
        )
    return table
