"""``gradshard report``: write a page about rounds."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradshard.cli.options import connected, json_option, output_option, quiet_option
from gradshard.cli.output import confirm, print_json
from gradshard.cli.terminal_progress import waiting
from gradshard.report.page import page
from gradshard.report.round_facts import Facts, compared, facts_of
from gradshard.utils.atomic_file import atomic_file
from gradshard.utils.text import escape_terminal, format_size, pluralize

if TYPE_CHECKING:
    from gradshard.client.federation import Federation


@click.command()
@click.argument("names", metavar="ROUND…", nargs=-1, required=True)
@output_option("Write the HTML page to this file.", required=False, default="report.html")
@json_option
@quiet_option
@connected
def report(federation: "Federation", names: tuple[str, ...], file: Path, as_json: bool) -> None:
    """Write an HTML page about rounds.

    The page is one file that needs no network. It shows which rounds completed, which clients took
    part, how long each round took and what it cost. With --json, the command prints the
    data of the page instead.
    """
    with waiting("reading") as say:
        rounds: list[Facts] = []
        for name in dict.fromkeys(names):
            say(f"reading round {name}")
            rounds.append(_facts(federation, name))
    if as_json:
        print_json({"rounds": rounds, "compared": compared(rounds)})
        return
    written = page(rounds, made_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M UTC}").encode()
    with atomic_file(file, len(written)) as whole:
        whole.write(written)
    confirm(
        f"{escape_terminal(file)}: {pluralize(len(rounds), 'round')}, {format_size(len(written))}; "
        "open it in a browser"
    )


def _facts(federation: "Federation", name: str) -> Facts:
    observer = federation.round(name).status_poller()
    return facts_of(
        observer.poll(),
        plan=observer.plan(),
        tasks=observer.tasks(),
        partial_updates=observer.partial_updates(),
        architecture=federation.stack.output("Architecture"),
    )
