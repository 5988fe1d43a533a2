"""``gradshard open``, ``submit`` and ``fetch``: open a round, upload to it, download its result."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradshard.cli.codec_options import codec_options, compression_of
from gradshard.cli.mask_options import mask_of, mask_options
from gradshard.cli.option_types import DurationType
from gradshard.cli.options import (
    connected,
    json_option,
    option,
    output_option,
    quiet_option,
    ticket_option,
)
from gradshard.cli.options_from_spec import round_options
from gradshard.cli.output import confirm, confirm_file, print_json
from gradshard.cli.terminal_progress import progress_bar, waiting
from gradshard.cli.ticket import load, named
from gradshard.utils.text import escape_terminal, format_size, pluralize
from gradshard_core.specs.round_spec import DEFAULT_TIMEOUT

if TYPE_CHECKING:
    from gradshard.client.federation import Federation


@click.command("open")
@click.argument("name", metavar="ROUND")
@click.option(
    "--client",
    "ids",
    metavar="ID",
    multiple=True,
    help="Expect this client. Repeat the option for each client.",
)
@click.option(
    "--clients",
    "count",
    type=int,
    metavar="N",
    help="Expect this number of clients, with any ids, instead of --client.",
)
@round_options()
@json_option
@quiet_option
@connected
def open_(
    federation: "Federation",
    name: str,
    ids: tuple[str, ...],
    count: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Open a round for some clients.

    Give each client with --client, or their number with --clients. If you repeat the command with
    the same options, nothing changes.
    """
    if bool(ids) == (count is not None):
        raise click.UsageError(
            "Give the expected clients by --client, or their number by --clients."
        )
    with waiting(f"opening round {name}"):
        round_ = federation.open_round(name, list(ids) if count is None else count, **options)
    if as_json:
        print_json({"round": name, "bucket": federation.bucket, "spec": round_.spec().to_json()})
    elif not round_.is_new and round_.has_ended():
        confirm(
            f"round {escape_terminal(name)} was opened before, with these options, and has ended"
        )
    else:
        expected = pluralize(count or len(ids), "client")
        timeout = options["timeout"] or DEFAULT_TIMEOUT
        confirm(f"round {escape_terminal(name)} is open for {expected}, for {timeout} s")


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


@click.command()
@click.argument("name", metavar="[ROUND]", required=False)
@output_option("Write the average to this .safetensors file.")
@ticket_option
@json_option
@quiet_option
@connected
def fetch(
    federation: "Federation", name: str | None, file: Path, ticket: Path | None, as_json: bool
) -> None:
    """Write the average of a completed round to a file.

    Give ROUND, or a --ticket, which names it. If the download is interrupted, the same command
    resumes it.
    """
    if ticket:
        loaded = load(ticket, name)
        round_id, download = loaded.id, partial(loaded.fetch, file)
    else:
        round_id = named(name)
        download = partial(federation.round(round_id).fetch, file)
    with progress_bar(f"fetching {file.name}") as progress:
        download(progress=progress)
    confirm_file(file, {"round": round_id}, as_json=as_json)
