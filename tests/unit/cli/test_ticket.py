"""``gradshard ticket``, and other commands with a ticket."""

import errno
import json
from pathlib import Path
from unittest.mock import Mock

import pytest

from gradshard.client.round_by_ticket import TicketRound
from gradshard.tickets.round_ticket import Ticket
from tests.unit.cli.commands import Run, assert_one_line
from tests.unit.fakes import MemoryStore


@pytest.mark.usefixtures("opened")
class TestTicket:
    @pytest.fixture
    def ticket(self, run: Run, opened: MemoryStore, tmp_path: Path) -> Path:
        result = run("ticket", "r1", "a", "-o", tmp_path / "a.ticket", "--max-size", "2MB")
        assert result.exit_code == 0
        assert "one update of at most 2.0 MB by a to round r1, until 20" in result.stdout
        assert "http" not in result.stdout
        return tmp_path / "a.ticket"

    def test_is_written_where_nothing_is(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        made = ("ticket", "r1", "a", "--max-size", "2MB", "--expires", "2h")
        said = json.loads(run(*made, "--json").stdout)
        assert (said["file"], said["max_bytes"], said["temporary"]) == (
            "r1-a.ticket",
            2_000_000,
            False,
        )
        assert "X-Amz-Expires=7200" in Path("r1-a.ticket").read_text()
        assert_one_line(run(*made), "r1-a.ticket: is there already")

    def test_leaves_no_half_of_itself(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        full = OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr(Ticket, "dumps", Mock(side_effect=full))
        result = run("ticket", "r1", "a", "-o", tmp_path / "t", "--max-size", "2MB")
        assert_one_line(result, f"{tmp_path}/t: No space left on device")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ([], "--max-size"),
            (["--max-size", "3TB"], "max_bytes is 3000000000000"),
            (["--max-size", "1MB", "--expires", "8d"], "'8d' is too long: at most 7d"),
            (["--max-size", "1MB", "--expires", "1.5"], "expires is 1.5"),
        ],
    )
    def test_invalid_options_are_rejected(
        self, run: Run, tmp_path: Path, options: list[str], text: str
    ) -> None:
        assert_one_line(run("ticket", "r1", "a", "-o", tmp_path / "t", *options), text)
        assert not (tmp_path / "t").exists()

    def test_of_another_round_or_client(self, run: Run, ticket: Path, file: Path) -> None:
        text = "a.ticket is a ticket of round 'r1', not 'r2'"
        for command in (["show", "r2"], ["watch", "r2"], ["fetch", "r2", "-o", "x"]):
            assert_one_line(run(*command, "--ticket", ticket), text)
        submit = ("submit", "--ticket", ticket)
        assert_one_line(run(*submit, "r2", "a", file), text)
        assert_one_line(run(*submit, "r1", "b", file), "is a ticket of client 'a', not 'b'")

    def test_a_file_that_is_no_ticket_is_rejected(self, run: Run, file: Path) -> None:
        assert_one_line(run("show", "--ticket", file), "is not a ticket: give the file that")

    def test_a_rejection_with_control_characters_is_escaped(
        self, run: Run, ticket: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(TicketRound, "wait", lambda _: None)
        monkeypatch.setattr(TicketRound, "rejection", lambda _: "tensor '\x1b[2J' holds NaN")
        monkeypatch.setattr(
            TicketRound,
            "status",
            lambda self: {
                "round": "r1",
                "client": "a",
                "state": "completed",
                "uploaded": 5,
                "reason": self.rejection(),
                "expires_at": "2026",
            },
        )
        for command in ("watch", "show"):
            result = run(command, "--ticket", ticket)
            assert result.exit_code == 0
            assert "\x1b" not in result.stdout
            assert r"tensor '\x1b[2J' holds NaN" in result.stdout
