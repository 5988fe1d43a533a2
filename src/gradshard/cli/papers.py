"""``gradshard papers``: commands that compare gradshard with the published systems."""

import click

from gradshard.cli.command_groups import Lazy, LazyCommands

SECTIONS = {
    "Commands": [
        Lazy("cost", "papers_cost", "cost", "Compare the cost of a round with published systems."),
        Lazy("compare", "papers_compare", "compare", "Run several topologies on the same updates."),
    ]
}


@click.group(cls=LazyCommands, sections=SECTIONS, invoke_without_command=True)
@click.pass_context
def papers(context: click.Context) -> None:
    """Compare gradshard with the published systems.

    These commands reproduce results of papers. You need none of them to run a round: `gradshard
    plan` shows what your own round costs.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
