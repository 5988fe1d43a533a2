"""``gradshard rm`` at its question."""

import io

import pytest

from gradshard.utils.interrupt_message import INTERRUPTED
from tests.unit.cli.commands import Run
from tests.unit.fakes import MemoryStore


@pytest.mark.parametrize(
    ("answer", "text"),
    [("", "standard input has no answer: answer in a terminal, or give --yes"), ("n\n", "")],
)
def test_rm_deletes_nothing_without_an_answer(
    run: Run, finished: MemoryStore, monkeypatch: pytest.MonkeyPatch, answer: str, text: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    before = dict(finished.objects)
    result = run("rm", "r1")
    assert result.exit_code == 1
    assert "gradshard: round 'r1' was left as it is" in result.stderr
    assert text in result.stderr
    assert "Aborted" not in result.stderr
    assert finished.objects == before


def test_rm_is_interrupted_at_its_question(
    run: Run, finished: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("click.termui.visible_prompt_func", ask)
    result = run("rm", "r1")
    assert result.exit_code == 1
    assert result.stderr.endswith(f"gradshard: {INTERRUPTED}\n")
