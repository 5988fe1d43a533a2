"""Train in Flower's simulation engine, in this process; settings are in the environment."""

import os
import sys
from typing import Final

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

import ray
from flwr.simulation import run_simulation

import client_app
import server_app
import task

ATTEMPTS: Final = 5


def start_ray() -> None:
    """Start Ray, which Flower then finds: it gives its processes 30 s, however busy the machine.

    Flower tries once.
    """
    for attempts_left in reversed(range(ATTEMPTS)):
        try:
            ray.init(
                num_cpus=2,
                include_dashboard=False,
                runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}},
            )
        except Exception as error:
            ray.shutdown()
            # Ray has no class for it.
            if "timed out during startup" not in str(error) or not attempts_left:
                raise
        else:
            return


if __name__ == "__main__":
    start_ray()
    run_simulation(
        server_app.app,
        client_app.app,
        num_supernodes=task.CLIENTS,
        backend_config={"client_resources": {"num_cpus": 1}},
    )
