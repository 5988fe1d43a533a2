"""Which bucket a stack takes that is deployed again after a crash."""

from typing import Any

from gradshard.local_engine.kept_buckets import newest_of


def bucket(*changed: str) -> dict[str, Any]:
    return {"objects": {time: {"last_modified": time} for time in changed}}


def test_a_stack_takes_the_bucket_of_its_name_whose_objects_are_the_newest() -> None:
    buckets = {
        "gradshard-bucket-0a": bucket("2026-01-01"),
        "gradshard-bucket-0b": bucket("2026-01-01", "2026-01-03"),
        "gradshard-bucket-0c": bucket("2026-01-02"),
        "gradshard-bucket-0d": bucket(),
        "gradshard-keeper-bucket-0e": bucket("2026-01-09"),
        "mine": bucket("2026-01-09"),
    }
    assert newest_of(buckets, "gradshard", "Bucket") == "gradshard-bucket-0b"
    assert newest_of(buckets, "gradshard-keeper", "Bucket") == "gradshard-keeper-bucket-0e"
    assert newest_of(buckets, "other", "Bucket") is None
