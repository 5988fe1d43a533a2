"""The tables and lines with which ``gradshard train`` shows a training."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group, RenderableType
from rich.table import Table

from gradshard.cli.output import cell
from gradshard.utils.text import escape_terminal, format_duration, listed, pluralize
from gradshard_core.formats.client_metrics import most_frequent
from gradshard_core.records.inbox import UncountedUpdate
from gradshard_core.records.training_state import ENDED, PAUSED, RUNNING, TrainingState
from gradshard_core.specs.training_spec import TrainingSpec

if TYPE_CHECKING:
    from gradshard.client.training_progress import RoundProgress

STYLES: Final = {RUNNING: "yellow", PAUSED: "red", ENDED: "green"}

ROWS: Final = 20
"""Rounds that a table shows without --json, the newest ones."""

METRICS_SHOWN: Final = 4


@dataclass(frozen=True)
class View:
    """The facts about a training that the command shows.

    Parameters
    ----------
    spec, state, records
        The training.
    progress
        The progress of the round that is under way.
    waits
        The updates that wait in a buffered training.
    lost
        How the execution ended, if the training does not go on though it is running.
    """

    spec: TrainingSpec
    state: TrainingState
    records: Sequence[Mapping[str, Any]]
    progress: "RoundProgress | None" = None
    waits: Sequence[UncountedUpdate] = ()
    lost: str | None = None


def render(name: str, view: View, now: datetime) -> RenderableType:
    """Return a picture of a training."""
    spec, state, records = view.spec, view.state, view.records
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_row(cell(name), cell(state.status, STYLES[state.status]))
    facts.add_row("rounds", cell(f"{state.completed} of {spec.rounds}"))
    if spec.is_buffered:
        facts.add_row("version", cell(state.version or ""))
        facts.add_row("waiting", cell(waiting_of(view)))
    if state.cause:
        facts.add_row("cause", cell(state.cause))
    elif records and not records[-1]["is_completed"]:
        facts.add_row("failed", cell(f"round {records[-1]['round_id']}: {records[-1]['cause']}"))
    if view.lost:
        facts.add_row("stuck", cell(f"{view.lost}; gradshard train resume continues it", "red"))
    if state.best is not None:
        facts.add_row("best", cell(best_of(state)))
    facts.add_row("cost", cell(_spent(spec, state)))
    passed = _seconds(state, now)
    facts.add_row("time", cell(_passed(spec, passed)))
    if state.status != ENDED and (left := _left(spec, state, records, passed)):
        facts.add_row("left", cell(left))
    if state.invitation is not None:
        for heading, text in _under_way(state, view.progress, now):
            facts.add_row(heading, cell(text))
    for heading, text in _taking_part(spec, state):
        facts.add_row(heading, cell(text))
    return Group(facts, "", _rounds(spec, records)) if records else Group(facts)


def _taking_part(spec: TrainingSpec, state: TrainingState) -> list[tuple[str, str]]:
    """Return rows about who has taken part, and who has not answered."""
    rows = []
    if state.tree is not None and state.status != ENDED:
        taken = pluralize(len(state.tree.taken), "client")
        place = f"round {state.tree.leaf} of {spec.noise_tree} of tree {state.tree.number}"
        rows.append(("noise", f"{place}; {taken} were invited in it"))
    if state.silent:
        silent = sorted(state.silent, key=lambda client: (-state.silent[client], client))
        shown = [f"{client} ({state.silent[client]})" for client in silent]
        rows.append(("silent", f"{listed(shown, 5)}: invitations missed in a row"))
    return rows


def _under_way(
    state: TrainingState, progress: "RoundProgress | None", now: datetime
) -> list[tuple[str, str]]:
    """Return rows about the round that is under way."""
    invitation = state.invitation
    assert invitation is not None  # noqa: S101 - for mypy: the caller has looked
    invited = pluralize(len(invitation.clients), "client")
    if not invitation.clients:
        return [("now", f"round {invitation.round_id}, everybody trains")]
    if progress is None:
        return [("now", f"round {invitation.round_id}, {invited} invited")]
    since = (now - datetime.fromisoformat(state.changed_at)).total_seconds()
    now_text = (
        f"round {invitation.round_id}, {invited} invited {format_duration(round(since))} ago, "
        f"{len(progress.arrived)} of {invitation.awaited} updates are there"
    )
    rows = [("now", now_text)]
    if progress.metrics:
        means = [f"{name} {value:.6g}" for name, value in progress.metrics.items()]
        rows.append(("so far", listed(means, METRICS_SHOWN)))
    if progress.slow:
        rows.append(("waits for", listed(progress.slow, 5)))
    return rows


def _left(
    spec: TrainingSpec,
    state: TrainingState,
    records: Sequence[Mapping[str, Any]],
    passed: float,
) -> str:
    """Say what is left until the last round, as the rounds so far went; empty before the first."""
    if state.completed == 0 or not records:
        return ""
    rounds = spec.rounds - state.completed
    if rounds == 0:
        return "the last evaluation"
    share = rounds / state.completed
    text = f"{pluralize(rounds, 'round')}: about {format_duration(round(share * passed))} and "
    text += money(share * state.dollars)
    budget = spec.budget
    if budget and budget.dollars is not None:
        text += f"; of the budget {money(max(0.0, budget.dollars - state.dollars))}"
    if budget and budget.seconds is not None:
        text += f"; {format_duration(round(max(0.0, budget.seconds - passed)))} until its end"
    return text


def _rounds(spec: TrainingSpec, records: Sequence[Mapping[str, Any]]) -> Table:
    newest = records[-ROWS:]
    decisive = spec.stop and spec.stop.metric
    names = most_frequent([record["metrics"] for record in newest], decisive)[:METRICS_SHOWN]
    is_stale = any(record.get("staleness") for record in newest)
    staleness = ["staleness"] if is_stale else []
    table = Table("round", "clients", *staleness, *map(escape_terminal, names), "cost", box=None)
    for record in newest:
        clients = f"{len(record['contributors'])} of {len(record['clients']) or record['awaited']}"
        values = [record["metrics"].get(name) for name in names]
        table.add_row(
            cell(record["round_id"], "" if record["is_completed"] else "red"),
            cell(clients if record["is_completed"] else record["error"]),
            *([cell(_staleness(record["staleness"].values()))] if is_stale else []),
            *(cell("" if value is None else f"{value:.6g}") for value in values),
            cell(money(record["dollars"])),
        )
    return table


def waiting_of(view: View) -> str:
    """Return the number of updates that wait for the next version, with their staleness."""
    newest = view.state.version or 0
    text = f"{len(view.waits)} of {view.spec.updates_per_version}"
    if view.waits:
        text += f", staleness {_staleness([newest - arrival.version for arrival in view.waits])}"
    return text


def _seconds(state: TrainingState, now: datetime) -> float:
    """Return how long a training has been running, or ran."""
    until = datetime.fromisoformat(state.changed_at) if state.status == ENDED else now
    return (until - datetime.fromisoformat(state.started_at)).total_seconds()


def _staleness(values: Collection[int]) -> str:
    """Return mean and maximum of numbers of versions."""
    return f"{sum(values) / len(values):.1f}, at most {max(values)}" if values else ""


def best_of(state: TrainingState) -> str:
    """Return the best version in words; empty if there is none."""
    best = state.best
    return f"version {best.version}: {best.metric} {best.value:.6g}" if best else ""


def _spent(spec: TrainingSpec, state: TrainingState) -> str:
    most = spec.budget and spec.budget.dollars
    return money(state.dollars) + (f" of {money(most)}" if most is not None else "")


def _passed(spec: TrainingSpec, seconds: float) -> str:
    most = spec.budget and spec.budget.seconds
    return format_duration(seconds) + (f" of {format_duration(most)}" if most is not None else "")


def line_of(view: View) -> str:
    """Return a training in one line, without the time: it differs if something has changed."""
    state, invitation, progress = view.state, view.state.invitation, view.progress
    text = f"{state.status}: {pluralize(state.completed, 'round')} completed"
    if view.spec.is_buffered:
        text += f"; version {state.version}, {waiting_of(view)} wait"
    if invitation is not None and progress is not None and not invitation.is_open:
        arrived = f"{len(progress.arrived)} of {invitation.awaited} updates"
        text += f"; round {invitation.round_id}: {arrived}"
        if progress.metrics:
            means = [f"{name} {value:.6g}" for name, value in progress.metrics.items()]
            text += f", {listed(means, METRICS_SHOWN)}"
        if progress.slow:
            text += f", waits for {listed(progress.slow, 5)}"
    if state.best is not None:
        text += f"; best {best_of(state)}"
    return f"{text}; {_spent(view.spec, state)}" + (f"; {state.cause}" if state.cause else "")


def left_of(view: View, now: datetime) -> str:
    """Return what is left until the last round and of the budget, to follow a line."""
    if view.state.status == ENDED:
        return ""
    left = _left(view.spec, view.state, view.records, _seconds(view.state, now))
    return f"; left: {left}" if left else ""


def money(amount: float) -> str:
    """Return an amount in dollars."""
    return f"${amount:.4f}"
