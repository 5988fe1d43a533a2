"""The options of commands that compress updates."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradshard.cli.option_types import WholeNumberType
from gradshard.cli.options import Command, option, with_options
from gradshard_core.formats.codecs.registry import CODECS
from gradshard_core.formats.codecs.topk import USUAL_FRACTION

if TYPE_CHECKING:
    from gradshard.updates.compression import Compression

_OPTIONS = (
    option(
        "--codec",
        type=click.Choice(list(CODECS)),
        help="Compress the update with this codec, which loses some precision. The round must "
        "take the codec.",
        default_text="no compression",
    ),
    option(
        "--codec-fraction",
        type=float,
        metavar="X",
        help="Fraction of the elements that the codec topk keeps.",
        default_text=str(USUAL_FRACTION),
    ),
    option(
        "--codec-seed",
        type=WholeNumberType(0),
        metavar="N",
        help="Round values up or down at random, with random numbers from this seed. Give another "
        "seed in each round.",
        default_text="rounded to the nearest value",
    ),
    option(
        "--residual",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Store the part of the update that the codec loses in this file, and add it to the "
        "client's next update.",
        default_text="that part is lost",
    ),
)


def codec_options(command: Command) -> Command:
    """Add the options, which :func:`compression_of` reads."""
    return with_options(command, _OPTIONS)


def compression_of(
    *,
    codec: str | None,
    codec_fraction: float | None,
    codec_seed: int | None,
    residual: Path | None,
) -> "Compression | None":
    """Return how an update is compressed; None if it is not."""
    if codec is None:
        if (codec_fraction, codec_seed, residual) != (None, None, None):
            raise click.UsageError(
                "Give a --codec with --codec-fraction, --codec-seed and --residual."
            )
        return None
    from gradshard.updates.compression import Compression
    from gradshard.updates.residual import Residual

    return Compression(
        codec,
        seed=codec_seed,
        fraction=codec_fraction,
        residual=None if residual is None else Residual(residual),
    )
