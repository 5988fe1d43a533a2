"""Commands that run against a bucket in memory."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gradshard.cli import main
from gradshard.client import federation
from gradshard.utils import polling
from tests.unit.cli.commands import MANIFEST, Result, Run
from tests.unit.client.test_federation import OPENED, plan_json
from tests.unit.fakes import MemoryStack, MemoryStore


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(autouse=True)
def stack(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> MemoryStack:
    stack = MemoryStack(store)
    monkeypatch.setattr(federation, "Stack", lambda *_, **__: stack)
    monkeypatch.setattr(polling, "FIRST_PAUSE_SECONDS", 0.01)
    return stack


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments], prog_name="gradshard")
        code = ended.value.code
        assert isinstance(code, int)
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def opened(store: MemoryStore) -> MemoryStore:
    store.put_json("rounds/r1/spec.json", OPENED)
    return store


@pytest.fixture
def finished(opened: MemoryStore) -> MemoryStore:
    projected = {"seconds": 1.7, "memory_mb": 256, "needed_mb": 103.0}
    opened.put_json("rounds/r1/plan.json", plan_json({"a": "x"}, projected=projected))
    opened.put_json("rounds/r1/manifest.json", MANIFEST)
    return opened


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file({"w": np.ones(3)}, tmp_path / "u.safetensors")
    return tmp_path / "u.safetensors"
