"""The command line."""

from typing import Final

import click

from gradshard.cli.command_groups import Lazy, LazyCommands

SECTIONS: Final = {
    "Rounds": [
        Lazy("open", "open", "open_", "Open a round for some clients."),
        Lazy("show", "show", "show", "Show a round: clients, rejections, time and cost."),
        Lazy("watch", "watch", "watch", "Follow a round until it ends."),
        Lazy("fetch", "fetch", "fetch", "Write the average of a completed round to a file."),
        Lazy("verify", "verify", "verify", "Check a sample of a round's result bit by bit."),
        Lazy("list", "list", "list_", "List the rounds of the last 90 days."),
        Lazy(
            "close",
            "close",
            "close",
            "Stop waiting, and average the updates that have arrived.",
        ),
        Lazy("cancel", "cancel", "cancel", "Stop a round, or all rounds, and clean up."),
        Lazy("rm", "rm", "remove", "Delete the objects of a round that has ended."),
        Lazy("logs", "logs", "logs", "Show what the functions logged about a round."),
        Lazy("report", "report", "report", "Write an HTML page about rounds."),
    ],
    "Trainings": [
        Lazy("train", "train", "train", "Start, show, pause, resume and stop trainings."),
        Lazy("join", "join", "join", "Take part in a training with a PROGRAM."),
    ],
    "Clients": [
        Lazy("submit", "submit", "submit", "Upload a client's update."),
        Lazy("ticket", "ticket", "ticket", "Make a ticket for a client without AWS credentials."),
        Lazy(
            "assignment",
            "assignment",
            "assignment",
            "Show the batch size, epochs and learning rate for a client.",
        ),
        Lazy(
            "convert",
            "convert",
            "convert",
            "Convert files to safetensors, compress them or decode them.",
        ),
    ],
    "Model": [
        Lazy(
            "model",
            "model",
            "model",
            "Put, fetch, show, roll back and prune versions of the model.",
        ),
    ],
    "Planning": [
        Lazy("plan", "plan", "plan", "Show the time and cost of a round before you open it."),
        Lazy("papers", "papers", "papers", "Compare gradshard with the published systems."),
    ],
    "Application": [
        Lazy("deploy", "deploy", "deploy", "Build the application and deploy it to AWS."),
        Lazy("keeper", "keeper", "keeper", "Operate the mask keeper of masked rounds."),
        Lazy("local", "local", "local", "Run the application on this machine."),
    ],
}


@click.group(
    cls=LazyCommands,
    sections=SECTIONS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="gradshard")
@click.pass_context
def main(context: click.Context) -> None:
    """Average the model updates of federated-learning rounds on AWS, or on this machine.

    Exit codes: 0 success, 1 error, 2 wrong usage, 3 the round has failed, or the
    training has paused.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
