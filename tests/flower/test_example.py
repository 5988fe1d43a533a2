"""The example, in Flower's simulation engine: `make test-flower`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed: `make test-flower`")
pytest.importorskip("ray", reason="Flower's simulation engine is not installed")

if "AWS_ENDPOINT_URL" not in os.environ:
    pytest.skip("no local engine: `make test-flower`", allow_module_level=True)

COMPARE = Path(__file__).parents[2] / "examples" / "flower" / "compare.py"


def compared(*options: str) -> tuple[str, dict[str, float]]:
    ended = subprocess.run(
        [sys.executable, COMPARE, *options], capture_output=True, text=True, check=False
    )
    told = [line for line in ended.stderr.splitlines() if "WARNING" in line or "ERROR" in line]
    assert ended.returncode == 0, "\n".join([ended.stdout, *told])
    *table, verdict = ended.stdout.splitlines()
    return verdict, {line.split()[0]: float(line.split()[1].replace(",", "")) for line in table[1:]}


def test_the_digits_network_has_the_same_bits() -> None:
    verdict, _ = compared("--rounds", "2")
    assert verdict == "The models are identical, bit for bit."


def test_the_server_does_not_grow_by_its_clients_models() -> None:
    verdict, peaks = compared("--rounds", "2", "--model-mb", "64")
    assert verdict == "The models are identical, bit for bit."
    model = 64 * 1.048576
    # Eight clients' models at least in one, three models and their making at most in the other.
    assert peaks["flower"] > peaks["s3-references"] + 8 * model
    assert peaks["s3"] < peaks["s3-references"] + 4 * model
