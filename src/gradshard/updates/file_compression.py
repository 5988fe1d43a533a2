"""Compression and decompression of updates in .safetensors files."""

from pathlib import Path

from gradshard.updates.compression import Compression, DecodedContent, EncodedContent
from gradshard.updates.upload_source import Content, FileContent
from gradshard.updates.uploads import Progress
from gradshard.utils.atomic_file import atomic_file
from gradshard_core.errors import UpdateError
from gradshard_core.formats.compressed_updates import EncodedLayout
from gradshard_core.formats.tensor_layout import PREFIX_BYTES, Layout
from gradshard_core.units import MIB


def recompress(
    source: Path,
    target: Path,
    compression: Compression | None,
    *,
    samples: int | None = None,
    progress: Progress | None = None,
) -> tuple[Layout, int]:
    """Write an update compressed or, without a compression, decoded; 1 MiB at a time.

    Parameters
    ----------
    source
        A .safetensors file.
    target
        The file to write; it appears when it is whole.
    compression
        The compression to apply; None to decode.
    samples
        The number of samples for the metadata.
    progress
        Called with the bytes done and the total.

    Returns
    -------
    Layout
        The tensors, decoded.
    int
        The size of the file.

    Raises
    ------
    UpdateError
        The file is compressed already, or is not compressed where it is to be decoded.
    """
    with FileContent(source, samples, is_model=True, takes_codecs=True) as content:
        is_compressed = isinstance(content.layout, EncodedLayout)
        if is_compressed == (compression is not None):
            what = "is compressed already" if is_compressed else "is not compressed"
            raise UpdateError(f"{source} {what}")
        written: Content = (
            DecodedContent(content) if compression is None else EncodedContent(content, compression)
        )
        with atomic_file(target, written.nbytes) as file:
            for start in range(0, written.nbytes, MIB):
                end = min(start + MIB, written.nbytes)
                file.write(written.read(start, end))
                if progress:
                    progress(end, written.nbytes)
        return written.layout.decoded, written.nbytes


def is_encodable(source: Path, compression: Compression | None) -> bool:
    """Whether a file is a .safetensors file that can be compressed or, without one, decoded.

    Raises
    ------
    UpdateError
        It begins as a .safetensors file, and is none that can be read.
    """
    try:
        with FileContent(source, None, is_model=True, takes_codecs=True) as content:
            return compression is not None or isinstance(content.layout, EncodedLayout)
    except UpdateError:
        with source.open("rb") as file:
            if file.read(PREFIX_BYTES + 1)[PREFIX_BYTES:] == b"{":
                raise
        return False
