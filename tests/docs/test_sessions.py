"""Every page is run as it stands, block after block, against the local engine."""

import contextlib
from pathlib import Path

import pytest

from gradshard.local_engine.lifecycle import Engine
from tests.docs.pages import PAGES, RUN, blocks
from tests.docs.session import COMMANDS, Session, port_shim
from tests.e2e.command import command_file

pytestmark = pytest.mark.e2e

ELSEWHERE = {"getting-started"}
"""Pages that `tests/e2e/test_installed.py` runs, with the wheel."""

PAGES_TO_RUN = [
    path
    for path in PAGES
    if path.stem not in ELSEWHERE
    and any(b.language in RUN and not (b.not_run or b.run_by) for b in blocks(path))
]


@pytest.mark.parametrize("path", PAGES_TO_RUN, ids=lambda path: path.stem)
def test_a_page_as_it_stands(path: Path, engine: Engine, tmp_path: Path) -> None:
    shim = port_shim(tmp_path / "commands", command_file(tmp_path / "gradshard"), engine.port)
    session = Session(tmp_path / "folder", (shim, COMMANDS), port=engine.port)
    with contextlib.closing(session):
        for block in blocks(path):
            if block.language in RUN and not (block.not_run or block.run_by):
                session.run(block)
