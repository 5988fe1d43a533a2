"""``gradshard local``."""

import json
from pathlib import Path

import pytest

from gradshard.local_engine import lifecycle
from gradshard.local_engine.lifecycle import Engine
from tests.unit.cli.commands import Run


@pytest.mark.parametrize("pid", [None, 42])
def test_local_status_is_the_exit_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pid: int | None
) -> None:
    engine = Engine(port=4566, pid=pid, folder=tmp_path, deployed=pid is not None)
    monkeypatch.setattr(lifecycle, "status", lambda _port: engine)
    monkeypatch.setattr(lifecycle, "has_application", lambda _engine: True)
    result = run("local", "status", "--json")
    assert result.exit_code == (0 if pid else 1)
    assert json.loads(result.stdout)["running"] is (pid is not None)
