"""``gradshard convert``: files of other programs to safetensors."""

from pathlib import Path
from typing import Final

import click

from gradshard.cli.common import debuggable, json_option, output_option, print_json, progress_bar
from gradshard.client import conversion as converting
from gradshard.utils.text import escape_terminal, format_size, pluralize

SHOWN: Final = 20
"""So many entries that were left out are listed; --json has all."""


@click.command()
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@output_option("The .safetensors file to write.")
@click.option("--samples", type=int, metavar="N", help="Put num_samples into the metadata.")
@click.option(
    "--key", metavar="NAME", help="Under which a checkpoint has the state_dict, if that is unclear."
)
@json_option
@debuggable
def convert(source: Path, file: Path, samples: int | None, key: str | None, as_json: bool) -> None:
    """Convert .npz and PyTorch files to safetensors.

    It prints what it left out. Objects in the file are never unpickled.
    """
    with progress_bar(f"converting {source.name}") as tell:
        done = converting.convert(source, file, samples=samples, key=key, progress=tell)
    if as_json:
        print_json(
            {
                "file": str(file),
                "nbytes": done.nbytes,
                "tensors": len(done.layout.tensors),
                "num_samples": samples,
                "left_out": [entry._asdict() for entry in done.left_out],
            }
        )
        return
    tensors = pluralize(len(done.layout.tensors), "tensor")
    click.echo(f"wrote {escape_terminal(file)} ({tensors}, {format_size(done.nbytes)})")
    for entry in done.left_out[:SHOWN]:
        click.echo(f"left out {escape_terminal(entry.name)}: {escape_terminal(entry.reason)}")
    if len(done.left_out) > SHOWN:
        click.echo(f"left out {len(done.left_out) - SHOWN} more; --json lists them")
