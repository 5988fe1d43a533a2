"""The buckets that a local engine has kept, for the stacks that it has not.

Objects are on disk at once, but stacks only when the engine ends. After a crash the application is
deployed again, and CloudFormation draws another name for the bucket of a new stack. Here a stack
takes the bucket that one of its name has left.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

_STACK_OF_SAM: Final = "aws-sam-cli-managed"


def patch() -> None:
    """Have CloudFormation take buckets that were there when this process started."""
    from ministack.services import cloudformation, s3
    from ministack.services.cloudformation import provisioners

    handler: dict[str, Any] = provisioners._RESOURCE_HANDLERS["AWS::S3::Bucket"]
    create, update = handler["create"], handler["update"]
    kept = frozenset(s3._buckets)  # those on disk: nothing was deployed yet

    def create_or_take(logical_id: str, properties: dict[str, Any], stack: str) -> Any:
        taken = {
            resource.get("PhysicalResourceId")
            for other in cloudformation._stacks.values()
            for resource in other.get("_resources", {}).values()
        }
        free = {name: s3._buckets[name] for name in kept - taken if name in s3._buckets}
        # A new bucket does for `sam`, which uploads again what is missing.
        is_ours = not properties.get("BucketName") and not stack.startswith(_STACK_OF_SAM)
        name = newest_of(free, stack, logical_id) if is_ours else None
        if name is None:
            return create(logical_id, properties, stack)
        return update(name, {}, properties, stack)

    handler["create"] = create_or_take


def newest_of(buckets: Mapping[str, Any], stack: str, logical_id: str) -> str | None:
    """Return the bucket that a stack has left, with the newest objects; None if there is none."""
    named = re.compile(rf"{re.escape(f'{stack}-{logical_id}'.lower())}-[0-9a-f]+")

    def changed(name: str) -> str:
        objects: Iterable[Mapping[str, Any]] = buckets[name]["objects"].values()
        return max((entry["last_modified"] for entry in objects), default="")

    return max(filter(named.fullmatch, sorted(buckets)), key=changed, default=None)
