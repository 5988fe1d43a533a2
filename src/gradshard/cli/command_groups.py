"""Groups of commands: modules loaded when a command runs, errors in one line, exit codes."""

import difflib
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import click

from gradshard.utils.interrupt_message import INTERRUPTED
from gradshard.utils.text import escape_terminal
from gradshard_core.errors import EngineError, GradshardError, RoundFailed, TrainingFailed

DEBUG: Final = "gradshard.debug"
"""The key in a context's ``meta`` by which an error shows its traceback."""

USAGE: Final = 2
ROUND_FAILED: Final = 3
"""Exit codes; any other error ends with 1."""


class Commands(click.Group):
    """A group of commands that prints an error as one line and exits with its code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except KeyboardInterrupt:
            raise _Failure(INTERRUPTED) from None
        except EOFError:
            raise _Failure(
                "a question was asked, such as for the code of an MFA device, and standard input "
                "has no answer: run the command in a terminal, or get a session first "
                "(aws sts get-session-token, aws sso login)"
            ) from None
        except Exception as error:
            if ctx.meta.get(DEBUG) or not _is_users(error):
                raise
            raise _Failure(_message(error), _exit_code(error)) from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; suggest the nearest name where there is none."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            hint = f" Did you mean `{ctx.command_path} {near[0]}`?" if near else ""
            raise click.UsageError(f"There is no command {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)


class Lazy(NamedTuple):
    """A command that is not loaded yet.

    Parameters
    ----------
    name
        The name of the command.
    module
        The module of :mod:`gradshard.cli` that defines it.
    attribute
        The name of the command object in the module.
    help
        The first sentence of its help.
    """

    name: str
    module: str
    attribute: str
    help: str

    def load(self) -> click.Command:
        """Import the command."""
        module = importlib.import_module(f"gradshard.cli.{self.module}")
        command: click.Command = getattr(module, self.attribute)
        return command


class LazyCommands(Commands):
    """A group that lists commands by subject and loads a command when it is needed.

    Parameters
    ----------
    sections
        The commands under the headings that the help shows.
    """

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[Lazy]], **more: Any) -> None:
        super().__init__(*args, **more)
        self.sections = sections
        self._lazy = {lazy.name: lazy for members in sections.values() for lazy in members}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names, in the order of the help."""
        del ctx
        return [*self._lazy]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command; None if there is none of that name."""
        del ctx
        lazy = self._lazy.get(cmd_name)
        return None if lazy is None else lazy.load()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections, without loading a command."""
        del ctx
        width = max(map(len, self._lazy))
        for title, members in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(lazy.name.ljust(width), lazy.help) for lazy in members])


class _Failure(click.ClickException):
    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def show(self, file: Any = None) -> None:
        click.echo(f"gradshard: {self.message}", err=True, file=file)


def _is_users(error: Exception) -> bool:
    """Return whether the user can solve an error, so that it is no defect of gradshard."""
    if isinstance(error, GradshardError | OSError | click.UsageError):
        return True
    # Code that raised such an error has imported it. Importing it here would take most of the time
    # of a short command.
    botocore = sys.modules.get("botocore.exceptions")
    return botocore is not None and isinstance(error, botocore.BotoCoreError | botocore.ClientError)


def _exit_code(error: Exception) -> int:
    if isinstance(error, click.UsageError):
        return USAGE
    return ROUND_FAILED if isinstance(error, RoundFailed | TrainingFailed) else 1


def _message(error: Exception) -> str:
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "gradshard"
        text = error.format_message().rstrip(".")
        return escape_terminal(f"{text}{'' if text.endswith('?') else '.'} See `{path} --help`.")
    if isinstance(error, EngineError):
        # Ends with lines of a log.
        return "\n".join(escape_terminal(line) for line in str(error).splitlines())
    if isinstance(error, OSError) and error.strerror is not None:
        return escape_terminal(
            ": ".join(str(part) for part in (error.filename, error.strerror) if part)
        )
    return escape_terminal(str(error) or type(error).__name__)
