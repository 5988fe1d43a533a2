"""Exports with the real libraries, read back by these: `make test-exports`."""

from pathlib import Path
from typing import Any

import pytest

from gradshard.exports.metric_values import values_of
from tests.unit.report_trainings import sample_status


def expected(status: dict[str, Any]) -> dict[tuple[str, int], float]:
    """What the records say, from the definition."""
    found = {}
    for record in status["rounds"]:
        kind = "evaluation" if record["is_evaluation"] else "training"
        for name, value in record["metrics"].items():
            found[f"{kind}/{name}", record["number"]] = value
    return found


def test_failed_rounds_have_no_values_and_their_cost_counts() -> None:
    status = sample_status(rounds=8)
    status["rounds"][0]["dollars"] = 1.0
    status["rounds"][0]["is_completed"] = False
    values = list(values_of(status["rounds"]))
    assert min(value.step for value in values) == 2
    [first, *_] = [value.value for value in values if value.name == "gradshard/dollars in all"]
    assert first == pytest.approx(1.0007)


class TestTensorBoard:
    @pytest.fixture(autouse=True)
    def library(self) -> None:
        pytest.importorskip("tensorboard", reason="`make test-exports` has TensorBoard")

    def read(self, path: Path) -> dict[tuple[str, int], float]:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(path.parent))
        events.Reload()
        return {
            (tag, event.step): event.value
            for tag in events.Tags()["scalars"]
            for event in events.Scalars(tag)
        }

    def test_every_metric_is_there_once_however_often_it_is_exported(self, tmp_path: Path) -> None:
        from gradshard.exports.tensorboard import export

        shorter = sample_status(rounds=20, status="running")
        export(shorter, tmp_path)
        status = sample_status(rounds=30)
        path = export(status, tmp_path)
        first = path.read_bytes()
        assert export(status, tmp_path).read_bytes() == first
        assert [file.name for file in path.parent.iterdir()] == [path.name]
        read = self.read(path)
        for key, value in expected(status).items():
            assert read[key] == pytest.approx(value, rel=1e-6)
        assert {key for key in read if not key[0].startswith("gradshard/")} == {*expected(status)}


class TestMlflow:
    @pytest.fixture(autouse=True)
    def library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("mlflow", reason="`make test-exports` has MLflow")
        # Its own warnings are not ours.
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")

    def read(self, uri: str, run_id: str) -> list[tuple[str, int, float]]:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        return [
            (name, metric.step, metric.value)
            for name in client.get_run(run_id).data.metrics
            for metric in client.get_metric_history(run_id, name)
        ]

    @pytest.mark.filterwarnings("ignore::FutureWarning")
    def test_every_metric_is_there_once_however_often_it_is_exported(self, tmp_path: Path) -> None:
        from mlflow import MlflowClient

        from gradshard.exports.mlflow import export

        uri = (tmp_path / "runs").as_uri()
        first = export(sample_status(rounds=20, status="running"), uri)
        client = MlflowClient(tracking_uri=uri)
        assert client.get_run(first).info.status == "RUNNING"
        status = sample_status(rounds=30)
        assert export(status, uri) == export(status, uri) == first
        read = self.read(uri, first)
        assert len({(name, step) for name, step, _ in read}) == len(read)
        found = {(name, step): value for name, step, value in read}
        assert {k: v for k, v in found.items() if not k[0].startswith("gradshard/")} == (
            expected(status)
        )
        run = client.get_run(first)
        assert (run.info.status, run.info.run_name) == ("FINISHED", "mnist")
        assert run.data.params["round.server_optimizer"] == (
            '{"optimizer": "fedavg", "model": "net"}'
        )
        assert export(sample_status("other"), uri) != first
