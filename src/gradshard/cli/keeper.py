"""``gradshard keeper``: operate a mask keeper, and make a client's key."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradshard.cli.command_groups import Commands
from gradshard.cli.options import connected, debuggable, json_option, quiet_option
from gradshard.cli.output import confirm, print_json
from gradshard.deployment.defaults import KEEPER_STACK
from gradshard.utils.text import escape_terminal

if TYPE_CHECKING:
    from gradshard.client.keeper import Keeper


@click.group(cls=Commands, invoke_without_command=True)
@click.pass_context
def keeper(context: click.Context) -> None:
    """Operate the mask keeper of masked rounds.

    The keeper is a stack of its own. The operator of the aggregator must not have access to its
    account. The keeper's operator enrols clients, and can show what was answered.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def with_keeper(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the keeper that its options name."""
    return connected(command, default_stack=KEEPER_STACK, loads=_load)


def _load(stack: str, **options: Any) -> "Keeper":
    from gradshard.client.keeper import Keeper

    return Keeper(stack, **options)


@keeper.command()
@json_option
@with_keeper
def key(federation: "Keeper", as_json: bool) -> None:
    """Show the keeper's public key.

    If the keeper has no key yet, the command makes one. Rounds are opened with the key. Clients
    compare its fingerprint.
    """
    public, fingerprint = federation.public_key(), federation.fingerprint()
    if as_json:
        print_json({"key": public, "fingerprint": fingerprint})
        return
    click.echo(f"key          {public}")
    click.echo(f"fingerprint  {fingerprint}")


@keeper.command()
@click.argument("client")
@click.argument("public_key", metavar="KEY")
@quiet_option
@with_keeper
def enrol(federation: "Keeper", client: str, public_key: str) -> None:
    """Enrol CLIENT with its public KEY.

    The key must come from the client itself, and not through the aggregator.
    """
    federation.enrol(client, public_key)
    confirm(f"client {escape_terminal(client)} is enrolled")


@keeper.command()
@click.argument("client")
@quiet_option
@with_keeper
def expel(federation: "Keeper", client: str) -> None:
    """Remove the enrolment of CLIENT."""
    federation.expel(client)
    confirm(f"client {escape_terminal(client)} is enrolled no more")


@keeper.command("clients")
@json_option
@with_keeper
def list_clients(federation: "Keeper", as_json: bool) -> None:
    """List the enrolled clients."""
    enrolled = list(federation.clients())
    if as_json:
        print_json(enrolled)
        return
    for entry in enrolled:
        click.echo(f"{escape_terminal(entry['client'])}  {entry['key']}")


@keeper.command()
@json_option
@with_keeper
def answers(federation: "Keeper", as_json: bool) -> None:
    """List the rounds whose masks the keeper has agreed to sum."""
    rounds = list(federation.answers())
    if as_json:
        print_json(rounds)
        return
    for name in rounds:
        click.echo(escape_terminal(name))


@keeper.command()
@click.argument("name", metavar="ROUND")
@with_keeper
def answer(federation: "Keeper", name: str) -> None:
    """Show the keeper's answer for ROUND, as JSON."""
    print_json(federation.answer(name))


@keeper.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@debuggable
def identity(file: Path) -> None:
    """Make a client's key in FILE, and print its public key.

    The keeper's operator enrols the client with the public key. If FILE is there already, only its
    public key is printed.
    """
    from gradshard.updates.mask_identity import make_identity

    click.echo(make_identity(file))
