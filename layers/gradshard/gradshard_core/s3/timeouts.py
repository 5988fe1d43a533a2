"""How long functions wait for S3 before they ask again."""

from typing import Final

READ_SECONDS: Final = 15
"""Seconds in which a read has to fill its buffer (256 KiB); S3 sends a hundred times that.

It is shorter than the 20 s or so after which S3 gives up on the part that waits for these bytes."""

ANSWER_SECONDS: Final = 30
"""For a service to take or to answer what is sent. Reads of ranges have a shorter timeout."""
