"""Correct where MiniStack's IAM differs from AWS's."""

import json
import sys
from contextvars import ContextVar
from typing import Any


def apply() -> None:
    """Apply these patches, in a process that is an engine."""
    _patch_user_ids()
    _patch_asked_arns()
    _patch_conditional_writes()
    _tell_decisions()


def _patch_user_ids() -> None:
    """Give a function's session the user id of its role; MiniStack begins it with the name."""
    from ministack.services import iam, sts

    register_session = sts.register_session

    def register(key: str, session: dict[str, Any], *rest: Any) -> Any:
        name, _, session_name = session.get("UserId", "").partition(":")
        account = session.get("Arn", "").split(":")[4:5]
        role = iam._roles.get_scoped(*account, None, name) if account else None
        if role is not None:
            session = {**session, "UserId": f"{role['RoleId']}:{session_name}"}
        return register_session(key, session, *rest)

    sts.register_session = register


def _patch_asked_arns() -> None:
    """Tell IAM of a schedule's group, and of a map run; MiniStack says ``default``, and nothing."""
    from ministack.core import iam_actions

    extract_resource_arn = iam_actions.extract_resource_arn

    def extract(service: str, method: str, path: str, headers: Any, body: bytes, *rest: Any) -> str:
        arn: str = extract_resource_arn(service, method, path, headers, body, *rest)
        if service == "scheduler" and ":schedule/default/" in arn:
            query = rest[0] or {}
            group = json.loads(body or b"{}").get("GroupName") or query.get("groupName", "default")
            group = group[0] if isinstance(group, list) else group
            arn = arn.replace(":schedule/default/", f":schedule/{group}/")
        if service == "states" and arn == "*" and body:
            arn = json.loads(body).get("mapRunArn", arn)
        return arn

    iam_actions.extract_resource_arn = extract


def _patch_conditional_writes() -> None:
    """Tell IAM whether a write to S3 is conditional; MiniStack knows no ``s3:if-none-match``."""
    from ministack.core import iam_evaluator

    enforce, pin_signed_request = iam_evaluator.enforce, iam_evaluator.pin_signed_request
    condition: ContextVar[bytes | None] = ContextVar("if-none-match", default=None)

    def pin(
        method: str, path: str, query: Any, headers: list[tuple[bytes, bytes]], *more: Any
    ) -> None:
        condition.set({name.lower(): value for name, value in headers}.get(b"if-none-match"))
        pin_signed_request(method, path, query, headers, *more)

    def ask(
        key: str, action: str, service: str, region: str, resource_arn: str = "*", **more: Any
    ) -> Any:
        if service == "s3" and (given := condition.get()) is not None:
            known = more.get("service_context") or {}
            more["service_context"] = {**known, "s3:if-none-match": given.decode()}
        return enforce(key, action, service, region, resource_arn, **more)

    iam_evaluator.enforce, iam_evaluator.pin_signed_request = ask, pin


def _tell_decisions() -> None:
    """Write to the log what each role asked for and whether it may, as CloudTrail would.

    A line is ``iam allowed ROLE ACTION RESOURCE``, or ``iam denied …``.
    """
    from ministack.core import iam_evaluator

    enforce = iam_evaluator.enforce

    def tell(
        key: str, action: str, service: str, region: str, resource_arn: str = "*", **more: Any
    ) -> Any:
        denied = enforce(key, action, service, region, resource_arn, **more)
        caller = iam_evaluator.resolve_caller_identity(key) or {}
        _, assumed, role = caller.get("userArn", "").partition(":assumed-role/")
        if assumed:
            decision = "denied" if denied else "allowed"
            line = f"iam {decision} {role.partition('/')[0]} {action} {resource_arn}\n"
            # Not print, which writes a line's end apart, maybe after another thread's line.
            sys.stdout.write(line)
            sys.stdout.flush()
        return denied

    iam_evaluator.enforce = tell
