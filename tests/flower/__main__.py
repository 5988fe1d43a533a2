"""`make test-flower`: start a local engine, and run what needs Flower with the Python given.

The engine is this process's, and Flower may be in another environment than it.
"""

import os
import subprocess
import sys
import tempfile
from typing import Final

from gradshard.local_engine import lifecycle

TESTS: Final = (
    "tests/unit/aggregation/test_server_optimizers.py",
    "tests/unit/test_flower.py",
    "tests/flower",
)


def main(python: str) -> int:
    """Run the tests, and return pytest's exit code."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        engine = lifecycle.up(0, keeper=True, owner=os.getpid())
        try:
            command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
            variables = os.environ | engine.environment | {"FLWR_TELEMETRY_ENABLED": "0"}
            return subprocess.run(command, env=variables, check=False).returncode
        finally:
            lifecycle.down(engine.port, delete=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
