"""``gradshard convert``: convert files to safetensors, and compress or decode updates."""

from pathlib import Path
from typing import Final

import click

from gradshard.cli.options import debuggable, json_option, option, output_option, quiet_option
from gradshard.cli.output import confirm, print_json
from gradshard.cli.terminal_progress import progress_bar
from gradshard.updates import conversion as converting
from gradshard.updates.compression import Compression
from gradshard.utils.text import escape_terminal, format_size, pluralize
from gradshard_core.formats.codecs.registry import CODECS

SHOWN: Final = 20
"""This number of left-out entries is listed; --json lists all."""


@click.command()
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@output_option("Write this .safetensors file.")
@option(
    "--samples",
    type=int,
    metavar="N",
    help="Store this number of training samples in the metadata, as num_samples.",
    default_text="none is stored",
)
@option(
    "--key",
    metavar="NAME",
    help="Read the state_dict from this entry of a checkpoint.",
    default_text="the checkpoint itself, or its only entry with tensors",
)
@option(
    "--codec",
    type=click.Choice(list(CODECS)),
    help="Compress the tensors with this codec, which loses some precision.",
    default_text="no compression",
)
@json_option
@quiet_option
@debuggable
def convert(
    source: Path, file: Path, samples: int | None, key: str | None, codec: str | None, as_json: bool
) -> None:
    """Convert files to safetensors, compress them or decode them.

    FILE is an .npz archive, a PyTorch checkpoint, or a .safetensors file. A compressed .safetensors
    file is decoded. The command lists the entries that it leaves out. It never runs code from FILE.
    """
    compression = None if codec is None else Compression(codec)
    with progress_bar(f"converting {source.name}") as tell:
        done = converting.convert(
            source, file, samples=samples, key=key, compression=compression, progress=tell
        )
    if as_json:
        print_json(
            {
                "file": str(file),
                "nbytes": done.nbytes,
                "tensors": len(done.layout.tensors),
                "num_samples": samples,
                "left_out": [entry._asdict() for entry in done.left_out],
                **({"codec": codec, "codec_error": compression.error} if compression else {}),
            }
        )
        return
    tensors = pluralize(len(done.layout.tensors), "tensor")
    confirm(f"wrote {escape_terminal(file)} ({tensors}, {format_size(done.nbytes)})")
    for entry in done.left_out[:SHOWN]:
        confirm(f"left out {escape_terminal(entry.name)}: {escape_terminal(entry.reason)}")
    if len(done.left_out) > SHOWN:
        confirm(f"left out {len(done.left_out) - SHOWN} more; --json lists them")
