"""``gradshard local``: the application on this machine."""

import sys

import click

from gradshard.cli.common import debuggable, json_option, port_option, print_json, waiting
from gradshard.cli.group import Commands
from gradshard.deployment import local_engine as engines


@click.group(cls=Commands, invoke_without_command=True)
@click.pass_context
def local(context: click.Context) -> None:
    """Run the application on this machine."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@local.command()
@port_option
@click.option("--bind", metavar="ADDRESS", help="One more address to listen on.")
@debuggable
def up(port: int, bind: str | None) -> None:
    """Start the local engine and deploy the application to it."""
    with waiting("starting the local engine") as tell:
        engine = engines.up(port, bind=bind, progress=tell)
    click.echo(f"the local engine runs at {engine.url}; its log is {engine.log}")
    click.echo("use it with --local, or in a shell with:")
    for name, value in engine.environment.items():
        click.echo(f"  export {name}={value}")


@local.command()
@port_option
@debuggable
def down(port: int) -> None:
    """Stop the local engine; its rounds go with it."""
    stopped = engines.down(port)
    click.echo(
        f"the engine on port {port} was stopped" if stopped else f"no engine ran on port {port}"
    )


@local.command()
@port_option
@json_option
@debuggable
def status(port: int, as_json: bool) -> None:
    """Say whether the local engine runs; the exit code says it too."""
    engine = engines.status(port)
    ready = engine.running and engine.deployed
    if as_json:
        print_json(
            {
                "running": engine.running,
                "deployed": engine.deployed,
                "url": engine.url,
                "pid": engine.pid,
                "log": str(engine.log),
            }
        )
    elif ready:
        click.echo(f"running at {engine.url} (process {engine.pid}); log: {engine.log}")
    elif engine.running:
        click.echo(
            f"running at {engine.url}, but the application is not deployed: `{engine.starting}`"
        )
    else:
        click.echo(f"not running on port {port}; start it with `{engine.starting}`")
    sys.exit(0 if ready else 1)
