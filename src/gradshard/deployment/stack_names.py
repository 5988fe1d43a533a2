"""The names of the stacks, as in ``samconfig.toml`` of the application and of the keeper."""

from typing import Final

STACK: Final = "gradshard"
KEEPER_STACK: Final = "gradshard-keeper"
