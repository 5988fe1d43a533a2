"""Train the same model with Flower's FedAvg and with gradshard's, and compare bits and memory.

Each training has processes of its own: Flower's simulation engine with the ServerApp in it, or with
`--processes` a SuperLink, SuperNodes and a ServerApp. The program needs `gradshard local up` or a
deployed stack (see README.md). It exits with 1 if a bit differs.
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

import processes
from gradshard.local_engine import lifecycle

HERE: Final = Path(__file__).resolve().parent
STRATEGIES: Final = ("flower", "s3", "s3-references")
"""The others are compared with the first, Flower's."""


def main() -> int:
    """Train, compare, and return the process's exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--port",
        type=int,
        help="port of the local engine (default: the application that AWS_ENDPOINT_URL names)",
    )
    parser.add_argument(
        "--model-mb",
        type=int,
        default=0,
        help="size of the model in MiB, a multiple of 8 (default: a small network)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (default: 3)")
    parser.add_argument("--clients", type=int, default=8, help="number of clients (default: 8)")
    parser.add_argument(
        "--processes",
        action="store_true",
        help="run Flower's processes instead of its simulation engine",
    )
    options = parser.parse_args()
    settings = {
        "EXAMPLE_MODEL_MB": str(options.model_mb),
        "EXAMPLE_ROUNDS": str(options.rounds),
        "EXAMPLE_CLIENTS": str(options.clients),
    }
    if options.port is not None:
        settings |= lifecycle.status(options.port).environment
    figures = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for strategy in STRATEGIES:
            output = folder / f"{strategy}.npz"
            settings |= {"EXAMPLE_STRATEGY": strategy, "EXAMPLE_OUTPUT": str(output)}
            report = output.with_suffix(".json")
            if options.processes:
                processes.train(folder, options.clients, os.environ | settings, report)
            else:
                simulate(os.environ | settings)
            figures[strategy] = json.loads(report.read_text())
        reference, *others = (folder / f"{strategy}.npz" for strategy in STRATEGIES)
        differing = {name for other in others for name in differences(reference, other)}
    print(f"{'strategy':16}{'peak MB':>10}{'seconds':>10}")
    for strategy, figure in figures.items():
        print(f"{strategy:16}{figure['peak_bytes'] / 1e6:10,.0f}{figure['seconds']:10.0f}")
    for strategy, figure in figures.items():
        # A slow machine may fail a client or a round, which has nothing to do with bits.
        for number, contributors in figure["contributors"].items():
            if contributors < options.clients:
                print(
                    f"{strategy}: {contributors} of {options.clients} clients took part in round "
                    f"{number}; its log says why."
                )
    if differing:
        print(f"The models differ: {', '.join(sorted(differing))}.")
        return 1
    print("The models are identical, bit for bit.")
    return 0


def simulate(variables: dict[str, str]) -> None:
    """Train in a process of its own, with what Flower says on standard error."""
    command = [sys.executable, str(HERE / "simulate.py")]
    subprocess.run(  # noqa: S603 - the example's own program
        command, env=variables, stdout=sys.stderr, check=True
    )


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
