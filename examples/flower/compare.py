"""Train the same model with Flower's FedAvg and with gradshard's: the bits, and the memory.

Each training has a process of its own, Flower's simulation engine with the ServerApp in it. Exits
with 1 if a bit differs. Needs `gradshard local up`, or a deployed stack; see README.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from gradshard import local

HERE: Final = Path(__file__).resolve().parent


def main() -> int:
    """Train, compare, and return the process's exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, help="the local engine's (default: as the shell says)")
    parser.add_argument("--model-mb", type=int, default=0, help="a large model, a multiple of 8")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    variables = os.environ | {"EXAMPLE_MODEL_MB": str(options.model_mb)}
    if options.port is not None:
        variables |= local.status(options.port).environment
    with tempfile.TemporaryDirectory() as folder:
        figures = {
            strategy: simulate(
                strategy, Path(folder) / f"{strategy}.npz", options.rounds, variables
            )
            for strategy in ("flower", "s3", "s3-references")
        }
        differing = {
            name
            for strategy in ("s3", "s3-references")
            for name in differences(Path(folder) / "flower.npz", Path(folder) / f"{strategy}.npz")
        }
    print(f"{'strategy':16}{'peak MB':>10}{'seconds':>10}")
    for strategy, figure in figures.items():
        print(f"{strategy:16}{figure['peak_bytes'] / 1e6:10,.0f}{figure['seconds']:10.0f}")
    if differing:
        print(f"The models differ: {', '.join(sorted(differing))}.")
        return 1
    print("The models are identical, bit for bit.")
    return 0


def simulate(
    strategy: str, output: Path, rounds: int, variables: dict[str, str]
) -> dict[str, float]:
    """Train in a process of its own, and return what it says it took."""
    command = [sys.executable, str(HERE / "simulate.py"), strategy]
    command += ["--rounds", str(rounds), "-o", str(output)]
    ended = subprocess.run(  # noqa: S603 - the example's own program
        command, env=variables, stdout=subprocess.PIPE, check=True, text=True
    )
    figures: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return figures


def differences(one: Path, other: Path) -> list[str]:
    """Return the names of the arrays that are not the same in two files, bit for bit."""
    with np.load(one) as these, np.load(other) as those:
        names = sorted({*these.files, *those.files})
        return [name for name in names if _bits(these, name) != _bits(those, name)]


def _bits(arrays: Any, name: str) -> tuple[str, tuple[int, ...], bytes] | None:
    if name not in arrays.files:
        return None
    array = arrays[name]
    return str(array.dtype), array.shape, array.tobytes()


if __name__ == "__main__":
    sys.exit(main())
