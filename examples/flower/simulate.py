"""Train in Flower's simulation engine, with a strategy, and say what the server's process took.

`EXAMPLE_MODEL_MB` in the environment takes a large model instead of the digits'.
"""

import argparse
import json
import os
import resource
import time
from pathlib import Path

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

from flwr.simulation import run_simulation

import client_app
import server_app
import task


def main() -> None:
    """Train, and print the peak memory and the seconds as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("strategy", choices=server_app.STRATEGIES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the model, as .npz")
    options = parser.parse_args()
    os.environ |= {
        "EXAMPLE_STRATEGY": options.strategy,
        "EXAMPLE_ROUNDS": str(options.rounds),
        "EXAMPLE_OUTPUT": str(options.output.resolve()),
    }
    began = time.monotonic()
    run_simulation(
        server_app.app,
        client_app.app,
        num_supernodes=task.CLIENTS,
        backend_config={"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 2}},
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak_bytes": peak, "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main()
