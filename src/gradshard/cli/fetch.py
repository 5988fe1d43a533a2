"""``gradshard fetch``: write the average of a completed round to a file."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradshard.cli.options import connected, json_option, output_option, quiet_option, ticket_option
from gradshard.cli.output import confirm_file
from gradshard.cli.terminal_progress import progress_bar
from gradshard.cli.ticket import load, named

if TYPE_CHECKING:
    from gradshard.client.federation import Federation


@click.command()
@click.argument("name", metavar="[ROUND]", required=False)
@output_option("Write the average to this .safetensors file.")
@ticket_option
@json_option
@quiet_option
@connected
def fetch(
    federation: "Federation", name: str | None, file: Path, ticket: Path | None, as_json: bool
) -> None:
    """Write the average of a completed round to a file.

    Give ROUND, or a --ticket, which names it. If the download is interrupted, the same command
    resumes it.
    """
    if ticket:
        loaded = load(ticket, name)
        round_id, download = loaded.id, partial(loaded.fetch, file)
    else:
        round_id = named(name)
        download = partial(federation.round(round_id).fetch, file)
    with progress_bar(f"fetching {file.name}") as progress:
        download(progress=progress)
    confirm_file(file, {"round": round_id}, as_json=as_json)
