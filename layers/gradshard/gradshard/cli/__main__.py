"""``python -m gradshard.cli``."""

from gradshard.cli import main

main(prog_name="gradshard")
