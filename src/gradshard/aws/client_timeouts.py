"""How long clients wait for AWS, in seconds."""

from typing import Final

CONNECT_TIMEOUT_SECONDS: Final = 10

READ_TIMEOUT_SECONDS: Final = 30
