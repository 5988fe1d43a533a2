"""``gradshard show``: show the status of a round."""

import itertools
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, Group, RenderableType
from rich.table import Table

from gradshard.cli.options import connected, json_option, ticket_option
from gradshard.cli.output import cell, dollars, print_json
from gradshard.cli.ticket import load, named
from gradshard.client.robust_decision_text import sample_in_words, verdict_on
from gradshard.utils.text import format_size, pluralize
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.formats.tensor_layout import shorten

if TYPE_CHECKING:
    from gradshard.client.federation import Federation

MOST_NAMED = 4
"""This number of buffers is shown by name; the manifest has all names."""

STATE_STYLES = {"completed": "green", "failed": "red"}


@click.command()
@click.argument("name", metavar="[ROUND]", required=False)
@ticket_option
@json_option
@connected
def show(federation: "Federation", name: str | None, ticket: Path | None, as_json: bool) -> None:
    """Show a round: clients, rejections, time and cost.

    Give ROUND, or a --ticket, which names it. With a ticket, the command shows only whether the
    round has ended, and whether the update of the client was averaged or rejected.
    """
    # It loads botocore, which help and wrong usage do not need. `Round` would load numpy, too.
    from gradshard.client.round_status import read_status

    if ticket:
        status, paragraphs = load(ticket, name).status(), _part
    else:
        status, paragraphs = read_status(federation.stack, RoundKeys(named(name))), render
    if as_json:
        print_json(status)
    else:
        Console().print(Group(*paragraphs(status)))


def _part(status: dict[str, Any]) -> Iterable[RenderableType]:
    """Yield the paragraphs of what a ticket's client may know."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("round", cell(status["round"]))
    table.add_row("state", cell(status["state"], STATE_STYLES.get(status["state"], "yellow")))
    table.add_row("client", cell(status["client"]))
    sent = status["uploaded"]
    table.add_row("update", cell("not there" if sent is None else format_size(sent)))
    if status["reason"]:
        table.add_row("rejected", cell(status["reason"]))
    table.add_row("ticket", cell(f"until {status['expires_at']}"))
    yield table


def render(status: dict[str, Any]) -> Iterable[RenderableType]:
    """Yield the paragraphs of a round's status."""
    yield _facts(status)
    if contributors := (status["manifest"] or {}).get("contributors"):
        layers = status["manifest"].get("layers")
        unstated = "masked" if status["manifest"].get("masked") else "by rule"
        yield _contributors(contributors, "by layer" if layers else unstated)
        if layers:
            yield _layers(layers, status["manifest"].get("measuring", {}))
    elif status["arrived"]:
        yield _arrived(status["arrived"])
    if status.get("decision"):
        yield _decision(status["decision"])
    for title, rejections in (("rejected", status["rejected"]), ("late", status["late"])):
        if rejections:
            yield _rejections(title, rejections)


def _facts(status: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    state = status["state"]
    table.add_row("round", cell(status["round"]))
    table.add_row("state", cell(state, STATE_STYLES.get(state, "yellow")))
    for name, value in (*_progress(status), *_outcome(status["manifest"] or {})):
        table.add_row(name, cell(value))
    return table


def _progress(status: dict[str, Any]) -> Iterable[tuple[str, str]]:
    if status["cause"]:
        yield "cause", status["cause"]
    if status["opened_at"]:
        yield "opened", _to_the_second(status["opened_at"])
    if status["state"] == "awaiting" and status["deadline_at"]:
        yield "deadline", _to_the_second(status["deadline_at"])
    yield "updates", f"{len(status['arrived'])} of {expected(status)}"
    if status["missing"]:
        yield "missing", ", ".join(status["missing"])
    plan = status["plan"]
    if plan:
        yield "update", f"{format_size(plan['nbytes'])} in {pluralize(plan['tensors'], 'tensor')}"
        yield "topology", f"{plan['topology']} of {plan['shards']}, order {plan['order']}"
        if "keeper_has_answered" in plan:
            has_answered = plan["keeper_has_answered"]
            yield "keeper", "has answered" if has_answered else "its answer is awaited"
        yield "tasks", f"{status['tasks_done']} of {plan['tasks']} done"
        for note in plan["notes"]:
            yield "note", note
        yield "projected", _projected(plan["projected"])


def _to_the_second(time: str) -> str:
    return datetime.fromisoformat(time).isoformat(timespec="seconds")


def _outcome(manifest: dict[str, Any]) -> Iterable[tuple[str, str]]:
    totals = manifest.get("totals")
    if totals is None:
        return
    if model := manifest.get("model"):
        yield "model", f"version {model['version']} of {model['model']}"
        yield "applied", _applied(model, manifest["update"]["tensors"])
    if manifest.get("masked"):
        yield "samples", f"{manifest['samples']:,} of all contributors together"
    yield "waited", f"{manifest['waited_seconds']:.1f} s for updates, while no function ran"
    if privacy := manifest.get("privacy"):
        # It imports numpy, which other rounds are shown without.
        from gradshard.client.privacy_accounting import privacy_in_words

        yield "privacy", privacy_in_words(privacy)
    if measuring := manifest.get("measuring"):
        yield "measured", _measured(measuring, manifest["left_out"])
    yield "seconds", f"{manifest['seconds']:.1f}, of them {totals['longest_seconds']:.1f} a task"
    yield "read", f"{format_size(totals['bytes_read'])} in {pluralize(totals['gets'], 'GET')}"
    yield "written", f"{format_size(totals['bytes_written'])} in {pluralize(totals['puts'], 'PUT')}"
    yield "memory", f"{totals['peak_mb']:.0f} MB at most in a function"
    yield "cost", f"{dollars(manifest['projected']['dollars']['total'])}, as projected for AWS"


def _measured(measuring: dict[str, Any], left_out: list[str]) -> str:
    counts = ", ".join(
        f"{len(clients)} {word}"
        for clients, word in (
            (left_out, "left out"),
            (_left_out_of_some(measuring) - set(left_out), "left out of some layers"),
            (measuring["clipped"] or [], "clipped"),
        )
        if clients
    )
    tasks = pluralize(measuring["totals"]["tasks"], "task")
    updates = pluralize(measuring["measured"], "update")
    said = f"{updates} in {tasks}" + (f": {counts}" if counts else "")
    if sample := measuring.get("sample"):
        said += f"; {sample_in_words(sample)}"
    return said


def _left_out_of_some(measuring: dict[str, Any]) -> set[str]:
    """Return the clients that a rule left out of any layer."""
    return set(itertools.chain.from_iterable(measuring.get("left_out_by_layer", {}).values()))


def _applied(model: dict[str, Any], tensors: int) -> str:
    averaged = model["buffers"]
    stepped = pluralize(tensors - len(averaged), "tensor")
    text = f"{stepped} stepped by {model['optimizer']['optimizer']}"
    if not averaged:
        return text
    shown = [*map(shorten, averaged[:MOST_NAMED]), *(["…"] if len(averaged) > MOST_NAMED else [])]
    return f"{text}, {len(averaged)} averaged ({', '.join(shown)})"


def _projected(projection: dict[str, Any]) -> str:
    return (
        f"{projection['seconds']:.1f} s with {projection['memory_mb']} MB functions, "
        f"{projection['needed_mb']:.0f} MB of that used"
    )


def expected(status: dict[str, Any]) -> int:
    """Return how many clients a round expects."""
    clients = status["spec"].get("clients", 0)
    return clients if isinstance(clients, int) else len(clients)


def _contributors(contributors: list[dict[str, Any]], without: str) -> Table:
    table = Table("contributor", title_justify="left")
    for title in ("samples", "weight", "size"):
        table.add_column(title, justify="right")
    are_compressed = any(entry.get("codec") for entry in contributors)
    if are_compressed:
        table.add_column("codec")
    for entry in contributors:
        codec = entry.get("codec") or ""
        if codec and entry.get("codec_error") is not None:
            codec += f", error {entry['codec_error']:.2g}"
        table.add_row(
            cell(entry["client"]),
            cell(entry["samples"] if entry["samples"] is not None else without),
            cell(f"{entry['weight']:.4f}" if entry["weight"] is not None else without),
            cell(format_size(entry["nbytes"])),
            *([cell(codec)] if are_compressed else []),
        )
    return table


def _decision(decision: dict[str, Any]) -> Table:
    """Return what a robust rule measured of each update, and what it made of it."""
    table = Table(decision["rule"]["name"])
    # Scores of rules that clip are the norms. A rule that decides layer by layer has many scores.
    is_by_layer = any("layers" in entry for entry in decision["clients"])
    has_scores = decision["score"] != "norm" and not is_by_layer
    titles = (decision["score"] if has_scores else "", "" if is_by_layer else "weight")
    for title in ("norm", *filter(None, titles), "update"):
        table.add_column(title, justify="right")
    for entry in decision["clients"]:
        table.add_row(
            cell(entry["client"]),
            cell(f"{entry['norm']:.4g}"),
            *([cell(f"{entry['score']:.4g}")] if has_scores else []),
            *([] if is_by_layer else [cell(f"{entry['weight']:.4f}")]),
            cell(verdict_on(entry)),
        )
    return table


def _layers(layers: list[dict[str, Any]], measuring: dict[str, Any]) -> Table:
    left_out = measuring.get("left_out_by_layer")
    table = Table("layer")
    for title in ("covered by", "p" if left_out is None else "left out"):
        table.add_column(title, justify="right")
    for layer in layers:
        last: object = "" if layer["p"] is None else f"{layer['p']:.4g}"
        if left_out is not None:
            last = len(left_out.get(layer["name"], []))
        table.add_row(cell(layer["name"]), cell(len(layer["weights"])), cell(last))
    return table


def _arrived(updates: list[dict[str, Any]]) -> Table:
    table = Table("arrived")
    table.add_column("size", justify="right")
    for update in updates:
        table.add_row(cell(update["client"]), cell(format_size(update["nbytes"])))
    return table


def _rejections(title: str, rejections: list[dict[str, str]]) -> Table:
    table = Table(title, "reason")
    for rejection in rejections:
        table.add_row(cell(rejection["client"]), cell(rejection["reason"]))
    return table
