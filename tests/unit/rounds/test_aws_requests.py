"""What AWS says of a request in an answer that is no error."""

from typing import Any

import pytest

from gradshard_core.errors import ServiceError
from gradshard_core.rounds import aws_json, aws_requests


def test_an_event_that_is_not_taken_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """PutEvents answers 200 and names the entries it did not take."""
    rejected = {"ErrorCode": "ThrottlingException", "ErrorMessage": "Rate exceeded"}
    answers: list[dict[str, Any]] = [
        {"FailedEntryCount": 1, "Entries": [rejected]},
        {"FailedEntryCount": 0, "Entries": [{"EventId": "1"}]},
    ]
    monkeypatch.setattr(aws_json, "call", lambda *_: answers.pop(0))
    with pytest.raises(ServiceError, match="RoundFailed of round 'r': ThrottlingException: Rate"):
        aws_requests.publish("RoundFailed", {"round": "r"})
    aws_requests.publish("RoundCompleted", {"round": "r"})
