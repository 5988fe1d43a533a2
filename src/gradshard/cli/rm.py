"""``gradshard rm``: delete the objects of a round."""

from typing import TYPE_CHECKING

import click

from gradshard.cli.options import connected, quiet_option
from gradshard.cli.output import confirm
from gradshard.cli.terminal_progress import waiting
from gradshard.utils.text import escape_terminal
from gradshard_core.errors import RoundStateError

if TYPE_CHECKING:
    from gradshard.client.federation import Federation


@click.command("rm")
@click.argument("name", metavar="ROUND")
@click.option("--yes", is_flag=True, help="Delete without asking.")
@quiet_option
@connected
def remove(federation: "Federation", name: str, yes: bool) -> None:
    """Delete the objects of a round that has ended.

    This deletes all versions of the updates, the average and the records, for good. The name of the
    round stays taken.
    """
    if not yes:
        _ask_whether_to_delete(name)
    with waiting(f"deleting round {name}"):
        federation.round(name).remove()
    confirm(f"deleted all objects of round {escape_terminal(name)}")


def _ask_whether_to_delete(name: str) -> None:
    question = f"Delete all objects of round {escape_terminal(name)}, updates and average included?"
    try:
        is_wanted = click.confirm(question, err=True)
    except click.Abort as abort:
        click.echo(err=True)  # ends the line of the question
        if isinstance(abort.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise RoundStateError(
            f"round {name!r} was left as it is, because standard input has no answer: answer in a "
            "terminal, or give --yes"
        ) from None
    if not is_wanted:
        raise RoundStateError(f"round {name!r} was left as it is")
