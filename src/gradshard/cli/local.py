"""``gradshard local``: the application on this machine."""

import shlex
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
@click.option(
    "--bind",
    metavar="ADDRESS",
    help="One more address to listen on. Anyone who reaches it and has the engine's key can run "
    "code as you.",
)
@debuggable
def up(port: int, bind: str | None) -> None:
    """Start the local engine and deploy the application to it."""
    with waiting("starting the local engine") as tell:
        engine = engines.up(port, bind=bind, progress=tell)
    click.echo(f"the local engine runs at {engine.url}; its log is {engine.log}")
    click.echo(f"use it with --local{engine.port_option}, or in a shell with:")
    click.echo(f'  eval "$(gradshard local env{engine.port_option})"')
    if bind:
        click.echo(
            f"every machine or container that reaches {bind} and has the engine's key can run code "
            "on this machine as you"
        )
        click.echo("in such a shell, a function runs in a container with:")
        click.echo(
            f"  sam local invoke NAME -e EVENT.json --config-file {engine.container_settings}"
        )


@local.command()
@port_option
@debuggable
def env(port: int) -> None:
    """Print the variables that have other programs use the local engine, its key among them."""
    for name, value in engines.find(port).environment.items():
        click.echo(f"export {name}={shlex.quote(value)}")


@local.command()
@port_option
@debuggable
def down(port: int) -> None:
    """Stop the local engine; its rounds go with it."""
    stopped = engines.down(port)
    if stopped:
        click.echo(f"the engine on port {port} was stopped")
    else:
        click.echo(f"no engine ran on port {port}{_others()}")


@local.command()
@port_option
@json_option
@debuggable
def status(port: int, as_json: bool) -> None:
    """Say whether the local engine runs; the exit code says it too."""
    engine = engines.status(port)
    ready = engine.deployed and engines.has_application(engine)
    if as_json:
        print_json(
            {
                "running": engine.running,
                "deployed": ready,
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
        click.echo(f"not running on port {port}{_others()}; start it with `{engine.starting}`")
    sys.exit(0 if ready else 1)


def _others() -> str:
    found = engines.elsewhere()
    return f" ({found})" if found else ""
