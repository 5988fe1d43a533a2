"""Options that several commands share."""

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from gradshard.cli.errors import DEBUG
from gradshard.cli.option_types import DurationType, WholeNumberType, format_seconds
from gradshard.cli.output import QUIET
from gradshard.deployment.defaults import DEFAULT_PORT, STACK
from gradshard.tickets.lifetime import DEFAULT_SECONDS, MAX_SECONDS

Command = TypeVar("Command", bound=Callable[..., Any])


def option(
    *names: str,
    help: str,  # noqa: A002 - the word of click
    default_text: str = "",
    **settings: Any,
) -> Callable[[Command], Command]:
    """Return an option whose help ends with its default.

    Parameters
    ----------
    names, settings
        The arguments of :func:`click.option`.
    help
        The action of the option, and its unit.
    default_text
        The default and the bounds, where click cannot know them.
    """
    text = f"{help} [default: {default_text}]" if default_text else help
    return click.option(*names, help=text, **settings)


def with_options(command: Command, declared: Sequence[Callable[[Command], Command]]) -> Command:
    """Add options to a command, in this order in its help."""
    for add in reversed(declared):
        command = add(command)
    return command


def debuggable(command: Command) -> Command:
    """Add ``--debug``."""

    def remember(context: click.Context, _option: click.Parameter, debug: bool) -> None:
        context.meta[DEBUG] = debug

    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=remember,
        help="Show the traceback of an error.",
    )(command)


def quiet_option(command: Command) -> Command:
    """Add ``--quiet``."""

    def remember(context: click.Context, _option: click.Parameter, quiet: bool) -> None:
        context.meta[QUIET] = quiet

    return click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=remember,
        help="Print no confirmations and no progress; errors and --json are still printed.",
    )(command)


def verbose_option(command: Command) -> Command:
    """Add ``--verbose``."""

    def log(_context: click.Context, _option: click.Parameter, verbose: bool) -> None:
        if verbose:
            _log_requests()

    return click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=log,
        help="Print each request to AWS on standard error.",
    )(command)


class _RequestFormatter(logging.Formatter):
    """Formats the record that botocore logs before a request."""

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.args, tuple) and len(record.args) == 2:
            operation, request = record.args
            if isinstance(request, dict):
                name = getattr(operation, "name", "request")
                # A URL may have a signature in its query.
                url = str(request.get("url", "")).partition("?")[0]
                return f"gradshard: {name}: {request.get('method', '')} {url}"
        return ""


def _log_requests() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_RequestFormatter())
    handler.addFilter(lambda record: str(record.msg).startswith("Making request for"))
    logger = logging.getLogger("botocore.endpoint")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False


def connected(
    command: Command,
    default_stack: str = STACK,
    loads: Callable[..., Any] | None = None,
) -> Command:
    """Add the options that name the application; the command gets them as ``federation``.

    Parameters
    ----------
    command
        The command.
    default_stack
        The name of the stack without ``--stack``.
    loads
        The class that is made with the options, if it is not a federation.
    """

    @functools.wraps(command)
    def connecting(
        *,
        stack: str,
        region: str | None,
        profile: str | None,
        local: bool,
        port: int,
        **arguments: Any,
    ) -> Any:
        federation = connect(
            stack, region=region, profile=profile, local=local, port=port, loads=loads
        )
        return command(federation=federation, **arguments)

    stack_option = click.option(
        "--stack",
        default=default_stack,
        show_default=True,
        metavar="NAME",
        help="Use this CloudFormation stack.",
    )
    # Shown in the opposite order.
    return stack_option(where_options(verbose_option(debuggable(connecting))))  # type: ignore[return-value]


def connect(
    stack: str,
    *,
    region: str | None,
    profile: str | None,
    local: bool,
    port: int,
    loads: Callable[..., Any] | None = None,
) -> Any:
    """Return the federation that the options name; nothing is asked of it yet."""
    if local and (region or profile):
        raise click.UsageError("--region and --profile are for AWS: leave them out with --local.")
    # It loads boto3, which help and wrong usage do not need.
    from gradshard.client.federation import Federation

    return (loads or Federation)(stack, region=region, profile=profile, local=local, port=port)


def where_options(command: Command) -> Command:
    """Add ``--region``, ``--profile``, ``--local`` and ``--port``."""
    options = (
        option(
            "--region",
            metavar="REGION",
            help="Use the stack in this AWS region.",
            default_text="the region of the AWS configuration, else that of the last deployment",
        ),
        option(
            "--profile",
            metavar="NAME",
            help="Use the credentials of this AWS profile.",
            default_text="those of the AWS configuration",
        ),
        click.option("--local", is_flag=True, help="Use the local engine instead of AWS."),
        port_option,
    )
    return with_options(command, options)


def port_option(command: Command) -> Command:
    """Add ``--port``."""
    return click.option(
        "--port",
        type=WholeNumberType(0, 65535),
        default=DEFAULT_PORT,
        show_default=True,
        metavar="N",
        help="TCP port of the local engine.",
    )(command)


def output_option(
    what: str, *, required: bool = True, **settings: Any
) -> Callable[[Command], Command]:
    """Add ``-o``, the file to write, given as ``file``."""

    def check(_context: click.Context, _option: click.Parameter, file: Path | None) -> Path | None:
        if file == Path("-"):
            raise click.BadParameter(
                "Output cannot go to standard output (-), because the file appears when it is "
                "complete. Name a file."
            )
        return file

    return option(
        "-o",
        "--output",
        "file",
        type=click.Path(path_type=Path),
        required=required,
        show_default="default" in settings,
        metavar="FILE",
        callback=check,
        help=what,
        **settings,  # newer clicks take a default of None for one
    )


def json_option(command: Command) -> Command:
    """Add ``--json``, given as ``as_json``."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON document, for scripts."
    )(command)


def ticket_option(command: Command) -> Command:
    """Add ``--ticket``, given as ``ticket``."""
    return click.option(
        "--ticket",
        "ticket",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Use this ticket instead of AWS credentials.",
    )(command)


def expires_option(command: Command) -> Command:
    """Add ``--expires``, the seconds for which a ticket is made."""
    return option(
        "--expires",
        type=DurationType(MAX_SECONDS),
        default=DEFAULT_SECONDS,
        metavar="DURATION",
        help="Let the ticket expire after this time, for example 30m, 2h or 7d.",
        default_text=f"{format_seconds(DEFAULT_SECONDS)}; at most {format_seconds(MAX_SECONDS)}",
    )(command)
