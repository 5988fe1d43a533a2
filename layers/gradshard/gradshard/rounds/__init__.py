"""The life of a round: one module per function of the state machine, named like it."""

from typing import Final

COMPLETED: Final = "completed"
FAILED: Final = "failed"
"""How a round ended, as its manifest says."""
