"""``gradshard join``: take part in a training with a program in any language."""

from typing import TYPE_CHECKING, Any

import click

from gradshard.cli.codec_options import codec_options, compression_of
from gradshard.cli.options import connected, quiet_option
from gradshard.cli.output import confirm
from gradshard.utils.text import escape_terminal

if TYPE_CHECKING:
    from gradshard.client.federation import Federation
    from gradshard_core.records.training_state import Invitation


@click.command()
@click.argument("training", metavar="TRAINING")
@click.argument("client", metavar="CLIENT")
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- PROGRAM…")
@codec_options
@quiet_option
@connected
def join(
    federation: "Federation",
    training: str,
    client: str,
    program: tuple[str, ...],
    **compression: Any,
) -> None:
    """Take part in a training with a PROGRAM.

    The command starts the PROGRAM for each invitation, in a folder with invitation.json and
    model.safetensors. The PROGRAM writes trained.safetensors, and result.json with "samples" and
    "metrics". In an evaluation it writes only result.json. The command ends when the training has
    ended. You can stop the command and start it again.
    """
    from gradshard.client.program import Program

    def tell(invitation: "Invitation") -> None:
        kind = "evaluates" if invitation.is_evaluation else "trains"
        confirm(
            f"{escape_terminal(client)} {kind} for round {escape_terminal(invitation.round_id)}"
        )

    runner = Program(program, tell)
    done = federation.participate(
        client,
        runner.train,
        runner.evaluate,
        training=training,
        codec=compression_of(**compression),
    )
    confirm(
        f"training {escape_terminal(training)} has ended: {escape_terminal(done.state.cause or '')}"
    )
