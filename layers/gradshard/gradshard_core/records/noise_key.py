"""The key of a private round's noise: written when tasks are planned to add it, then deleted.

No client may read it: with the key, anyone can subtract the noise from the result.
"""

import os

from gradshard_core.errors import PlanError
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.privacy.noise import KEY_BYTES
from gradshard_core.s3.store import S3Store


def write_noise_key(store: S3Store, keys: RoundKeys) -> None:
    """Draw the round's key, unless it has one: every plan of a round has the same noise."""
    store.put_json(keys.noise_key, {"key": os.urandom(KEY_BYTES).hex()}, replaces=None)


def read_noise_key(store: S3Store, keys: RoundKeys) -> bytes:
    """Read the round's key.

    Raises
    ------
    PlanError
        It is missing: the round has ended.
    """
    key = store.get_json(keys.noise_key, lambda written: bytes.fromhex(written["key"]))
    if key is None:
        raise PlanError(f"{keys.noise_key} is missing: it is deleted when the round ends")
    return bytes(key)


def delete_noise_key(store: S3Store, keys: RoundKeys) -> None:
    """Delete the round's key in all versions, so that nobody ever reads it again."""
    store.delete_versions(keys.secrets)
