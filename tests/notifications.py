"""What functions get when S3 tells a topic of a new object."""

import json
from typing import Any
from urllib.parse import quote_plus


def uploaded(key: str, etag: str = "e") -> dict[str, Any]:
    """Return the event of an upload, with what functions read of it."""
    found = {"s3": {"object": {"key": quote_plus(key, safe="/"), "eTag": etag}}}
    message = json.dumps({"Records": [found]})
    return {"Records": [{"EventSource": "aws:sns", "Sns": {"Message": message}}]}
