"""``gradshard open``, ``submit`` and ``fetch``: what is done to a round."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from gradshard.cli.common import (
    Seconds,
    Stated,
    aggregation_options,
    connected,
    json_option,
    output_option,
    print_json,
    progress_bar,
    waiting,
)
from gradshard.cli.ticket import load, named, ticket_option
from gradshard.client.federation import Federation
from gradshard.utils.text import escape_terminal, format_size, pluralize
from gradshard_core.aggregation.arithmetic import SHARES, WEIGHTS
from gradshard_core.planning.spec import DEFAULT_TIMEOUT


@click.command("open")
@click.argument("name", metavar="ROUND")
@click.option("--client", "ids", metavar="ID", multiple=True, help="An expected client; repeat it.")
@click.option("--clients", "count", type=int, metavar="N", help="Or how many, whoever they are.")
@click.option(
    "--min-clients",
    type=int,
    show_default="more than half of the clients",
    help="With fewer at the deadline the round fails.",
)
@click.option(
    "--timeout",
    type=Seconds(),
    default=DEFAULT_TIMEOUT,
    show_default=True,
    metavar="TIME",
    help="Until no more updates are awaited: 90 (seconds), 30m, 2h.",
)
@aggregation_options
@click.option("--weights", type=click.Choice(WEIGHTS), default=SHARES, show_default=True)
@click.option(
    "--rule",
    type=Stated(),
    help="Take partial updates: fedavg, fill, drop, or as JSON, for salf with p.",
)
@click.option("--layers", type=Stated(), help="Of partial updates, as JSON; by tensors' names.")
@click.option(
    "--assignments",
    type=Stated(),
    help="Say in the end what clients should do next: the base settings, as JSON.",
)
@click.option("--eager", is_flag=True, help="Add up a group when its updates are there.")
@click.option("--shards", type=int, metavar="M", help="Into how many to cut the update.")
@click.option(
    "--time-budget", type=Seconds(), metavar="TIME", help="Or how long aggregating may take."
)
@click.option(
    "--updates-from",
    metavar="ROUND",
    help="Average what was sent to another round, as it is there.",
)
@click.option(
    "--server-optimizer",
    type=Stated(),
    metavar="OPTIMIZER",
    help="Make the model's next version: fedavg, fedavgm, fedadagrad, fedyogi, fedadam, or as JSON "
    "with learning_rate, buffers and the like.",
)
@click.option(
    "--layout",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A .safetensors file; all updates must have tensors of its names, types and shapes. "
    "--rule and --eager need it, or --server-optimizer.",
    show_default="that of more than half of the updates",
)
@click.option("--allow-nonfinite", is_flag=True, help="Average NaN and infinities too.")
@json_option
@connected
def open_(
    federation: Federation,
    name: str,
    ids: tuple[str, ...],
    count: int | None,
    min_clients: int | None,
    timeout: int,
    layout: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Open a round for some clients.

    Opening it again with the same options does no harm.
    """
    if bool(ids) == (count is not None):
        raise click.UsageError(
            "Give the expected clients by --client, or their number by --clients."
        )
    with waiting(f"opening round {name}"):
        round_ = federation.open_round(
            name,
            list(ids) if count is None else count,
            min_clients=min_clients,
            timeout=timeout,
            layout=layout,
            **options,
        )
    if as_json:
        print_json({"round": name, "bucket": federation.bucket, "spec": round_.spec().to_json()})
    elif not round_.is_new and round_.has_ended():
        click.echo(
            f"round {escape_terminal(name)} was opened before, in these terms, and has ended"
        )
    else:
        expected = pluralize(count or len(ids), "client")
        click.echo(f"round {escape_terminal(name)} is open for {expected}, for {timeout} s")


@click.command()
@click.argument("arguments", type=click.Path(), metavar="[ROUND CLIENT] FILE", nargs=-1)
@click.option(
    "--samples",
    type=int,
    metavar="N",
    help="On how many the client trained; needed unless the file's metadata has num_samples.",
)
@click.option(
    "--partial", "is_partial", is_flag=True, help="It holds only some layers, and that is all."
)
@click.option("--train-seconds", type=float, help="How long the client trained.")
@click.option("--batch-size", type=int, help="With which batches.")
@click.option("--epochs", type=int, help="For how many epochs.")
@click.option("--steps", type=int, help="In how many local steps.")
@ticket_option
@connected
def submit(
    federation: Federation,
    arguments: tuple[str, ...],
    samples: int | None,
    is_partial: bool,
    ticket: Path | None,
    **training: float | None,
) -> None:
    """Upload a client's update.

    ROUND and CLIENT are needed unless a --ticket says them.
    """
    if len(arguments) != 3 and not (ticket and len(arguments) == 1):
        raise click.UsageError("Give ROUND, CLIENT and FILE, or FILE and a --ticket.")
    *whose, path = arguments
    if ticket:
        opened = load(ticket, *whose)
        name, client = opened.id, opened.client
        send: Callable[..., bool | None] = opened.submit
    else:
        name, client = whose
        send = partial(federation.round(name).submit, client, partial=is_partial)
    file = Path(path)
    said = {name: value for name, value in training.items() if value is not None}
    with progress_bar(f"submitting {file.name}") as tell:
        has_replaced = send(file, samples, training=said, progress=tell)
    size = format_size(file.stat().st_size)
    told = (
        f"submitted {escape_terminal(file)} ({size}) to round {escape_terminal(name)} "
        f"as {escape_terminal(client)}"
    )
    click.echo(f"{told}; it replaces the update sent before" if has_replaced else told)


@click.command()
@click.argument("name", metavar="[ROUND]", required=False)
@output_option("Where to write the averaged update.")
@ticket_option
@connected
def fetch(federation: Federation, name: str | None, file: Path, ticket: Path | None) -> None:
    """Write the average of a completed round to a file."""
    source = load(ticket, name) if ticket else federation.round(named(name))
    with progress_bar(f"fetching {file.name}") as tell:
        source.fetch(file, progress=tell)
    click.echo(f"wrote {escape_terminal(file)} ({format_size(file.stat().st_size)})")
