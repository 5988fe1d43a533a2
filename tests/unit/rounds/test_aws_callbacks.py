"""What AWS says of a request in an answer that is no error."""

import boto3
import pytest
from botocore.stub import Stubber

from gradshard_core.errors import ServiceError
from gradshard_core.rounds import aws_callbacks


def test_an_event_that_is_not_taken_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """PutEvents answers 200 and names the entries it did not take."""
    events = boto3.client(
        "events", "us-east-1", aws_access_key_id="none", aws_secret_access_key="none"
    )
    monkeypatch.setattr(aws_callbacks, "_events", lambda: events)
    rejected = {"ErrorCode": "ThrottlingException", "ErrorMessage": "Rate exceeded"}
    with Stubber(events) as stub:
        stub.add_response("put_events", {"FailedEntryCount": 1, "Entries": [rejected]})
        with pytest.raises(
            ServiceError, match="RoundFailed of round 'r': ThrottlingException: Rate"
        ):
            aws_callbacks.publish("RoundFailed", {"round": "r"})
        stub.add_response("put_events", {"FailedEntryCount": 0, "Entries": [{"EventId": "1"}]})
        aws_callbacks.publish("RoundCompleted", {"round": "r"})
