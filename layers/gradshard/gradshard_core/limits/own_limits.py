"""gradshard's own limits on the size of rounds and trainings; those of AWS are in ``aws_limits``.

A spec that exceeds one is rejected.
"""

from typing import Final

MAX_CLIENTS: Final = 100_000
"""The most clients of a round."""

MAX_NAMED: Final = 4096
"""The most clients of a round that looks at each of them by name: an eager or a masked one, or one
of partial updates."""

MAX_TIMEOUT: Final = 7 * 24 * 3600
"""The most seconds that a round waits for updates."""

MAX_ROUNDS: Final = 99_999
"""The most rounds of a training. Their ids have five digits."""

MAX_UPDATES_PER_VERSION: Final = 1024
MAX_STALENESS: Final = 1000

MAX_COUNTED: Final = 4096
"""Updates of the last versions that the state of a buffered training names, so that none counts
twice, and clients that took part in a tree of noise. Each takes up to 90 bytes, and every client
reads the state whenever it looks."""

MAX_LAYER_PRODUCTS: Final = 2**18
"""Products of all pairs in all layers, one of F64 counted four times. ``plan_round`` and
``finalize_round`` hold them all: sums of them that attackers make long take 100 MB."""

MAX_COMPARED_LAYERS: Final = 4096
"""Layers on each of which a rule decides. Clients can make the geometric median of eight updates
take 40 ms in each, and ``plan_round``, which has 900 s, adds and writes besides."""

MAX_SPEC_BYTES: Final = 96 * 1024
"""A training's options as JSON. They go through the state machine, whose payloads may have 256 KiB,
beside the options of a round, which have the clients again."""

MAX_RUNS: Final = 65_536
"""Further runs of all contributors of a round, whose tensors are in another order than the round's.
Every task has them in memory with its plan."""
