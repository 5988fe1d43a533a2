"""``gradshard model``: the federation's model in its versions."""

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from gradshard.cli.common import (
    cell,
    connected,
    json_option,
    output_option,
    print_json,
    progress_bar,
)
from gradshard.cli.group import Commands
from gradshard.cli.ticket import load, ticket_option
from gradshard.client.federation import Federation
from gradshard.utils.text import escape_terminal, format_size, pluralize
from gradshard_core.aggregation.server_optimizers import DEFAULT_MODEL
from gradshard_core.records.model_registry import Version

name_option = click.option(
    "--name", default=DEFAULT_MODEL, show_default=True, help="Which model, if there are several."
)


@click.group(cls=Commands, invoke_without_command=True)
@click.pass_context
def model(context: click.Context) -> None:
    """Put, fetch, show and prune versions of the model.

    A round opened with --server-optimizer makes the next version.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@model.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--buffers",
    metavar="NAME",
    multiple=True,
    help="A tensor, or a pattern of names, that rounds average and no optimizer steps; repeat it. "
    "Else those of the version before and those with BatchNorm's names.",
)
@name_option
@json_option
@connected
def put(
    federation: Federation, file: Path, buffers: tuple[str, ...], name: str, as_json: bool
) -> None:
    """Make a version of a .safetensors FILE: the first one, or one to go on from."""
    with progress_bar(f"putting {file.name}") as tell:
        version = federation.model(name).put(file, buffers=buffers or None, progress=tell)
    _tell(version, f"put {escape_terminal(file)} there", as_json=as_json)


@model.command()
@name_option
@json_option
@connected
def show(federation: Federation, name: str, as_json: bool) -> None:
    """Show the versions of the model; the last one is current."""
    versions = federation.model(name).history()
    if as_json:
        print_json([version.to_json() for version in versions])
        return
    table = Table("version", "made", "by", "optimizer")
    for title in ("step", "size"):
        table.add_column(title, justify="right")
    for version in versions:
        table.add_row(
            cell(version.number),
            cell(version.made_at[:19]),
            cell(_origin(version)),
            cell((version.optimizer or {}).get("optimizer", "")),
            cell(version.steps or ""),
            cell(format_size(version.tensors.source.nbytes)),
        )
    Console().print(table)


@model.command()
@output_option("Where to write the model.")
@click.option("--version", "number", type=int, metavar="N", help="Which; else the current one.")
@name_option
@ticket_option
@connected
def fetch(
    federation: Federation, file: Path, number: int | None, name: str, ticket: Path | None
) -> None:
    """Write the model to a file; with a --ticket, the one that its round began from."""
    with progress_bar(f"fetching {file.name}") as tell:
        if ticket:
            load(ticket).fetch_model(file, progress=tell)
        else:
            federation.model(name).fetch(file, version=number, progress=tell)
    click.echo(f"wrote {escape_terminal(file)} ({format_size(file.stat().st_size)})")


@model.command()
@click.argument("number", type=int, metavar="VERSION")
@name_option
@json_option
@connected
def rollback(federation: Federation, number: int, name: str, as_json: bool) -> None:
    """Go back to a VERSION and its optimizer's state: they become the newest version."""
    version = federation.model(name).roll_back(number)
    _tell(version, f"went back to version {number}", as_json=as_json)


@model.command()
@click.option(
    "--keep", type=click.IntRange(1), required=True, metavar="N", help="How many of the newest."
)
@name_option
@json_option
@connected
def prune(federation: Federation, keep: int, name: str, as_json: bool) -> None:
    """Delete all but the newest versions, and what only they are made of."""
    deleted = federation.model(name).prune(keep)
    if as_json:
        print_json([version.to_json() for version in deleted])
    else:
        click.echo(f"deleted {pluralize(len(deleted), 'version')} of model {escape_terminal(name)}")


def _origin(version: Version) -> str:
    if version.restores is not None:
        return f"going back to {version.restores}"
    return "hand" if version.round_id is None else f"round {version.round_id}"


def _tell(version: Version, what: str, *, as_json: bool) -> None:
    if as_json:
        print_json(version.to_json())
    else:
        click.echo(
            f"{what}: version {version.number} of model {escape_terminal(version.model)} is current"
        )
