"""A training's metrics as a run of MLflow, ``gradshard[mlflow]``."""

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from gradshard.exports.metric_values import Value, values_of
from gradshard.utils.text import shortened
from gradshard_core.records.training_state import ENDED

DEFAULT_EXPERIMENT: Final = "gradshard"
TRAINING_TAG: Final = "gradshard.training"
STARTED_TAG: Final = "gradshard.started_at"
"""Find the run of a training: a later training may have the name of a removed one."""

BATCH: Final = 1_000
"""Metrics of a request, https://mlflow.org/docs/latest/rest-api.html#log-batch (2026-11)."""

MAX_PARAM: Final = 500
"""Characters of a parameter that every store of MLflow takes."""


def export(status: Mapping[str, Any], uri: str, *, experiment: str = DEFAULT_EXPERIMENT) -> str:
    """Log a training's metrics to its run, which is made at the first export.

    Values that the run has already are not logged again.

    Parameters
    ----------
    status
        The result of :meth:`gradshard.client.training.Training.status`.
    uri
        MLflow's tracking URI, such as ``http://127.0.0.1:5000`` or ``sqlite:///mlflow.db``.
    experiment
        The experiment's name; it is made if it is not there.

    Returns
    -------
    str
        The run's id.

    Raises
    ------
    mlflow.exceptions.MlflowException
        MLflow cannot be reached, or rejects what is logged.
    """
    client = MlflowClient(tracking_uri=uri)
    run = _run(client, status, experiment)
    run_id: str = run.info.run_id
    names = {value.name for value in values_of(status["rounds"])}
    known = {
        (name, metric.step) for name in names for metric in client.get_metric_history(run_id, name)
    }
    new = [v for v in values_of(status["rounds"]) if (v.name, v.step) not in known]
    for start in range(0, len(new), BATCH):
        client.log_batch(run_id, metrics=[_metric(value) for value in new[start : start + BATCH]])
    if status["status"] == ENDED and run.info.status != "FINISHED":
        client.set_tag(run_id, "gradshard.cause", status["cause"])
        client.set_terminated(run_id, "FINISHED", _milliseconds(status["changed_at"]))
    return run_id


def _run(client: MlflowClient, status: Mapping[str, Any], experiment: str) -> Run:
    found = client.get_experiment_by_name(experiment)
    experiment_id = client.create_experiment(experiment) if found is None else found.experiment_id
    tags = {TRAINING_TAG: status["training"], STARTED_TAG: status["started_at"]}
    condition = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    runs = client.search_runs([experiment_id], filter_string=condition, max_results=1)
    if runs:
        return runs[0]
    run = client.create_run(
        experiment_id,
        start_time=_milliseconds(status["started_at"]),
        tags=tags,
        run_name=status["training"],
    )
    params = [Param(name, value) for name, value in _parameters(status["spec"])]
    client.log_batch(run.info.run_id, params=params, tags=[RunTag(*tag) for tag in tags.items()])
    return run


def _parameters(spec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the options of a training and, as ``round.NAME``, those of its rounds."""
    flat = {name: value for name, value in spec.items() if name != "round"}
    flat |= {f"round.{name}": value for name, value in spec["round"].items()}
    for name, value in flat.items():
        text = value if isinstance(value, str) else json.dumps(value)
        yield name, shortened(text, MAX_PARAM)


def _metric(value: Value) -> Metric:
    return Metric(value.name, value.value, round(1000 * value.at.timestamp()), value.step)


def _milliseconds(written: str) -> int:
    return round(1000 * datetime.fromisoformat(written).timestamp())
