"""A client's identity: the secret file from which its masks and signatures are made."""

import contextlib
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from gradshard.utils.atomic_file import open_private
from gradshard_core.errors import UpdateError

IDENTITY_BYTES: Final = 32
"""The size of a client's private key."""


def need_libraries() -> None:
    """Check that the packages are installed which masking needs.

    Raises
    ------
    UpdateError
        They are not.
    """
    if find_spec("cryptography") is None or find_spec("pyhpke") is None:
        raise UpdateError("masked rounds need more packages: pip install 'gradshard[masked]'")


def make_identity(file: Path) -> str:
    """Write a new private key for a client to a file, unless it is there; return the public key.

    Only its user may read the file.
    """
    need_libraries()
    from gradshard_core.masking import signing

    with contextlib.suppress(FileExistsError), open_private(file, os.O_CREAT | os.O_EXCL) as made:
        made.write(f"{signing.new_signing_key().hex()}\n".encode())
    return signing.verification_key(read_identity(file)).hex()


def read_identity(file: Path) -> bytes:
    """Return the private key in a file.

    Raises
    ------
    UpdateError
        There is no such file, or it has no key.
    """
    advice = "make one with `gradshard keeper identity FILE`, and have it enrolled"
    try:
        key = bytes.fromhex(file.read_text(encoding="ascii").strip())
    except FileNotFoundError:
        raise UpdateError(f"there is no signing key at {file}: {advice}") from None
    except ValueError:
        raise UpdateError(f"{file} is no signing key: {advice}") from None
    if len(key) != IDENTITY_BYTES:
        raise UpdateError(f"{file} has a key of {len(key)} bytes, not {IDENTITY_BYTES}: {advice}")
    return key
