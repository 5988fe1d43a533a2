"""Fuzz a target, guided by coverage: ``python -m tests.fuzz header -runs=1000000``.

Needs atheris; what follows the target goes to libFuzzer (https://llvm.org/docs/LibFuzzer.html).
An input that breaks it is written to the working folder and ends the process.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gradshard", "gradshard_core", "json"]):
    from tests.fuzz.targets import TARGETS

SEEDS = Path(__file__).with_name("seeds")
LIMITS = ["-timeout=10", "-rss_limit_mb=512", "-max_len=4096", "-print_final_stats=1"]


def main() -> None:
    """Run until libFuzzer ends the process."""
    _, name, *options = sys.argv
    # The first folder is where new inputs are kept: in memory only, if it is not given.
    words = f"-dict={SEEDS / 'words.txt'}"
    atheris.Setup([sys.argv[0], *LIMITS, words, *options, str(SEEDS / name)], TARGETS[name])
    atheris.Fuzz()


main()
