"""``gradshard deploy``: the application to AWS."""

import click

from gradshard.cli.common import debuggable
from gradshard.deployment import deploy as deploying


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[SAM OPTIONS]...")
@debuggable
def deploy(options: tuple[str, ...]) -> None:
    """Build the application and deploy it to AWS, with `sam`.

    All options are those of `sam deploy`; --guided asks for what it needs, and keeps the answers in
    gradshard.toml in this folder. --parameter-overrides Architecture=x86_64 builds for that
    processor too.
    """
    deploying.deploy(options)
