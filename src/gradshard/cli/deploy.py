"""``gradshard deploy``: deploy the application to AWS."""

import shlex

import click

from gradshard.cli.options import debuggable
from gradshard.deployment import deploy as deploying
from gradshard.deployment.defaults import STACK


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[SAM OPTIONS]...")
@click.option(
    "--keeper", is_flag=True, help="Deploy the mask keeper of masked rounds, not the application."
)
@debuggable
def deploy(options: tuple[str, ...], keeper: bool) -> None:
    """Build the application and deploy it to AWS.

    The command runs `sam` and takes the options of `sam deploy`. --guided asks for every setting
    and stores the answers in ~/.config/gradshard/deploy.toml, or in the --config-file.
    --parameter-overrides Architecture=x86_64 builds for that processor.
    """
    deployed = deploying.deploy(options, keeper=keeper)
    stack, region = deployed.stack, deployed.region or "your region"
    click.echo(f"\nstack {stack} is deployed to {region}")
    for name, value in deployed.variables.items():
        click.echo(f"  export {name}={shlex.quote(value)}")
    named = "" if stack == STACK else f" --stack {stack}"
    if keeper:
        click.echo(f"make its key:  gradshard keeper key --stack {stack}")
    else:
        click.echo(f"try it:     gradshard open r1 --client alice --client bob{named}")
    where = f" --region {region}" if deployed.region else ""
    click.echo(f"remove it:  sam delete --stack-name {stack}{where} --no-prompts")
