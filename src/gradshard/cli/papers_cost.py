"""``gradshard papers cost``: the cost of a round with gradshard and the published systems."""

import math
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any, Final

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from gradshard.cli.option_types import DurationType, SizeType, WholeNumberType
from gradshard.cli.options import debuggable, json_option, option
from gradshard.cli.output import WIDE, cell, print_json
from gradshard.cli.plan import DEFAULT_ARCHITECTURE
from gradshard.papers import SYSTEMS, claims, published_figures, published_systems
from gradshard.papers.claims import Comparison
from gradshard.papers.estimate import PUBLISHED, TITLES, Estimate, Setting
from gradshard.utils.text import format_size
from gradshard_core.aggregation.topologies import MAX_FAN_IN
from gradshard_core.costs import aws_prices
from gradshard_core.costs.bandwidth_model import BURST, Bandwidth
from gradshard_core.costs.lambda_config import DEFAULT_MEMORY_MB
from gradshard_core.costs.round_cost import Prices
from gradshard_core.errors import PlanError, SpecError
from gradshard_core.limits import aws_limits
from gradshard_core.limits.own_limits import MAX_CLIENTS

SYSTEM: Final = click.Choice(list(SYSTEMS))

PRICES: Final = tuple(field.name for field in fields(Prices))


class Price(click.ParamType):
    """A price by its name, such as put_per_1000=0.0054."""

    name = "price"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        """Return name and dollars."""
        if isinstance(value, tuple):
            return value
        name, _, amount = str(value).partition("=")
        if name not in PRICES:
            self.fail(f"{value!r} names no price; there are {', '.join(PRICES)}.", param, ctx)
        try:
            dollars = float(amount)
        except ValueError:
            dollars = math.nan
        if not 0 <= dollars < math.inf:
            self.fail(f"{amount!r} of {value!r} is not a number of dollars.", param, ctx)
        return name, dollars


class Speed(click.ParamType):
    """A bandwidth: published, burst, or a number of MB/s."""

    name = "bandwidth"

    def convert(
        self, value: str | Bandwidth, param: click.Parameter | None, ctx: click.Context | None
    ) -> Bandwidth:
        """Return the bandwidth."""
        if isinstance(value, Bandwidth):
            return value
        for known in (BURST, PUBLISHED):
            if value == known.name:
                return known
        try:
            rate = float(value)
        except ValueError:
            rate = math.nan
        if not 0.1 <= rate <= 1e5:
            self.fail(
                f"{value!r} is not 'published', 'burst', or a number of MB/s from 0.1 to 100000.",
                param,
                ctx,
            )
        return Bandwidth(f"{rate:g} MB/s", rate * 1e6)


@click.command()
@click.option(
    "--size",
    type=SizeType(),
    metavar="SIZE",
    help="Compare the systems for updates of this size, for example 512MB, 1GiB or 5e9.",
)
@click.option(
    "--published",
    "reproduce",
    is_flag=True,
    help="Show the numbers of the paper beside those that the cost model computes.",
)
@click.option(
    "--crossover",
    type=(SYSTEM, SYSTEM),
    metavar="A B",
    help="Find the sizes of updates at which the cheaper of the systems A and B changes.",
)
@click.option(
    "--clients",
    type=WholeNumberType(1, MAX_CLIENTS),
    default=published_figures.CLIENTS,
    show_default=True,
    metavar="N",
    help="Number of clients.",
)
@option(
    "--system",
    "systems",
    type=SYSTEM,
    multiple=True,
    help="Show only this system. Repeat the option for several.",
    default_text="all systems",
)
@option(
    "--shards",
    type=WholeNumberType(1, aws_limits.MAX_PARTS),
    metavar="N",
    help="Number of byte ranges into which sharded systems cut the updates.",
    default_text="chosen by each system",
)
@option(
    "--time-budget",
    type=DurationType(),
    metavar="DURATION",
    help="Choose the number of gradshard's shards so that the aggregation takes at most this time, "
    "for example 90s.",
    default_text="a minute, where that is possible",
)
@click.option(
    "--memory",
    type=WholeNumberType(aws_limits.MIN_MEMORY_MB, aws_limits.MAX_MEMORY_MB),
    default=DEFAULT_MEMORY_MB,
    show_default=True,
    metavar="MB",
    help="Memory of gradshard's functions, in MB. It does not change the published systems.",
)
@click.option(
    "--architecture",
    type=click.Choice(sorted(aws_prices.DOLLARS_PER_GB_SECOND)),
    default=DEFAULT_ARCHITECTURE,
    show_default=True,
    help="Processor of the functions.",
)
@click.option(
    "--bandwidth",
    type=Speed(),
    default=BURST.name,
    show_default=True,
    metavar="published|burst|NUMBER",
    help="Network bandwidth of every function: published, as the paper measured it; burst, as the "
    "planner assumes it; or a number in MB/s.",
)
@option(
    "--price",
    "prices",
    type=Price(),
    multiple=True,
    metavar="NAME=DOLLARS",
    help=f"Use this price, for example of another region. Repeat the option for several. Names: "
    f"{', '.join(PRICES)}.",
    default_text="the prices of us-east-1",
)
@json_option
@debuggable
def cost(
    size: int | None,
    reproduce: bool,
    crossover: tuple[str, str] | None,
    systems: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Compare the cost of a round with published systems.

    Give one of --size, --published and --crossover. The command computes costs from a model and
    does not ask AWS.
    """
    if sum((size is not None, reproduce, crossover is not None)) != 1:
        raise click.UsageError("Give one of --size, --published and --crossover.")
    setting = _setting(**options)
    if reproduce:
        _show_published(as_json)
    elif crossover:
        _show_crossover(*crossover, setting, as_json)
    else:
        assert size is not None  # noqa: S101 - one of the three
        _show_systems(size, systems or tuple(SYSTEMS), setting, as_json)


def _setting(
    *,
    clients: int,
    shards: int | None,
    time_budget: float | None,
    memory: int,
    architecture: str,
    bandwidth: Bandwidth,
    prices: Sequence[tuple[str, float]],
) -> Setting:
    if shards is not None and time_budget is not None:
        raise SpecError("give --shards or --time-budget, not both: one decides the other")
    if time_budget is not None and time_budget <= 0:
        raise SpecError(f"--time-budget is {time_budget:g}, not a number of seconds above zero")
    return Setting(
        clients,
        bandwidth,
        architecture,
        memory,
        shards,
        time_budget,
        replace(Prices(), **dict(prices)),
    )


def _show_systems(size: int, systems: tuple[str, ...], setting: Setting, as_json: bool) -> None:
    estimates: list[Estimate] = []
    rejections: dict[str, str] = {}
    for system in systems:
        try:
            estimates.append(SYSTEMS[system](size, setting))
        except PlanError as error:
            rejections[system] = str(error)
    if not estimates:
        raise PlanError("; ".join(rejections.values()))
    if as_json:
        print_json(
            {
                "nbytes": size,
                "clients": setting.clients,
                "architecture": setting.architecture,
                "bandwidth": setting.bandwidth.name,
                "prices": asdict(setting.prices),
                "systems": [estimate.to_json() for estimate in estimates],
                "rejected": rejections,
            }
        )
        return
    console = Console()
    console.print(_systems_table(estimates))
    for rejection in rejections.values():
        console.print(cell(rejection))
    console.print(
        cell(
            f"dollars per 1000 rounds; {setting.clients} updates of {format_size(size)} on "
            f"{setting.architecture}, bandwidth {setting.bandwidth.name}. full is what the paper "
            "counts; clients' requests are as each system's clients make them"
        )
    )
    if setting.clients > MAX_FAN_IN:
        console.print(f"beyond {MAX_FAN_IN} clients gradshard's shards are those of a grid")


def _systems_table(estimates: list[Estimate]) -> Table:
    """Return a column a system, which fits a terminal of 80."""
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("")
    for e in estimates:
        table.add_column(TITLES[e.system].replace(", ", "\n"), justify="right")
    for title, figure in (
        ("M", lambda e: str(e.shards)),
        ("tasks", lambda e: str(e.tasks)),
        ("memory MB", lambda e: str(e.memory_mb)),
        ("seconds", lambda e: f"{e.seconds:.1f}"),
        ("$ Lambda", lambda e: _thousand(e.bill.lambda_)),
        ("$ S3, tasks", lambda e: _thousand(e.bill.s3_aggregators)),
        ("$ S3, clients", lambda e: _thousand(e.bill.s3_clients)),
        ("$ full", lambda e: _thousand(e.bill.full)),
        ("$ invocations", lambda e: _thousand(e.bill.requests)),
        ("$ workflow", lambda e: _thousand(e.bill.step_functions)),
        ("$ around", lambda e: _thousand(e.bill.round_)),
        ("$ events", lambda e: _thousand(e.bill.events)),
        ("$ cold starts", lambda e: _thousand(e.bill.starts)),
        ("$ total", lambda e: _thousand(e.bill.total)),
    ):
        table.add_row(title, *map(figure, estimates), end_section=title in ("seconds", "$ full"))
    return table


def _thousand(dollars: float) -> str:
    return f"{1000 * dollars:.2f}"


def reproduction() -> list[dict[str, Any]]:
    """Return the published cells beside what the model makes of them, dollars per 1000 rounds."""
    rows = []
    for cell_ in published_figures.MEASUREMENTS:
        bill = published_systems.measured_bill(cell_)
        model = published_systems.modelled(cell_)
        rows.append(
            {
                "model": cell_.model.name,
                "system": cell_.system,
                "published": {
                    "seconds": cell_.wall_seconds,
                    "memory_mb": cell_.memory_mb,
                    "agg": cell_.aggregators_dollars,
                    "full": cell_.full_dollars,
                },
                "from_published_seconds": {
                    "agg": 1000 * bill.aggregators,
                    "full": 1000 * bill.full,
                },
                "modelled": {
                    "seconds": model.seconds,
                    "memory_mb": model.memory_mb,
                    "agg": 1000 * model.bill.aggregators,
                    "full": 1000 * model.bill.full,
                },
                # What the paper does not count.
                "left_out": {
                    "requests": 1000 * model.bill.requests,
                    "step_functions": 1000 * model.bill.step_functions,
                    "round": 1000 * model.bill.round_,
                    "events": 1000 * model.bill.events,
                    "starts": 1000 * model.bill.starts,
                },
            }
        )
    return rows


def _show_published(as_json: bool) -> None:
    rows = reproduction()
    if as_json:
        print_json(rows)
        return
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for title in ("model", "system"):
        table.add_column(title, no_wrap=True)
    for title in (
        *("agg $", "full $", "from\nseconds", "", "model\ns", "", "model\nagg $", ""),
        *("model\nfull $", "", "left out:\ninvoc.", "\nStep F."),
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        cells, seconds, model = row["published"], row["from_published_seconds"], row["modelled"]
        table.add_row(
            row["model"],
            TITLES[row["system"]],
            f"{cells['agg']:.4g}",
            f"{cells['full']:.2f}",
            *(_deviation(seconds[name], cells[name]) for name in ("agg", "full")),
            f"{model['seconds']:.1f}",
            _deviation(model["seconds"], cells["seconds"]),
            f"{model['agg']:.4g}",
            _deviation(model["agg"], cells["agg"]),
            f"{model['full']:.2f}",
            _deviation(model["full"], cells["full"]),
            f"{row['left_out']['requests']:.3f}",
            f"{row['left_out']['step_functions']:.2f}",
        )
    # Twelve figures a row: where the terminal is narrower, it wraps.
    console = Console(width=max(Console().width, WIDE))
    console.print(table)
    console.print(
        "dollars per 1000 rounds. from seconds: agg and full from the published seconds and "
        "memory; then the model's own, at the published bandwidth, and what the paper leaves out"
    )


def _deviation(value: float, reference: float) -> str:
    return f"{value / reference - 1:+.1%}"


def _show_crossover(first: str, second: str, setting: Setting, as_json: bool) -> None:
    if first == second:
        raise SpecError(f"--crossover {first} {second}: give two different systems")
    columns: tuple[claims.Column, ...] = ("full", "total")
    found = [claims.compare(first, second, setting, column) for column in columns]
    if as_json:
        print_json([_comparison_json(comparison) for comparison in found])
        return
    for comparison in found:
        for line in describe(comparison):
            click.echo(line)


def describe(comparison: Comparison) -> list[str]:
    """Return a comparison in words."""
    counted = "as the paper counts" if comparison.column == "full" else "everything counted"
    cheaper = TITLES[comparison.cheaper_first]
    lines = [f"{counted}: from {format_size(comparison.smallest)} {cheaper} is cheaper"]
    for crossover in comparison.crossovers:
        decisive = ", ".join(
            f"{name} {1000 * amount:+.2f}"
            for name, amount in claims.deciding(crossover, comparison.column)
        )
        lines.append(
            f"  from {format_size(crossover.nbytes)} {TITLES[crossover.cheaper_above]} is; "
            f"{TITLES[comparison.first]} less {TITLES[comparison.second]}, $ per 1000: {decisive}"
        )
    lines.append(f"  up to {format_size(comparison.largest)}, where one ends or the scan does")
    return lines


def _comparison_json(comparison: Comparison) -> dict[str, Any]:
    fields = replace(comparison, crossovers=()).__dict__
    return fields | {"crossovers": [crossover.to_json() for crossover in comparison.crossovers]}
