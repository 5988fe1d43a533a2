"""CRC-64/NVME, which S3 computes of what is stored in it, at a fortieth of the time of an MD5."""

import base64
import sys
from collections.abc import Callable
from importlib import import_module
from threading import Lock
from typing import Any, Final

LIBRARY: Final = "awscrt"

NBYTES: Final = 8

_IMPORTING: Final = Lock()
"""Parts are sent by several threads, and one might remove what another is importing."""


class Crc64:
    """The CRC of bytes that are given piece by piece."""

    def __init__(self) -> None:
        self._value, self._function = 0, _function()

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes."""
        self._value = self._function(data, self._value)

    @property
    def text(self) -> str:
        """The CRC as S3 has it: most significant byte first, in base64."""
        return base64.b64encode(self._value.to_bytes(NBYTES, "big")).decode()


def crc64_text(data: bytes | bytearray | memoryview) -> str:
    """Return the CRC of bytes, as S3 has it."""
    crc = Crc64()
    crc.update(data)
    return crc.text


def _function() -> Callable[[Any, int], int]:
    """Import AWS's code for it, which short commands do without.

    botocore would load it everywhere, so :mod:`gradshard.utils.light_imports` hides it.
    """
    modules: dict[str, Any] = sys.modules
    with _IMPORTING:
        if modules.get(LIBRARY, modules) is None:
            del modules[LIBRARY]
        function: Callable[[Any, int], int] = import_module(f"{LIBRARY}.checksums").crc64nvme
    return function
