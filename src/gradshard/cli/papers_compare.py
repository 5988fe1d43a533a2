"""``gradshard papers compare``: run several topologies on the updates of one round."""

from collections.abc import Callable
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from gradshard.cli.option_types import WholeNumberType
from gradshard.cli.options import connected, json_option, option
from gradshard.cli.output import WIDE, cell, print_json
from gradshard.cli.terminal_progress import waiting
from gradshard.client.federation import Federation
from gradshard.papers import topology_trials
from gradshard.papers.topology_trials import Outcome, Trial
from gradshard.utils.text import escape_terminal, format_size
from gradshard_core.aggregation.arithmetic import COUNTS, SHARES
from gradshard_core.aggregation.topologies import TOPOLOGIES
from gradshard_core.limits import aws_limits

DIGEST_CHARACTERS: Final = 8


@click.command()
@click.argument("name", metavar="ROUND")
@option(
    "--topology",
    "names",
    type=click.Choice(list(TOPOLOGIES)),
    multiple=True,
    help="Run only this topology. Repeat the option for several.",
    default_text="all topologies",
)
@option(
    "--order",
    metavar="ORDER",
    help="Order of the additions in every trial: sequential, or for example tree:4,4.",
    default_text="that of each topology",
)
@click.option(
    "--weights",
    type=click.Choice((SHARES, COUNTS)),
    default=SHARES,
    show_default=True,
    help="Weights of the updates. shares: the share of all samples. counts: the number of samples, "
    "with one division at the end.",
)
@option(
    "--shards",
    type=WholeNumberType(1, aws_limits.MAX_PARTS),
    metavar="N",
    help="Number of byte ranges into which shards and grid cut the updates.",
    default_text="chosen by the planner",
)
@json_option
@connected
def compare(
    federation: Federation,
    name: str,
    names: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Run several topologies on the same updates.

    Each topology adds the updates in its own order. Then the topology shards adds them in the same
    order, and the two results must be equal. Each trial is a round of its own, which the command
    removes afterwards.
    """
    round_ = federation.round(name)
    clients = len(topology_trials.contributors(round_))
    chosen = topology_trials.trials(clients, names, **options)
    outcomes: list[Outcome] = []
    with waiting(f"comparing on {clients} updates") as say:

        def tell(trial: Trial) -> None:
            say(f"{trial.label} ({len(outcomes) + 1} of {len(chosen)})")

        outcomes.extend(topology_trials.compare(federation, round_, chosen, tell=tell))
    agrees = topology_trials.agreement(outcomes)
    if as_json:
        print_json(
            {
                "round": name,
                "clients": clients,
                "agrees": agrees,
                "outcomes": [outcome.to_json() for outcome in outcomes],
            }
        )
    else:
        _print(outcomes, agrees)
    if not agrees:
        raise click.ClickException("the same order gave other bytes: see the digests")
    if all(outcome.rejected for outcome in outcomes):
        raise click.ClickException("none of the topologies could run: see above why")


_ROWS: tuple[tuple[str, Callable[[Outcome], object]], ...] = (
    ("order", lambda o: o.order),
    ("M", lambda o: o.shards),
    ("tasks by level", lambda o: " ".join(str(o.shards * len(sizes)) for sizes in o.groups)),
    ("read", lambda o: format_size(o.bytes_read)),
    ("written", lambda o: format_size(o.bytes_written)),
    ("GETs", lambda o: o.gets),
    ("PUTs", lambda o: o.puts),
    ("invocations", lambda o: o.invocations),
    ("transitions", lambda o: o.transitions),
    ("peak MB", lambda o: f"{o.peak_mb:.0f}"),
    ("GB-seconds", lambda o: f"{o.gb_seconds:.3f}"),
    ("seconds", lambda o: f"{o.seconds:.2f}"),
    ("$ Lambda", lambda o: _dollars(o, "lambda")),
    ("$ S3, tasks", lambda o: _dollars(o, "s3_aggregators")),
    ("$ S3, clients", lambda o: _dollars(o, "s3_clients")),
    ("$ Step Functions", lambda o: _dollars(o, "step_functions")),
    ("$ events", lambda o: _dollars(o, "events")),
    ("$ cold starts", lambda o: _dollars(o, "starts")),
    ("$ the rest", lambda o: _dollars(o, "requests", "round")),
    ("$ in all", lambda o: _dollars(o, "total")),
    ("bytes (SHA-256)", lambda o: o.digest[:DIGEST_CHARACTERS]),
)


def _dollars(outcome: Outcome, *parts: str) -> str:
    """Per thousand rounds."""
    bill = outcome.bill.to_json() if outcome.bill else {}
    return f"{1000 * sum(bill[part] for part in parts):.3f}"


def _print(outcomes: list[Outcome], agrees: bool) -> None:
    done = [outcome for outcome in outcomes if not outcome.rejected]
    table = Table()
    for title in ("", *(outcome.trial.label for outcome in done)):
        table.add_column(cell(title), justify="right" if title else "left", no_wrap=not title)
    for title, value in _ROWS:
        table.add_row(cell(title), *(cell(value(outcome)) for outcome in done))
    if done:
        # A column for each trial: where the terminal is narrower, it wraps.
        Console(width=max(Console().width, WIDE)).print(table)
        click.echo("Dollars are per 1000 rounds, at AWS's prices for what was measured here.")
    for outcome in outcomes:
        if outcome.rejected:
            click.echo(
                f"{escape_terminal(outcome.trial.label)}: {escape_terminal(outcome.rejected)}"
            )
    if agrees and done:
        click.echo("What added in the same order gave the same bytes.")
