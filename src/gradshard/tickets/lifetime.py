"""How long a ticket is valid, for commands too: their help does not load how tickets are made."""

from typing import Final

DEFAULT_SECONDS: Final = 24 * 3600

MAX_SECONDS: Final = 7 * 24 * 3600
"""The most seconds for which S3 accepts a presigned URL,
https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-presigned-url.html (2026-11)."""
