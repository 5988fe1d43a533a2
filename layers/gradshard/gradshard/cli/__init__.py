"""The command line."""

import click

from gradshard.cli import (
    assignment,
    compare,
    convert,
    cost,
    deploy,
    local,
    model,
    operate,
    plan,
    report,
    rounds,
    show,
    ticket,
    watch,
)
from gradshard.cli.common import Commands


@click.group(cls=Commands, invoke_without_command=True)
@click.version_option(package_name="gradshard")
@click.pass_context
def main(context: click.Context) -> None:
    """Average the model updates of federated-learning rounds on AWS, or on this machine."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


main.add_command(deploy.deploy)
main.add_command(local.local)
main.add_command(convert.convert)
main.add_command(model.model)
main.add_command(rounds.open_)
main.add_command(ticket.ticket)
main.add_command(rounds.submit)
main.add_command(watch.watch)
main.add_command(show.show)
main.add_command(report.report)
main.add_command(rounds.fetch)
main.add_command(operate.list_)
main.add_command(operate.close)
main.add_command(operate.cancel)
main.add_command(operate.remove)
main.add_command(operate.logs)
main.add_command(assignment.assignment)
main.add_command(plan.plan)
main.add_command(compare.compare)
main.add_command(cost.cost)
