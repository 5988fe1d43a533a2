"""The life of a round: one module per function of the state machine, named like it."""

from typing import Any, Final

COMPLETED: Final = "completed"
FAILED: Final = "failed"
"""How a round ended, as its manifest says."""


def ending(manifest: dict[str, Any]) -> dict[str, Any]:
    """Read a manifest: how its round ended, and why if that was not well."""
    needed = ("status",) if manifest["status"] == COMPLETED else ("status", "error", "cause")
    return manifest | {name: str(manifest[name]) for name in needed}
