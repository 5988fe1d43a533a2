"""All codecs, by name."""

from collections.abc import Iterable
from typing import Final

from gradshard_core.errors import UpdateError
from gradshard_core.formats.codecs.fp8 import Fp8
from gradshard_core.formats.codecs.int4 import Int4
from gradshard_core.formats.codecs.int8 import Int8
from gradshard_core.formats.codecs.scaled_block import BlockCodec
from gradshard_core.formats.codecs.topk import TopK

Codec = BlockCodec | TopK

CODECS: Final[dict[str, Codec]] = {codec.name: codec for codec in (Int8(), Fp8(), Int4(), TopK())}


def codec_named(name: str) -> Codec:
    """Return the codec of this name.

    Raises
    ------
    UpdateError
        There is none.
    """
    codec = CODECS.get(name)
    if codec is None:
        raise UpdateError(f"codec {name[:80]!r} is unknown; there are {', '.join(CODECS)}")
    return codec


def list_names(names: Iterable[str]) -> str:
    """Return names of codecs for a message."""
    return ", ".join(names) or "none"
