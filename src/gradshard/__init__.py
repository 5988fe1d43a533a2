"""Serverless federated-learning aggregation on AWS that has no memory ceiling."""

# Type checkers take it for true. Importing typing would take longer than all that the command
# imports before it answers Ctrl-C.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from gradshard.client.compression import Compression
    from gradshard.client.federation import Federation
    from gradshard.client.model import Model
    from gradshard.client.residual import Residual
    from gradshard.client.round import Round
    from gradshard_core.errors import GradshardError, RoundFailed

__all__ = [
    "Compression",
    "Federation",
    "GradshardError",
    "Model",
    "Residual",
    "Round",
    "RoundFailed",
]


def __getattr__(name: str) -> object:
    # Loaded when it is used: `gradshard --help` needs no client library.
    if name in {"Federation", "Model", "Round"}:
        from gradshard.client import federation

        return getattr(federation, name)
    if name == "Compression":
        from gradshard.client.compression import Compression

        return Compression
    if name == "Residual":
        from gradshard.client.residual import Residual

        return Residual
    if name in {"GradshardError", "RoundFailed"}:
        from gradshard_core import errors

        return getattr(errors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
