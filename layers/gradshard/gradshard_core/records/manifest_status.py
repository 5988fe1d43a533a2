"""How a round has ended, as its manifest states it: status, error and cause."""

from typing import Any, Final

COMPLETED: Final = "completed"
FAILED: Final = "failed"
"""The values of a manifest's ``status``."""


def parse_manifest(manifest: dict[str, Any]) -> dict[str, Any]:
    """Check a manifest: it says how its round ended, and why if that was not well.

    Raises
    ------
    KeyError
        A field is missing.
    """
    needed = ("status",) if manifest["status"] == COMPLETED else ("status", "error", "cause")
    return manifest | {name: str(manifest[name]) for name in needed}
