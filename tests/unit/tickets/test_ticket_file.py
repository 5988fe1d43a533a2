"""Files of tickets."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from gradshard.tickets import ticket_file
from gradshard.tickets.round_ticket import Ticket
from gradshard_core.errors import TicketError
from gradshard_core.formats.tensor_layout import Layout, encode_header
from gradshard_core.records.ticket_urls import MAX_LENGTHS
from gradshard_core.units import MIB
from tests.unit.tickets.signed import MAX_BYTES, Make


class TestFile:
    def test_is_read_as_it_was_written(self, make: Make, tmp_path: Path) -> None:
        ticket = make()
        ticket.save(tmp_path / "t")
        read = Ticket.load(tmp_path / "t")
        assert read.expires_at == ticket.expires_at.replace(microsecond=0)
        assert (read.round_id, read.client, read.max_bytes) == ("r1", "a", MAX_BYTES)
        assert read.upload == ticket.upload
        assert read.result_url == ticket.result_url

    def test_is_its_owners_only(self, make: Make, tmp_path: Path) -> None:
        make().save(tmp_path / "t")
        assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == 0o600

    def test_takes_no_other_files_place(self, make: Make, tmp_path: Path) -> None:
        (tmp_path / "t").write_text("mine")
        with pytest.raises(FileExistsError):
            make().save(tmp_path / "t")
        assert (tmp_path / "t").read_text() == "mine"

    def test_of_the_largest_updates_can_be_read_too(self, make: Make, tmp_path: Path) -> None:
        ticket = make(max_bytes=1024 * MIB, token="x" * 1500)
        ticket.save(tmp_path / "t")
        assert (tmp_path / "t").stat().st_size < 150_000
        assert len(Ticket.load(tmp_path / "t").upload_lengths) == MAX_LENGTHS

    @pytest.mark.parametrize(
        "change",
        [
            {"ticket": 2},
            {"round_id": "../r"},
            {"client": "a\x1b"},
            {"client": None},
            {"expires_at": "soon"},
            {"expires_at": "2026-01-01T00:00:00"},
            {"max_bytes": 7},
            {"layout": {"w": {"dtype": "F31", "shape": []}}},
            {"layout": ["w"]},
            {"layout": {"w": 3}},
            {"max_bytes": "many"},
            {"upload": {}},
            {"upload": {"file:///etc/passwd": {str(MAX_BYTES): ""}}},
            {"result_url": "file:///etc/passwd"},
            {"result_url": 3},
            {"more": 1},
        ],
    )
    def test_that_is_no_ticket_is_rejected(
        self, make: Make, tmp_path: Path, change: dict[str, Any]
    ) -> None:
        make().save(tmp_path / "t")
        record = json.loads((tmp_path / "t").read_text())
        (tmp_path / "t").write_text(json.dumps(record | change))
        with pytest.raises(TicketError, match="t is not a ticket"):
            Ticket.load(tmp_path / "t")

    @pytest.mark.parametrize("data", [b"", b"[]", b"3", b"{}", b"\xff\xfe", b"{" * 100_000])
    def test_of_anything_else_is_rejected(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "t").write_bytes(data)
        with pytest.raises(TicketError, match="not a ticket"):
            Ticket.load(tmp_path / "t")

    def test_a_file_too_large_for_a_ticket_is_not_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ticket_file, "MAX_FILE_BYTES", 100)
        layout = Layout.pack([("w", "U8", (1000,))])
        (tmp_path / "u").write_bytes(encode_header(layout, {}) + bytes(1000))
        with pytest.raises(TicketError, match="u is not a ticket"):
            Ticket.load(tmp_path / "u")
