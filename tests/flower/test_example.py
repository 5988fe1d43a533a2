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


@pytest.mark.parametrize(
    ("failures", "text", "outcome"),
    [
        (4, "The current node timed out during startup.", "5 attempts"),
        (5, "The current node timed out during startup.", "The current node timed out"),
        (1, "no such thing", "no such thing"),
    ],
)
def test_ray_is_started_again_where_the_machine_was_too_busy(
    failures: int, text: str, outcome: str
) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(COMPARE.parent)!r})
import ray
attempts = []
def init(**_):
    attempts.append(1)
    if len(attempts) <= {failures}:
        raise Exception({text!r})
ray.init, ray.shutdown = init, lambda: None
import simulate
try:
    simulate.start_ray()
except Exception as error:
    print(error)
else:
    print(len(attempts), "attempts")
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert outcome in ended.stdout, ended.stderr
