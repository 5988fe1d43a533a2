"""Groups of commands, whose modules are loaded when a command runs."""

import difflib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import click

from gradshard.cli.errors import DEBUG, NO_ANSWER, Failure, exit_code_of, is_users, message_of
from gradshard.utils.interrupt_message import INTERRUPTED


class Commands(click.Group):
    """A group of commands that prints an error as one line and exits with its code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except KeyboardInterrupt:
            raise Failure(INTERRUPTED) from None
        except EOFError:
            raise Failure(NO_ANSWER) from None
        except Exception as error:
            if ctx.meta.get(DEBUG) or not is_users(error):
                raise
            raise Failure(message_of(error), exit_code_of(error)) from None

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
