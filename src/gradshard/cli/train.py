"""``gradshard train``: start trainings, look at them, pause, resume and stop them."""

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from gradshard.cli.group import Commands
from gradshard.cli.options import Command, connected, json_option, option, quiet_option
from gradshard.cli.output import cell, confirm, is_quiet, print_json, waiting
from gradshard.cli.round_options import declared_option, round_options
from gradshard.utils.text import escape_terminal, format_duration, listed, pluralize
from gradshard_core.errors import TrainingFailed
from gradshard_core.planning.spec import OPTIONS as ROUND_OPTIONS
from gradshard_core.planning.training_spec import DECIDED, DEFAULTS, OPTIONS, TrainingSpec
from gradshard_core.records.inbox import Arrival
from gradshard_core.records.training_state import ENDED, PAUSED, RUNNING, TrainingState

if TYPE_CHECKING:
    from gradshard.client.federation import Federation

STYLES: Final = {RUNNING: "yellow", PAUSED: "red", ENDED: "green"}

ROWS: Final = 20
"""Rounds that a table shows without --json, the newest ones."""

METRICS_SHOWN: Final = 4

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

    A training runs rounds one after another, until it has ended. Nobody has to attend to it.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def training_options(command: Command) -> Command:
    """Add the options of a training that are no options of rounds."""
    for name in reversed([name for name in OPTIONS if name not in {"clients", "round"}]):
        command = declared_option(name, OPTIONS[name], DEFAULTS.get(name))(command)
    return command


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
@round_options(*(name for name in ROUND_OPTIONS if name not in DECIDED))
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
    if options["server_optimizer"] is None:
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
            cell(_best(state)),
            cell(_money(state.dollars)),
            cell(state.cause or ""),
        )
    Console().print(table)


@train.command()
@click.argument("name", metavar="TRAINING")
@json_option
@connected
def show(federation: "Federation", name: str, as_json: bool) -> None:
    """Show a training: its rounds, metrics, silent clients and cost."""
    training = federation.training(name)
    if as_json:
        print_json(training.status())
        return
    spec, state, records = training.spec(), training.state(), training.records()
    waiting_now = training.waiting()
    Console().print(render(name, spec, state, records, datetime.now(UTC), waiting_now))


@train.command()
@click.argument("name", metavar="TRAINING")
@click.option(
    "--json", "as_json", is_flag=True, help="Print a line of JSON whenever the training changes."
)
@quiet_option
@connected
def watch(federation: "Federation", name: str, as_json: bool) -> None:
    """Follow a training until it has ended or pauses.

    The exit code is 0 if the training has ended and 3 if it has paused. If you interrupt the
    command, the training goes on.
    """
    training = federation.training(name)
    console, state, spec = Console(), training.state(), training.spec()
    if as_json or is_quiet() or not console.is_terminal:
        for state in training.watch():
            waits = training.waiting() if spec.is_buffered else []
            if as_json:
                line = {"training": name, **state.to_json()}
                click.echo(json.dumps(line | ({"waiting": len(waits)} if spec.is_buffered else {})))
            else:
                buffer = f"; {_buffer(spec, state, waits)} wait" if spec.is_buffered else ""
                confirm(escape_terminal(_line(state) + buffer))
    else:
        records = training.records()
        with Live(console=console, transient=True) as live:
            for state in training.watch():
                records = training.records(records)
                now, waits = datetime.now(UTC), training.waiting()
                live.update(render(name, spec, state, records, now, waits))
        console.print(render(name, spec, state, records, datetime.now(UTC)))
    if state.status == PAUSED:
        raise TrainingFailed(f"training {name!r} has paused: {state.cause}")


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
    federation.training(name).resume()
    confirm(f"training {escape_terminal(name)} goes on")


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


def render(
    name: str,
    spec: TrainingSpec,
    state: TrainingState,
    records: Sequence[Mapping[str, Any]],
    now: datetime,
    waits: Sequence[Arrival] = (),
) -> RenderableType:
    """Return a picture of a training; ``waits`` are the updates that wait in a buffered one."""
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_row(cell(name), cell(state.status, STYLES[state.status]))
    facts.add_row("rounds", cell(f"{state.completed} of {spec.rounds}"))
    if spec.is_buffered:
        facts.add_row("version", cell(state.version or ""))
        facts.add_row("buffer", cell(_buffer(spec, state, waits)))
    if state.cause:
        facts.add_row("cause", cell(state.cause))
    if state.best is not None:
        facts.add_row("best", cell(_best(state)))
    facts.add_row("cost", cell(_spent(spec, state)))
    started = datetime.fromisoformat(state.started_at)
    until = datetime.fromisoformat(state.changed_at) if state.status == ENDED else now
    facts.add_row("time", cell(_passed(spec, (until - started).total_seconds())))
    if state.invitation is not None:
        invited = pluralize(len(state.invitation.clients), "client") + " invited"
        who = invited if state.invitation.clients else "everybody trains"
        facts.add_row("now", cell(f"round {state.invitation.round_id}, {who}"))
    if state.silent:
        silent = sorted(state.silent, key=lambda client: (-state.silent[client], client))
        shown = [f"{client} ({state.silent[client]})" for client in silent]
        facts.add_row("silent", cell(f"{listed(shown, 5)}: invitations missed in a row"))
    return Group(facts, "", _rounds(records)) if records else Group(facts)


def _rounds(records: Sequence[Mapping[str, Any]]) -> Table:
    newest = records[-ROWS:]
    names = sorted({name for record in newest for name in record["metrics"]})[:METRICS_SHOWN]
    is_stale = any(record.get("staleness") for record in newest)
    staleness = ["staleness"] if is_stale else []
    table = Table("round", "clients", *staleness, *map(escape_terminal, names), "cost", box=None)
    for record in newest:
        clients = f"{len(record['contributors'])} of {len(record['clients']) or record['awaited']}"
        values = [record["metrics"].get(name) for name in names]
        table.add_row(
            cell(record["round_id"], "" if record["is_completed"] else "red"),
            cell(clients if record["is_completed"] else f"{record['error']}: {record['cause']}"),
            *([cell(_staleness(record["staleness"].values()))] if is_stale else []),
            *(cell("" if value is None else f"{value:.6g}") for value in values),
            cell(_money(record["dollars"])),
        )
    return table


def _buffer(spec: TrainingSpec, state: TrainingState, waits: Sequence[Arrival]) -> str:
    newest = state.version or 0
    text = f"{len(waits)} of {spec.buffer}"
    if waits:
        text += f", staleness {_staleness([newest - arrival.version for arrival in waits])}"
    return text


def _staleness(values: Collection[int]) -> str:
    """Return mean and maximum of numbers of versions."""
    return f"{sum(values) / len(values):.1f}, at most {max(values)}" if values else ""


def _best(state: TrainingState) -> str:
    best = state.best
    return f"version {best.version}: {best.metric} {best.value:.6g}" if best else ""


def _spent(spec: TrainingSpec, state: TrainingState) -> str:
    most = spec.budget and spec.budget.dollars
    return _money(state.dollars) + (f" of {_money(most)}" if most is not None else "")


def _passed(spec: TrainingSpec, seconds: float) -> str:
    most = spec.budget and spec.budget.seconds
    return format_duration(seconds) + (f" of {format_duration(most)}" if most is not None else "")


def _line(state: TrainingState) -> str:
    text = f"{state.status}: {pluralize(state.completed, 'round')} completed"
    if state.invitation is not None:
        text += f", round {state.invitation.round_id} under way"
    if state.best is not None:
        text += f", best {_best(state)}"
    return f"{text}, {_money(state.dollars)}" + (f"; {state.cause}" if state.cause else "")


def _money(amount: float) -> str:
    return f"${amount:.4f}"
