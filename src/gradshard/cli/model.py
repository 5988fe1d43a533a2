"""``gradshard model``: put, fetch, show, roll back and prune versions of the model."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from gradshard.cli.group import Commands
from gradshard.cli.options import (
    connected,
    json_option,
    option,
    output_option,
    quiet_option,
    ticket_option,
)
from gradshard.cli.output import cell, confirm, confirm_file, print_json, progress_bar
from gradshard.cli.ticket import load
from gradshard.cli.values import WholeNumberType
from gradshard.utils.text import escape_terminal, format_size, pluralize
from gradshard_core.formats.keys import DEFAULT_MODEL

if TYPE_CHECKING:
    from gradshard.client.federation import Federation
    from gradshard_core.records.model_registry import Version

name_option = click.option(
    "--name",
    default=DEFAULT_MODEL,
    show_default=True,
    metavar="NAME",
    help="Name of the model, if the federation has several.",
)


@click.group(cls=Commands, invoke_without_command=True)
@click.pass_context
def model(context: click.Context) -> None:
    """Put, fetch, show, roll back and prune versions of the model.

    A round that is opened with --server-optimizer makes the next version.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@model.command()
@click.argument("file", type=click.Path(path_type=Path))
@option(
    "--buffers",
    metavar="PATTERN",
    multiple=True,
    help="Average the tensors whose names match this pattern, for example bn.running_*, instead of "
    "stepping them with the server optimizer. Repeat the option for each pattern.",
    default_text="those of the version before, and the names of BatchNorm's buffers",
)
@name_option
@json_option
@quiet_option
@connected
def put(
    federation: "Federation", file: Path, buffers: tuple[str, ...], name: str, as_json: bool
) -> None:
    """Make a .safetensors FILE the current version of the model."""
    with progress_bar(f"putting {file.name}") as progress:
        version = federation.model(name).put(file, buffers=buffers or None, progress=progress)
    _print_current(version, f"put {escape_terminal(file)} there", as_json=as_json)


@model.command()
@name_option
@json_option
@connected
def show(federation: "Federation", name: str, as_json: bool) -> None:
    """Show the versions of the model.

    The last version is the current one.
    """
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
@output_option("Write the model to this .safetensors file.")
@option(
    "--version",
    "number",
    type=int,
    metavar="N",
    help="Fetch this version.",
    default_text="the current version",
)
@name_option
@ticket_option
@json_option
@quiet_option
@connected
def fetch(
    federation: "Federation",
    file: Path,
    number: int | None,
    name: str,
    ticket: Path | None,
    as_json: bool,
) -> None:
    """Write the model to a file.

    With a --ticket, write the version from which the round of the ticket began.
    """
    record: dict[str, object]
    with progress_bar(f"fetching {file.name}") as progress:
        if ticket:
            loaded = load(ticket)
            loaded.fetch_model(file, progress=progress)
            record = {"round": loaded.id}
        else:
            handle = federation.model(name)
            version = handle.current() if number is None else handle.version(number)
            handle.fetch(file, version=version.number, progress=progress)
            record = {"model": name, "version": version.number}
    confirm_file(file, record, as_json=as_json)


@model.command()
@click.argument("number", type=int, metavar="VERSION")
@name_option
@json_option
@quiet_option
@connected
def rollback(federation: "Federation", number: int, name: str, as_json: bool) -> None:
    """Make a copy of an earlier VERSION the current version.

    The copy includes the state of the server optimizer.
    """
    version = federation.model(name).roll_back(number)
    _print_current(version, f"went back to version {number}", as_json=as_json)


@model.command()
@click.option(
    "--keep",
    type=WholeNumberType(1),
    required=True,
    metavar="N",
    help="Keep this number of the newest versions.",
)
@name_option
@json_option
@quiet_option
@connected
def prune(federation: "Federation", keep: int, name: str, as_json: bool) -> None:
    """Delete all but the newest versions.

    This also deletes the objects that no other version uses.
    """
    deleted = federation.model(name).prune(keep)
    if as_json:
        print_json([version.to_json() for version in deleted])
    else:
        confirm(f"deleted {pluralize(len(deleted), 'version')} of model {escape_terminal(name)}")


def _origin(version: "Version") -> str:
    if version.restores is not None:
        return f"going back to {version.restores}"
    return "hand" if version.round_id is None else f"round {version.round_id}"


def _print_current(version: "Version", what: str, *, as_json: bool) -> None:
    if as_json:
        print_json(version.to_json())
    else:
        confirm(
            f"{what}: version {version.number} of model {escape_terminal(version.model)} is current"
        )
