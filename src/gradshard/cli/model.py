"""``gradshard model``: put, fetch, show, roll back and prune versions of the model."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from gradshard.cli.command_groups import Commands
from gradshard.cli.option_types import WholeNumberType
from gradshard.cli.options import (
    connected,
    json_option,
    option,
    output_option,
    quiet_option,
    ticket_option,
)
from gradshard.cli.output import cell, confirm, confirm_file, print_json
from gradshard.cli.terminal_progress import progress_bar
from gradshard.cli.ticket import load
from gradshard.utils.text import escape_terminal, format_size, pluralize
from gradshard_core.formats.object_keys import DEFAULT_MODEL

if TYPE_CHECKING:
    from gradshard.client.federation import Federation
    from gradshard_core.records.model_registry import Version
    from gradshard_core.records.privacy_ledger import PrivacyLedger

name_option = click.option(
    "--name",
    default=DEFAULT_MODEL,
    show_default=True,
    metavar="NAME",
    help="Name of the model, if the federation has several.",
)


@click.group(cls=Commands, invoke_without_command=True)
@click.pass_context
def model(context: click.Context) -> None:
    """Put, fetch, show, roll back and prune versions of the model.

    A round that is opened with --server-optimizer makes the next version.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@model.command()
@click.argument("file", type=click.Path(path_type=Path))
@option(
    "--buffers",
    metavar="PATTERN",
    multiple=True,
    help="Average the tensors whose names match this pattern, for example bn.running_*, instead of "
    "changing them with the server optimizer. Repeat the option for each pattern.",
    default_text="those of the version before, and the names of BatchNorm's buffers",
)
@name_option
@json_option
@quiet_option
@connected
def put(
    federation: "Federation", file: Path, buffers: tuple[str, ...], name: str, as_json: bool
) -> None:
    """Make a .safetensors FILE the current version of the model."""
    with progress_bar(f"putting {file.name}") as progress:
        version = federation.model(name).put(file, buffers=buffers or None, progress=progress)
    _print_current(version, f"put {escape_terminal(file)} into the federation", as_json=as_json)


@model.command()
@name_option
@json_option
@connected
def show(federation: "Federation", name: str, as_json: bool) -> None:
    """Show the versions of the model.

    The last version is the current one. If rounds were private, or the model has a privacy budget,
    "ε so far" is what the rounds up to a version have revealed about a client. Computing it needs
    the extra gradshard[privacy]. Without it, the command shows the sum of 1/z² over the rounds,
    where z is the noise multiplier of a round.
    If clients were drawn in secret, the last line has the ε against people who get the versions of
    the model and nothing else.
    """
    handle = federation.model(name)
    versions, ledger = handle.history(), handle.privacy()
    spent = ledger.by_version((version.number, version.round_id) for version in versions)
    if as_json:
        records = [version.to_json() for version in versions]
        for record in records if ledger.entries else ():
            record["privacy"] = _privacy(ledger, spent[record["version"]])
        if ledger.parts.drawn:
            records[-1]["privacy"]["epsilon_from_models"] = _epsilon_from_models(ledger)
        print_json(records)
        return
    table = Table("version", "made", "by", "optimizer")
    for title in ("step", "size", *(("privacy so far",) if ledger.entries else ())):
        table.add_column(title, justify="right")
    for version in versions:
        table.add_row(
            cell(version.number),
            cell(version.made_at[:19]),
            cell(_origin(version)),
            cell((version.optimizer or {}).get("optimizer", "")),
            cell(version.steps or ""),
            cell(format_size(version.tensors.source.nbytes)),
            *([cell(_stated(ledger, spent[version.number]))] if ledger.entries else []),
        )
    Console().print(table)
    from_models = _epsilon_from_models(ledger) if ledger.parts.drawn else None
    if from_models is not None:
        click.echo(f"against people who get only versions of the model: ε {from_models:.4g}")
    if ledger.budget is not None:
        left = max(0.0, ledger.budget.allowance - ledger.spent)
        click.echo(
            f"privacy budget: ε {ledger.budget.epsilon:g} at δ {ledger.budget.delta:g}; "
            f"{left / ledger.budget.allowance:.1%} is left"
        )


@model.command()
@click.argument("epsilon", type=float)
@click.option(
    "--delta",
    type=float,
    required=True,
    metavar="NUMBER",
    help="The probability δ at which ε is stated, for example 1e-5.",
)
@name_option
@json_option
@quiet_option
@connected
def budget(
    federation: "Federation", epsilon: float, delta: float, name: str, as_json: bool
) -> None:
    """Set the privacy budget of the model to EPSILON.

    A round that would exceed it is rejected before it opens, and so is a round without noise.
    Earlier rounds count. This needs the extra gradshard[privacy].
    """
    ledger = federation.model(name).limit_privacy(epsilon, delta)
    if as_json:
        print_json(ledger.to_json())
    else:
        confirm(
            f"rounds of model {escape_terminal(name)} may reveal ε {epsilon:g} at δ {delta:g} in "
            f"all; {pluralize(len(ledger.entries), 'round')} so far"
        )


@model.command()
@output_option("Write the model to this .safetensors file.")
@option(
    "--version",
    "number",
    type=int,
    metavar="N",
    help="Fetch this version.",
    default_text="the current version",
)
@name_option
@ticket_option
@json_option
@quiet_option
@connected
def fetch(
    federation: "Federation",
    file: Path,
    number: int | None,
    name: str,
    ticket: Path | None,
    as_json: bool,
) -> None:
    """Write the model to a file.

    With a --ticket, write the version from which the round of the ticket began.
    """
    record: dict[str, object]
    with progress_bar(f"fetching {file.name}") as progress:
        if ticket:
            loaded = load(ticket)
            loaded.fetch_model(file, progress=progress)
            record = {"round": loaded.id}
        else:
            handle = federation.model(name)
            version = handle.current() if number is None else handle.version(number)
            handle.fetch(file, version=version.number, progress=progress)
            record = {"model": name, "version": version.number}
    confirm_file(file, record, as_json=as_json)


@model.command()
@click.argument("number", type=int, metavar="VERSION")
@name_option
@json_option
@quiet_option
@connected
def rollback(federation: "Federation", number: int, name: str, as_json: bool) -> None:
    """Make a copy of an earlier VERSION the current version.

    The copy includes the state of the server optimizer.
    """
    version = federation.model(name).roll_back(number)
    _print_current(version, f"went back to version {number}", as_json=as_json)


@model.command()
@click.option(
    "--keep",
    type=WholeNumberType(1),
    required=True,
    metavar="N",
    help="Keep this number of the newest versions.",
)
@name_option
@json_option
@quiet_option
@connected
def prune(federation: "Federation", keep: int, name: str, as_json: bool) -> None:
    """Delete all but the newest versions.

    This also deletes the objects that no other version uses.
    """
    deleted = federation.model(name).prune(keep)
    if as_json:
        print_json([version.to_json() for version in deleted])
    else:
        confirm(f"deleted {pluralize(len(deleted), 'version')} of model {escape_terminal(name)}")


def _delta_of(ledger: "PrivacyLedger") -> float | None:
    """Return δ of the budget, or else that of the last private round."""
    if ledger.budget is not None:
        return ledger.budget.delta
    stated = [entry.mechanism["delta"] for entry in ledger.entries if entry.mechanism]
    return stated[-1] if stated else None


def _privacy(ledger: "PrivacyLedger", spent: float) -> dict[str, float | None]:
    """Return what the rounds up to a version have revealed; None without a bound or a library."""
    from gradshard.client import privacy_accounting

    delta = _delta_of(ledger)
    is_bounded = math.isfinite(spent)
    epsilon = None
    if delta is not None and is_bounded and privacy_accounting.is_installed():
        epsilon = privacy_accounting.epsilon_of(spent, delta)
    return {"spent": spent if is_bounded else None, "epsilon": epsilon, "delta": delta}


def _epsilon_from_models(ledger: "PrivacyLedger") -> float | None:
    """Return ε of all rounds against people who get only versions of the model.

    Not of each version: a kind of draw takes the accountant a fifth of a second.
    """
    from gradshard.client import privacy_accounting

    delta = _delta_of(ledger)
    if delta is None or math.isinf(ledger.spent) or not privacy_accounting.is_installed():
        return None
    return privacy_accounting.epsilon_from_models(ledger, delta)


def _stated(ledger: "PrivacyLedger", spent: float) -> str:
    found = _privacy(ledger, spent)
    if found["spent"] is None:
        return "no bound"
    if found["epsilon"] is None or found["delta"] is None:
        return f"Σ 1/z² {spent:.4g}"
    return f"ε {found['epsilon']:.4g} at δ {found['delta']:g}"


def _origin(version: "Version") -> str:
    if version.restores is not None:
        return f"going back to {version.restores}"
    return "hand" if version.round_id is None else f"round {version.round_id}"


def _print_current(version: "Version", what: str, *, as_json: bool) -> None:
    if as_json:
        print_json(version.to_json())
    else:
        confirm(
            f"{what}: version {version.number} of model {escape_terminal(version.model)} is current"
        )
