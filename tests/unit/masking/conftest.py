"""Tests of masking: without its libraries, which no installation has yet, only those of numbers."""

from importlib.util import find_spec

NEEDING_LIBRARIES = ["test_key_stream.py", "test_masked_sums.py", "test_sealing.py"]

collect_ignore = [] if find_spec("cryptography") and find_spec("pyhpke") else NEEDING_LIBRARIES
