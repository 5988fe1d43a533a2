"""Serverless federated-learning aggregation on AWS that has no memory ceiling."""

# Type checkers take it for true. Importing typing would take longer than all that the command
# imports before it answers Ctrl-C.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from gradshard.client.compression import Compression
    from gradshard.client.federation import Federation
    from gradshard.client.keeper import Keeper
    from gradshard.client.mask import Mask
    from gradshard.client.model import Model
    from gradshard.client.residual import Residual
    from gradshard.client.round import Round
    from gradshard_core.errors import GradshardError, RoundFailed

__all__ = [
    "Compression",
    "Federation",
    "GradshardError",
    "Keeper",
    "Mask",
    "Model",
    "Residual",
    "Round",
    "RoundFailed",
]


def __getattr__(name: str) -> object:
    # Loaded when it is used: `gradshard --help` needs no client library.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    errors = {"GradshardError", "RoundFailed"}
    module = "gradshard_core.errors" if name in errors else f"gradshard.client.{name.lower()}"
    return getattr(import_module(module), name)
