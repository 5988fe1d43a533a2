"""A fixture that makes tickets."""

from typing import Any

import pytest

from gradshard.aws.client_store import ClientStore
from gradshard.tickets.issuer import issue_ticket
from gradshard.tickets.round_ticket import Ticket
from tests.unit.tickets.signed import KEYS, MAX_BYTES, Make, store_in


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Give what makes tickets for AWS, where nobody is asked."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)

    def make(*, token: str = "", region: str = "eu-central-1", **terms: int) -> Ticket:
        given: dict[str, Any] = {"expires": 600, "max_bytes": MAX_BYTES, **terms}
        return issue_ticket(store_in(region, token), KEYS, "a", **given)

    monkeypatch.setattr(ClientStore, "create_upload", lambda *_: "an/upload+id=")
    return make
