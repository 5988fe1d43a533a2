"""``gradshard open``: open a round for some clients."""

from typing import TYPE_CHECKING, Any

import click

from gradshard.cli.options import connected, json_option, quiet_option
from gradshard.cli.options_from_spec import round_options
from gradshard.cli.output import confirm, print_json
from gradshard.cli.terminal_progress import waiting
from gradshard.utils.text import escape_terminal, pluralize
from gradshard_core.specs.round_spec import DEFAULT_TIMEOUT

if TYPE_CHECKING:
    from gradshard.client.federation import Federation


@click.command("open")
@click.argument("name", metavar="ROUND")
@click.option(
    "--client",
    "ids",
    metavar="ID",
    multiple=True,
    help="Expect this client. Repeat the option for each client.",
)
@click.option(
    "--clients",
    "count",
    type=int,
    metavar="N",
    help="Expect this number of clients, with any ids, instead of --client.",
)
@round_options()
@json_option
@quiet_option
@connected
def open_(
    federation: "Federation",
    name: str,
    ids: tuple[str, ...],
    count: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Open a round for some clients.

    Give each client with --client, or their number with --clients. If you repeat the command with
    the same options, nothing changes.
    """
    if bool(ids) == (count is not None):
        raise click.UsageError(
            "Give the expected clients by --client, or their number by --clients."
        )
    with waiting(f"opening round {name}"):
        round_ = federation.open_round(name, list(ids) if count is None else count, **options)
    if as_json:
        print_json({"round": name, "bucket": federation.bucket, "spec": round_.spec().to_json()})
    elif not round_.is_new and round_.has_ended():
        confirm(
            f"round {escape_terminal(name)} was opened before, with these options, and has ended"
        )
    else:
        expected = pluralize(count or len(ids), "client")
        timeout = options["timeout"] or DEFAULT_TIMEOUT
        confirm(f"round {escape_terminal(name)} is open for {expected}, for {timeout} s")
