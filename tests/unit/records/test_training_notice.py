"""The notice of a client, as whoever can write to the bucket may have made it."""

import math
from typing import Any

import pytest

from gradshard_core.records.training_notice import Notice


@pytest.mark.parametrize(
    "strange",
    [
        {"signed_at": "2026-01-01T00:00:00"},
        {"signed_at": "yesterday"},
        {"signed_at": 5},
        {"poll_interval": -1.0},
        {"poll_interval": math.nan},
        {"poll_interval": math.inf},
        {"poll_interval": "5"},
        {"notice": 2},
    ],
)
def test_a_notice_that_cannot_be_followed_is_none(strange: dict[str, Any]) -> None:
    written = Notice("a", 5.0, signed_at="2026-01-01T00:00:00+00:00").to_json()
    assert Notice.from_json(written).client == "a"
    with pytest.raises((ValueError, TypeError)):
        Notice.from_json(written | strange)
