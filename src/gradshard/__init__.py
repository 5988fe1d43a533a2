"""Serverless federated-learning aggregation on AWS that has no memory ceiling."""

from typing import TYPE_CHECKING, Any

from gradshard_core.errors import GradshardError, RoundFailed

if TYPE_CHECKING:
    from gradshard.client.federation import Federation
    from gradshard.client.model import Model
    from gradshard.client.round import Round

__all__ = ["Federation", "GradshardError", "Model", "Round", "RoundFailed"]


def __getattr__(name: str) -> Any:
    # Loaded when it is used: `gradshard --help` needs no client library.
    if name in {"Federation", "Model", "Round"}:
        from gradshard.client import federation

        return getattr(federation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
