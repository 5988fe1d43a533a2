"""``gradshard local``: run the application on this machine."""

import shlex
import sys
from typing import Any

import click

from gradshard.cli.command_groups import Commands
from gradshard.cli.options import debuggable, json_option, option, port_option, quiet_option
from gradshard.cli.output import confirm, print_json
from gradshard.cli.terminal_progress import waiting
from gradshard.local_engine import lifecycle as engines


@click.group(cls=Commands, invoke_without_command=True)
@click.pass_context
def local(context: click.Context) -> None:
    """Run the application on this machine.

    The local engine stands in for AWS. It needs Linux and Python 3.13. Other commands use it with
    --local.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@local.command()
@port_option
@option(
    "--bind",
    metavar="ADDRESS",
    help="Listen on this IP address, too. Anyone who reaches it and has the key of the engine can "
    "run code on this machine as you.",
    default_text="this machine alone reaches the engine",
)
@click.option(
    "--ephemeral", is_flag=True, help="Keep objects in memory only: `local down` deletes them."
)
@click.option("--keeper", is_flag=True, help="Deploy the mask keeper of masked rounds, too.")
@json_option
@quiet_option
@debuggable
def up(port: int, bind: str | None, ephemeral: bool, keeper: bool, as_json: bool) -> None:
    """Start the local engine and deploy the application to it.

    If the engine runs already, the command deploys what has changed. The engine brings back the
    rounds and models that it kept under this port. --port 0 picks a free port.
    """
    with waiting("starting the local engine") as tell:
        engine = engines.up(port, bind=bind, ephemeral=ephemeral, keeper=keeper, progress=tell)
    if as_json:
        print_json(_facts(engine, deployed=True) | {"port": engine.port})
        return
    confirm(f"the local engine runs at {engine.url}; its log is {engine.log}")
    confirm(f"use it with --local{engine.port_option}, or in a shell with:")
    confirm(f'  eval "$(gradshard local env{engine.port_option})"')
    if bind:
        confirm(
            f"every machine or container that reaches {bind} and has the engine's key can run code "
            "on this machine as you"
        )
        confirm("in such a shell, a function runs in a container with:")
        confirm(f"  sam local invoke NAME -e EVENT.json --config-file {engine.container_settings}")


@local.command()
@port_option
@debuggable
def env(port: int) -> None:
    """Print the variables with which programs use the engine.

    Run eval "$(gradshard local env)" to set them in your shell. They include the key of the engine.
    """
    for name, value in engines.find(port).environment.items():
        click.echo(f"export {name}={shlex.quote(value)}")


@local.command()
@port_option
@click.option("--delete", is_flag=True, help="Delete its rounds and models, too.")
@json_option
@quiet_option
@debuggable
def down(port: int, delete: bool, as_json: bool) -> None:
    """Stop the local engine.

    Rounds and models stay on disk, unless the engine was started with --ephemeral. The next
    `gradshard local up` with the same port brings them back.
    """
    stopped = engines.down(port, delete=delete)
    if as_json:
        print_json({"port": port, "stopped": stopped})
    elif stopped:
        confirm(f"the engine on port {port} was stopped")
    else:
        confirm(f"no engine ran on port {port}{_others()}")


@local.command()
@port_option
@json_option
@debuggable
def status(port: int, as_json: bool) -> None:
    """Show whether the local engine runs.

    The exit code is 0 if the engine runs and the application is deployed, and 1 otherwise.
    """
    engine = engines.status(port)
    ready = engine.deployed and engines.has_application(engine)
    if as_json:
        print_json(_facts(engine, deployed=ready))
    elif ready:
        click.echo(f"running at {engine.url} (process {engine.pid}); log: {engine.log}")
    elif engine.running:
        click.echo(
            f"running at {engine.url}, but the application is not deployed: "
            f"`{engine.start_command}`"
        )
    else:
        click.echo(f"not running on port {port}{_others()}; start it with `{engine.start_command}`")
    sys.exit(0 if ready else 1)


def _facts(engine: engines.Engine, *, deployed: bool) -> dict[str, Any]:
    return {
        "running": engine.running,
        "deployed": deployed,
        "url": engine.url,
        "pid": engine.pid,
        "log": str(engine.log),
    }


def _others() -> str:
    found = engines.elsewhere()
    return f" ({found})" if found else ""
