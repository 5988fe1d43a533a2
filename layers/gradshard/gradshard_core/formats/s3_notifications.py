"""S3's notifications of new objects, as an SNS topic hands them to a function."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote_plus


class Uploaded(NamedTuple):
    """A new object: its key, and its ETag without quotes."""

    key: str
    etag: str


def is_notification(event: Mapping[str, Any]) -> bool:
    """Return whether a function's event comes from a topic."""
    return "Records" in event


def parse_notifications(event: Mapping[str, Any]) -> list[Uploaded]:
    """Read the new objects of which a topic's event tells; mostly one.

    There is none in the test with which S3 begins after each change of its configuration. The
    formats: https://docs.aws.amazon.com/lambda/latest/dg/with-sns.html and
    https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html.
    """
    messages = (json.loads(record["Sns"]["Message"]) for record in event["Records"])
    objects = (
        record["s3"]["object"] for message in messages for record in message.get("Records", ())
    )
    # Keys are encoded as in a query, ETags have no quotes.
    return [Uploaded(unquote_plus(found["key"]), found["eTag"]) for found in objects]
