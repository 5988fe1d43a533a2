"""Serverless federated-learning aggregation on AWS that has no memory ceiling."""

from typing import TYPE_CHECKING, Any

from gradshard_core.errors import GradshardError, RoundFailed

if TYPE_CHECKING:
    from gradshard.client.federation import Federation, Round
    from gradshard.client.model import Model

__all__ = ["Federation", "GradshardError", "Model", "Round", "RoundFailed"]


def __getattr__(name: str) -> Any:
    # The functions import this package too, and have no use for the client library.
    if name in {"Federation", "Model", "Round"}:
        from gradshard.client import federation

        return getattr(federation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
