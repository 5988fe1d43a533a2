"""``gradshard train``: start trainings, look at them, pause, resume and stop them."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from gradshard.cli.command_groups import Commands
from gradshard.cli.options import (
    Command,
    connected,
    expires_option,
    json_option,
    option,
    output_option,
    quiet_option,
    with_options,
)
from gradshard.cli.options_from_spec import declared_option, round_options
from gradshard.cli.output import cell, confirm, is_quiet, print_json
from gradshard.cli.terminal_progress import waiting
from gradshard.cli.ticket import write_ticket
from gradshard.cli.train_show import ROWS, STYLES, View, best_of, left_of, line_of, money, render
from gradshard.utils.atomic_file import atomic_file
from gradshard.utils.text import escape_terminal, format_size, pluralize, shortened
from gradshard_core.errors import TrainingFailed
from gradshard_core.records.training_state import ENDED, PAUSED, RUNNING, STOP, TrainingState
from gradshard_core.specs.option_kinds import REQUIRED
from gradshard_core.specs.round_spec import OPTIONS as ROUND_OPTIONS
from gradshard_core.specs.training_round_options import DECIDED
from gradshard_core.specs.training_spec import DEFAULTS, OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gradshard.client.federation import Federation
    from gradshard.client.training import Training

CAUSE_CHARACTERS = 100
"""Of the cause in a list of trainings; ``train show`` has the whole."""

OPTIMIZER = "server_optimizer"
"""The option that a round may leave out, and a training may not."""

reason_option = click.option(
    "--reason",
    required=True,
    metavar="TEXT",
    help="Record this text as the reason. Clients can read it.",
)


@click.group(cls=Commands, invoke_without_command=True)
@click.pass_context
def train(context: click.Context) -> None:
    """Start, show, pause, resume and stop trainings.

    A training runs rounds one after another until it ends. Nobody has to wait at a terminal.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def training_options(command: Command) -> Command:
    """Add the options of a training that are no options of rounds."""
    names = [name for name in OPTIONS if name not in {"clients", "round"}]
    options = [declared_option(name, OPTIONS[name], DEFAULTS.get(name)) for name in names]
    return with_options(command, options)


@train.command()
@click.argument("name", metavar="TRAINING")
@click.option(
    "--client",
    "clients",
    metavar="ID",
    multiple=True,
    help="Let this client take part. Repeat the option for each client. [default: everybody who "
    "joins]",
)
@training_options
@round_options(*(n for n in ROUND_OPTIONS if n not in {*DECIDED, OPTIMIZER}))
@declared_option(OPTIMIZER, replace(ROUND_OPTIONS[OPTIMIZER], default=REQUIRED), None)
@json_option
@quiet_option
@connected
def start(
    federation: "Federation", name: str, clients: tuple[str, ...], as_json: bool, **options: Any
) -> None:
    """Start a training.

    Put a model into the federation first (gradshard model put). If you repeat the command with the
    same options, nothing changes.
    """
    if options["rounds"] is None:
        raise click.UsageError("Give --rounds, the number of rounds after which the training ends.")
    if options[OPTIMIZER] is None:
        raise click.UsageError("Give --server-optimizer, for example fedavg.")
    with waiting(f"starting training {name}"):
        training = federation.train(name, clients=list(clients) or None, **options)
    if as_json:
        print_json({"training": name, "spec": training.spec().to_json()})
    else:
        who = pluralize(len(clients), "client") if clients else "everybody who joins"
        confirm(f"training {escape_terminal(name)} has started, with {who}")


@train.command("list")
@option(
    "--state",
    "status",
    type=click.Choice((RUNNING, PAUSED, ENDED)),
    help="List only trainings in this state.",
    default_text="any state",
)
@json_option
@connected
def list_(federation: "Federation", status: str | None, as_json: bool) -> None:
    """List the trainings."""
    with waiting("listing trainings"):
        found = list(federation.trainings(status))
    if as_json:
        print_json([{"training": entry.training, **entry.state.to_json()} for entry in found])
        return
    if not found:
        click.echo("there are no trainings" if status is None else f"no training is {status}")
        return
    table = Table("training", "status", "rounds", "best", "cost", "cause", box=None, pad_edge=False)
    for name, state in found:
        table.add_row(
            cell(name),
            cell(state.status, STYLES[state.status]),
            cell(state.completed),
            cell(best_of(state)),
            cell(money(state.dollars)),
            cell(shortened(state.cause or "", CAUSE_CHARACTERS)),
        )
    Console().print(table)


@train.command()
@click.argument("name", metavar="TRAINING")
@json_option
@connected
def show(federation: "Federation", name: str, as_json: bool) -> None:
    """Show a training: rounds, metrics, clients, time and cost."""
    training = federation.training(name)
    state = training.state()
    lost, invitation = training.lost_execution(state), state.invitation
    progress = None if invitation is None else training.progress_reader().read(invitation)
    if as_json:
        under_way = progress and progress.to_json()
        print_json(training.status() | {"under_way": under_way, "lost_execution": lost})
        return
    spec, records = training.spec(), training.records(newest=ROWS)
    view = View(spec, state, records, progress, training.waiting(), lost)
    Console().print(render(name, view, datetime.now(UTC)))


@train.command()
@click.argument("name", metavar="TRAINING")
@click.option(
    "--json", "as_json", is_flag=True, help="Print a line of JSON whenever the training changes."
)
@quiet_option
@connected
def watch(federation: "Federation", name: str, as_json: bool) -> None:
    """Follow a training until it has ended or pauses.

    On a terminal the command shows the rounds, metrics as they arrive, slow clients, and the time
    and dollars that are left. Elsewhere it prints a line with them whenever something changes. The
    exit code is 0 if the training has ended and 3 if it has paused. If you interrupt the command,
    the training goes on.
    """
    training = federation.training(name)
    console, state = Console(), training.state()
    if as_json:
        spec = training.spec()
        for state in training.watch():
            more = {"waiting": len(training.waiting())} if spec.is_buffered else {}
            click.echo(json.dumps({"training": name, **state.to_json(), **more}))
    elif is_quiet():
        *_, state = training.watch()
    elif console.is_terminal:
        with Live(console=console, transient=True) as live:
            for view in _views(training):
                live.update(render(name, view, datetime.now(UTC)))
        state = view.state
        console.print(render(name, view, datetime.now(UTC)))
    else:
        last = ""
        for view in _views(training):
            state, line = view.state, line_of(view)
            if line != last:
                click.echo(f"{escape_terminal(line)}{left_of(view, datetime.now(UTC))}")
            last = line
    if state.status == PAUSED:
        raise TrainingFailed(f"training {name!r} has paused: {state.cause}")


def _views(training: "Training") -> "Iterator[View]":
    """Yield what a training looks like, again and again, until it has ended or paused."""
    spec, reader = training.spec(), training.progress_reader()
    records = training.records(newest=ROWS)
    before: TrainingState | None = None
    for state in training.watch(changes_only=False):
        records = records if state == before else training.records(records, newest=ROWS)
        invited = state.invitation
        progress = None if invited is None else reader.read(invited)
        yield View(spec, state, records, progress, training.waiting())
        before = state


@train.command()
@click.argument("name", metavar="TRAINING")
@output_option("Write the HTML page to this file.", required=False, default="training.html")
@json_option
@quiet_option
@connected
def report(federation: "Federation", name: str, file: Path, as_json: bool) -> None:
    """Write an HTML page about a training.

    The page is one file that needs no network. It shows the curves of the metrics, the rounds, what
    each client did, the cost and the versions of the model. With --json, the command prints the
    data of the page instead.
    """
    from gradshard.report.training_facts import training_facts
    from gradshard.report.training_page import training_page

    with waiting(f"reading training {name}"):
        facts = training_facts(federation.training(name).status(), datetime.now(UTC))
    if as_json:
        print_json(facts)
        return
    written = training_page(facts, made_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M UTC}").encode()
    with atomic_file(file, len(written)) as whole:
        whole.write(written)
    confirm(
        f"{escape_terminal(file)}: {pluralize(len(facts['rounds']), 'round')}, "
        f"{format_size(len(written))}; open it in a browser"
    )


@train.command()
@click.argument("name", metavar="TRAINING")
@click.argument("where", metavar="DIR|URI")
@click.option(
    "--to",
    "kind",
    type=click.Choice(("mlflow", "tensorboard")),
    required=True,
    help="Write the metrics for this program.",
)
@option(
    "--experiment",
    default="gradshard",
    metavar="NAME",
    help="Log to this experiment of MLflow.",
    default_text="gradshard",
)
@quiet_option
@connected
def export(federation: "Federation", name: str, where: str, kind: str, experiment: str) -> None:
    """Export the metrics of a training to MLflow or TensorBoard.

    Give TensorBoard's log directory, or MLflow's tracking URI. You can repeat the command, also
    while the training goes on. It needs gradshard[mlflow] or gradshard[tensorboard].
    """
    status = federation.training(name).status()
    try:
        if kind == "mlflow":
            from gradshard.exports import mlflow

            made = f"run {mlflow.export(status, where, experiment=experiment)} of MLflow"
        else:
            from gradshard.exports import tensorboard

            made = str(tensorboard.export(status, Path(where)))
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name} is not installed: pip install 'gradshard[{kind}]'"
        ) from None
    confirm(f"exported {pluralize(len(status['rounds']), 'round')} to {escape_terminal(made)}")


@train.command()
@click.argument("name", metavar="TRAINING")
@click.argument("client")
@output_option(
    "Write the ticket to this file.", required=False, default_text="TRAINING-CLIENT.ticket"
)
@expires_option
@json_option
@quiet_option
@connected
def ticket(
    federation: "Federation",
    name: str,
    client: str,
    file: Path | None,
    expires: int,
    as_json: bool,
) -> None:
    """Make a ticket of a training for a client without AWS credentials.

    With it, CLIENT can take part in all rounds (gradshard join --ticket). CLIENT must begin before
    the ticket expires. While CLIENT takes part, the ticket is renewed. Keep the file secret: anyone
    who has it can act as that client.
    """
    made = federation.training(name).ticket(client, expires=expires)
    file = file or Path(f"{name}-{client}.ticket")
    if not write_ticket(made, file, {"training": name, "client": client}, as_json=as_json):
        return
    until = made.expires_at.isoformat(timespec="seconds")
    confirm(
        f"wrote {escape_terminal(file)}: {client} can take part in training "
        f"{escape_terminal(name)}, and has to begin before {until}"
    )
    if made.is_temporary:
        confirm("it was made with temporary credentials: begin before they end")


@train.command()
@click.argument("name", metavar="TRAINING")
@click.argument("client")
@quiet_option
@connected
def revoke(federation: "Federation", name: str, client: str) -> None:
    """Revoke a client's ticket of a training.

    The client is not invited any more. URLs that it already has stay valid until they expire, for
    at most 12 hours.
    """
    training = federation.training(name)
    had_ticket = training.revoke(client)
    training.leave(client)
    shown = escape_terminal(client)
    confirm(
        f"the ticket of {shown} is not renewed any more"
        if had_ticket
        else f"{shown} has no ticket, and is not invited any more"
    )


@train.command()
@click.argument("name", metavar="TRAINING")
@reason_option
@quiet_option
@connected
def pause(federation: "Federation", name: str, reason: str) -> None:
    """Pause a training when its current round has ended."""
    federation.training(name).pause(reason)
    confirm(f"training {escape_terminal(name)} pauses when its round has ended")


@train.command()
@click.argument("name", metavar="TRAINING")
@quiet_option
@connected
def resume(federation: "Federation", name: str) -> None:
    """Continue a paused training.

    It continues from the current version of the model.
    """
    state = federation.training(name).resume()
    # A stop is not taken back.
    what = "ends when its round has ended" if state.request == STOP else "goes on"
    confirm(f"training {escape_terminal(name)} {what}")


@train.command()
@click.argument("name", metavar="TRAINING")
@reason_option
@click.option("--now", is_flag=True, help="Cancel the current round instead of waiting for it.")
@quiet_option
@connected
def stop(federation: "Federation", name: str, reason: str, now: bool) -> None:
    """End a training when its current round has ended."""
    state = federation.training(name).stop(reason, now=now)
    is_over = state.status == ENDED
    confirm(
        f"training {escape_terminal(name)} "
        f"{'has ended' if is_over else 'ends now' if now else 'ends when its round has ended'}"
    )
