"""``gradshard join``: take part in a training with a program in any language."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradshard.cli.codec_options import codec_options, compression_of
from gradshard.cli.mask_options import mask_of, mask_options
from gradshard.cli.options import connected, quiet_option
from gradshard.cli.output import confirm
from gradshard.utils.text import escape_terminal, pluralize
from gradshard_core.errors import TicketError

if TYPE_CHECKING:
    from gradshard.client.federation import Federation
    from gradshard.client.training_by_ticket import TicketTraining
    from gradshard_core.records.training_state import Invitation


@click.command()
@click.argument("training", metavar="TRAINING")
@click.argument("client", metavar="CLIENT")
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- PROGRAM…")
@codec_options
@mask_options
@click.option(
    "--ticket",
    "ticket",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Use this ticket of the training instead of AWS credentials. The command stores newer "
    "URLs in the file.",
)
@quiet_option
@connected
def join(
    federation: "Federation",
    training: str,
    client: str,
    program: tuple[str, ...],
    mask_key: Path | None,
    keeper: str | None,
    ticket: Path | None,
    **compression: Any,
) -> None:
    """Take part in a training with a PROGRAM.

    The command starts the PROGRAM for each invitation, in a folder with invitation.json and
    model.safetensors. The PROGRAM writes trained.safetensors, and result.json with "samples" and
    "metrics". In an evaluation it writes only result.json. If an update is rejected, the command
    prints the reason, and the next invitation.json has it. The command ends when the training has
    ended. You can stop the command and start it again.
    """
    from gradshard.client.external_program import Program

    def tell(invitation: "Invitation") -> None:
        kind = "evaluates" if invitation.is_evaluation else "trains"
        confirm(
            f"{escape_terminal(client)} {kind} for round {escape_terminal(invitation.round_id)}"
        )

    runner = Program(program, tell)
    more: Any = {
        "on_rejection": runner.rejected,
        "codec": compression_of(**compression),
        "mask": mask_of(mask_key, keeper),
    }
    if ticket is None:
        done = federation.participate(
            client, runner.train, runner.evaluate, training=training, **more
        )
    else:
        held = _held(ticket, training, client)
        done = held.participate(runner.train, runner.evaluate, **more)
    bad = f"; {pluralize(len(done.rejected), 'update')} did not count" if done.rejected else ""
    confirm(
        f"training {escape_terminal(training)} has ended: "
        f"{escape_terminal(done.state.cause or '')}{bad}"
    )


def _held(path: Path, training: str, client: str) -> "TicketTraining":
    """Read a ticket, which must be that of the training and the client, and print its host."""
    from gradshard.client.training_by_ticket import TicketTraining

    held = TicketTraining.load(path)
    own = (held.ticket.training, held.ticket.client)
    if own != (training, client):
        raise TicketError(
            f"{path} is a ticket of client {own[1]!r} in training {own[0]!r}: give these, or "
            "another ticket"
        )
    click.echo(f"with a ticket of {escape_terminal(held.ticket.host)}", err=True)
    return held
