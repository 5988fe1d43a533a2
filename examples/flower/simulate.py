"""Train in Flower's simulation engine, in this process; settings are in the environment."""

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

from flwr.simulation import run_simulation

import client_app
import server_app
import task

if __name__ == "__main__":
    run_simulation(
        server_app.app,
        client_app.app,
        num_supernodes=task.CLIENTS,
        backend_config={"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 2}},
    )
