"""``gradshard submit``: upload a client's update."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradshard.cli.codec_options import codec_options, compression_of
from gradshard.cli.mask_options import mask_of, mask_options
from gradshard.cli.option_types import DurationType
from gradshard.cli.options import connected, json_option, option, quiet_option, ticket_option
from gradshard.cli.output import confirm, print_json
from gradshard.cli.terminal_progress import progress_bar
from gradshard.cli.ticket import load
from gradshard.utils.text import escape_terminal, format_size

if TYPE_CHECKING:
    from gradshard.client.federation import Federation


@click.command()
@click.argument("arguments", type=click.Path(), metavar="[ROUND CLIENT] FILE", nargs=-1)
@option(
    "--samples",
    type=int,
    metavar="N",
    help="Number of samples that the client trained on.",
    default_text="num_samples in the metadata of the file",
)
@click.option(
    "--partial",
    "is_partial",
    is_flag=True,
    help="Submit a partial update: the file holds only some of the layers.",
)
@codec_options
@mask_options
@option(
    "--train-seconds",
    type=DurationType(),
    metavar="DURATION",
    help="Report the time that the client trained, for example 90s or 30m.",
    default_text="not reported",
)
@option(
    "--batch-size",
    type=int,
    metavar="N",
    help="Report the number of samples per batch.",
    default_text="not reported",
)
@option(
    "--epochs",
    type=int,
    metavar="N",
    help="Report the number of epochs.",
    default_text="not reported",
)
@option(
    "--steps",
    type=int,
    metavar="N",
    help="Report the number of local steps of the optimizer.",
    default_text="not reported",
)
@click.option(
    "--parallel",
    is_flag=True,
    help="Send a large update over four connections at once, in about eleven requests instead of "
    "one. This helps if your network is faster than one connection.",
)
@ticket_option
@json_option
@quiet_option
@connected
def submit(
    federation: "Federation",
    arguments: tuple[str, ...],
    samples: int | None,
    is_partial: bool,
    codec: str | None,
    codec_fraction: float | None,
    codec_seed: int | None,
    residual: Path | None,
    mask_key: Path | None,
    keeper: str | None,
    parallel: bool,
    ticket: Path | None,
    as_json: bool,
    **training: float | None,
) -> None:
    """Upload a client's update.

    FILE is a .safetensors file. Give ROUND and CLIENT, or a --ticket, which names both.
    """
    if len(arguments) != 3 and not (ticket and len(arguments) == 1):
        raise click.UsageError("Give ROUND, CLIENT and FILE, or FILE and a --ticket.")
    *given, path = arguments
    compression = compression_of(
        codec=codec, codec_fraction=codec_fraction, codec_seed=codec_seed, residual=residual
    )
    mask = mask_of(mask_key, keeper)
    if ticket and parallel:
        raise click.UsageError(
            "A ticket says in which requests its update is sent: leave out --parallel."
        )
    if ticket:
        loaded = load(ticket, *given)
        name, client = loaded.id, loaded.client
        send: Callable[..., bool | None] = partial(loaded.submit, codec=compression, mask=mask)
    else:
        name, client = given
        send = partial(
            federation.round(name).submit,
            client,
            partial=is_partial,
            codec=compression,
            mask=mask,
            parallel=parallel,
        )
    file = Path(path)
    reported = {name: value for name, value in training.items() if value is not None}
    with progress_bar(f"submitting {file.name}") as progress:
        has_replaced = bool(send(file, samples, training=reported, progress=progress))
    nbytes = file.stat().st_size
    if as_json:
        print_json(
            {
                "round": name,
                "client": client,
                "file": str(file),
                "nbytes": nbytes,
                "replaced": has_replaced,
                **({"codec": codec, "codec_error": compression.error} if compression else {}),
            }
        )
        return
    text = (
        f"submitted {escape_terminal(file)} ({format_size(nbytes)}) to round "
        f"{escape_terminal(name)} as {escape_terminal(client)}"
    )
    if compression:
        text += f", compressed with codec {codec}, relative error {compression.error:.2g}"
    confirm(f"{text}; it replaces the update sent before" if has_replaced else text)
