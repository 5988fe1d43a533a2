"""``gradshard deploy``: the application to AWS."""

import click

from gradshard.cli.common import debuggable
from gradshard.deployment import deploy as deploying


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[SAM OPTIONS]...")
@debuggable
def deploy(options: tuple[str, ...]) -> None:
    """Build the application and deploy it to AWS.

    It runs `sam` and takes the options of `sam deploy`. --guided asks for what is needed, and keeps
    the answers in gradshard.toml in this folder. --parameter-overrides Architecture=x86_64 builds
    for that processor.
    """
    deploying.deploy(options)
