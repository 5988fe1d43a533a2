"""Errors of the command: which are the user's, their message in one line, and the exit codes."""

import sys
from typing import Any, Final

import click

from gradshard.utils.text import escape_terminal
from gradshard_core.errors import EngineError, GradshardError, RoundFailed, TrainingFailed

DEBUG: Final = "gradshard.debug"
"""The key in a context's ``meta`` by which an error shows its traceback."""

USAGE: Final = 2
ROUND_FAILED: Final = 3
"""Exit codes; any other error ends with 1."""

NO_ANSWER: Final = (
    "a question was asked, such as for the code of an MFA device, and standard input has no "
    "answer: run the command in a terminal, or get a session first (aws sts get-session-token, aws "
    "sso login)"
)
"""The message where a question meets the end of standard input."""


class Failure(click.ClickException):
    """An error of the command, which it prints in one line before it ends with a code."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def show(self, file: Any = None) -> None:
        """Print the error."""
        click.echo(f"gradshard: {self.message}", err=True, file=file)


def is_users(error: Exception) -> bool:
    """Return whether the user can solve an error, so that it is no defect of gradshard."""
    if isinstance(error, GradshardError | OSError | click.UsageError):
        return True
    # Code that raised such an error has imported it. Importing it here would take most of the time
    # of a short command.
    botocore = sys.modules.get("botocore.exceptions")
    return botocore is not None and isinstance(error, botocore.BotoCoreError | botocore.ClientError)


def exit_code_of(error: Exception) -> int:
    """Return the code with which the command ends after an error."""
    if isinstance(error, click.UsageError):
        return USAGE
    return ROUND_FAILED if isinstance(error, RoundFailed | TrainingFailed) else 1


def message_of(error: Exception) -> str:
    """Return what the command says of an error: one line, and of the engine also a log's end."""
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
