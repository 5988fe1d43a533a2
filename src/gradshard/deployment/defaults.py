"""The names of the stacks and the port of the local engine, unless users give others."""

from typing import Final

STACK: Final = "gradshard"
"""As in ``samconfig.toml`` of the application."""

KEEPER_STACK: Final = "gradshard-keeper"
"""As in that of the keeper."""

DEFAULT_PORT: Final = 4566
