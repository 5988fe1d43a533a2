"""Serverless federated-learning aggregation on AWS that has no memory ceiling."""

# Type checkers take it for true. Importing typing would take longer than all that the command
# imports before it answers Ctrl-C.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from gradshard.client.federation import Federation
    from gradshard.client.keeper import Keeper
    from gradshard.client.model import Model
    from gradshard.client.round import Round
    from gradshard.updates.compression import Compression
    from gradshard.updates.mask import Mask
    from gradshard.updates.residual import Residual
    from gradshard_core.errors import GradshardError, RoundFailed

_MODULES = {
    "Compression": "gradshard.updates.compression",
    "Federation": "gradshard.client.federation",
    "GradshardError": "gradshard_core.errors",
    "Keeper": "gradshard.client.keeper",
    "Mask": "gradshard.updates.mask",
    "Model": "gradshard.client.model",
    "Residual": "gradshard.updates.residual",
    "Round": "gradshard.client.round",
    "RoundFailed": "gradshard_core.errors",
}

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
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    # For the completion of names in a terminal.
    return [*globals(), *__all__]
