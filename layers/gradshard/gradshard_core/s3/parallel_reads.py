"""How many objects a function, or a client, reads side by side."""

from typing import Final

SMALL_OBJECT_READERS: Final = 16
"""Of records of some kB: each is a wait for S3, and little else."""

HEADER_READERS: Final = 8
"""Of headers, in functions: parsed, a header takes up to 25 times its size."""
