"""The options with which a command masks updates."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradshard.cli.options import Command, option, with_options

if TYPE_CHECKING:
    from gradshard.updates.mask import Mask


def mask_options(command: Command) -> Command:
    """Add the options of masked rounds to a command of a client."""
    options: tuple[Callable[[Command], Command], ...] = (
        option(
            "--mask-key",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Mask the update, and sign with the key in this file, which `gradshard keeper "
            "identity` makes.",
            default_text="not masked",
        ),
        option(
            "--keeper",
            metavar="FINGERPRINT",
            help="Send nothing unless the mask keeper of the round has the key with this "
            "fingerprint.",
            default_text="none, but required with --mask-key",
        ),
    )
    return with_options(command, options)


def mask_of(key: Path | None, keeper: str | None) -> "Mask | None":
    """Return how updates are masked; None if they are not."""
    if (key is None) != (keeper is None):
        raise click.UsageError("Give --mask-key and --keeper together.")
    if key is None or keeper is None:
        return None
    from gradshard.updates.mask import Mask

    return Mask(key, keeper)
