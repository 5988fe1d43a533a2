"""What the command says of errors, and the codes with which it ends."""

import click
import pytest

from gradshard.cli.command_groups import Commands
from gradshard_core.errors import RoundFailed, SpecError


@pytest.mark.parametrize(
    ("error", "code"), [(SpecError("x"), 1), (click.UsageError("x"), 2), (RoundFailed("x"), 3)]
)
def test_exit_codes_tell_errors_apart(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.group(cls=Commands)
    def group() -> None: ...

    @group.command()
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        group(["fail"])
    assert ended.value.code == code
    assert capsys.readouterr().err.startswith("gradshard: x")
