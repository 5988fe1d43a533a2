"""What an engine's user reads if `sam` fails."""

from pathlib import Path

import pytest

from gradshard.deployment import sam_command
from gradshard.local_engine import application
from gradshard.local_engine.running_engines import Engine
from gradshard_core.errors import EngineError

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("ephemeral", [False, True])
def test_a_failed_deployment_names_the_way_to_begin_anew(
    ephemeral: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine may have lost files of a bucket that it keeps: of sam's, for example."""
    engine = Engine(4999, None, tmp_path, deployed=False, ephemeral=ephemeral)
    sam = tmp_path / "sam"
    sam.write_text("#!/bin/sh\necho TemplateBody or TemplateURL is required\nexit 1\n")
    sam.chmod(0o700)
    monkeypatch.setattr(sam_command, "find_sam", lambda: str(sam))
    monkeypatch.setattr(application, "child_environment", lambda _: {})
    with pytest.raises(EngineError, match="TemplateURL is required") as caught:
        application._run_sam(engine, ROOT, "deploy")
    assert ("gradshard local down --port 4999 --delete" in str(caught.value)) is not ephemeral
    with pytest.raises(EngineError, match=r"TemplateURL is required$"):
        application._run_sam(engine, ROOT, "build")
