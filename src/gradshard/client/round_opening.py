"""Opening a round: the input of its execution, and the wait until it is open."""

import json
from collections.abc import Mapping
from typing import Any, Final

from gradshard.client.executions import Execution
from gradshard.client.stack import Stack
from gradshard.utils.polling import poll
from gradshard_core.errors import GradshardError, RoundExistsError, RoundFailed, SpecError
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.limits import aws_limits
from gradshard_core.records.stored_spec import MOST_BYTES, read_spec
from gradshard_core.specs.round_spec import RoundSpec

OPENING_SECONDS: Final = 20.0
"""Seconds that opening a round waits for its spec to appear in the bucket."""


def encode_spec(spec: RoundSpec) -> str:
    """Return a round's spec as the input of its execution.

    Raises
    ------
    SpecError
        The input is longer than Step Functions takes.
    """
    encoded = _encoded(spec)
    payload = _join(encoded)
    if len(payload) <= MOST_BYTES:
        return payload
    largest = max(encoded, key=lambda name: len(encoded[name]))
    remedies = {
        "layout": "shorten the tensors' names, or give a server_optimizer, whose model has one",
    }
    raise SpecError(
        f"the round's terms are {len(payload)} bytes of JSON, over {MOST_BYTES}, which is what "
        f"Step Functions' {aws_limits.MAX_PAYLOAD_BYTES} leave for them; {largest} takes "
        f"{len(encoded[largest])}: {remedies.get(largest, 'shorten it')}"
    )


def _encoded(spec: RoundSpec) -> dict[str, str]:
    """Return each term as JSON, in ASCII, so that a character is a byte."""
    fields = spec.to_json()
    return {name: json.dumps(value, separators=(",", ":")) for name, value in fields.items()}


def _join(encoded: Mapping[str, str]) -> str:
    return "{" + ",".join(f'"{name}":{value}' for name, value in encoded.items()) + "}"


def wait_until_open(stack: Stack, name: str, spec: RoundSpec, *, is_new: bool) -> None:
    """Wait until a round is open with this spec; not for long, since early updates count too.

    Parameters
    ----------
    stack, name, spec
        The round.
    is_new
        Whether Step Functions accepted the name as a new one.

    Raises
    ------
    RoundExistsError
        There is such a round with another spec, or there was one whose objects are deleted.
    RoundFailed
        The round could not be opened.
    """
    keys = RoundKeys(name)
    execution: Execution | None = None
    for _ in poll(OPENING_SECONDS):
        opened = read_spec(stack.store, keys)
        execution = None if opened else stack.execution(name)
        if execution and execution.has_ended:
            # The round may have been opened, and have ended, between the two requests.
            opened = read_spec(stack.store, keys)
            if opened is None:
                raise _not_opened(name, execution, is_new=is_new)
        before = opened[0].to_json() if opened else execution and execution.input
        if before is not None and (others := _differing(before, spec.to_json())):
            raise RoundExistsError(
                f"round {name!r} was opened before, with other options ({', '.join(others)}); "
                "choose another name"
            )
        if opened:
            return
    if not is_new and execution is None:
        raise RoundExistsError(
            f"Step Functions says that the name {name!r} is taken, but has no execution of "
            "it to look at; choose another name"
        )


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the names of the fields that differ."""
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


def _not_opened(name: str, execution: Execution, *, is_new: bool) -> GradshardError:
    """Return the error for a round that has ended and has no spec in the bucket."""
    if is_new and execution.failed:
        return RoundFailed(
            f"round {name!r} could not be opened ({execution.reason}); choose another name, "
            "since that one is taken now"
        )
    kept = (
        f"choose another name: it ran {execution.dates}, its objects are not there any more, and "
        f"Step Functions keeps a name for {aws_limits.NAME_KEPT_DAYS} days after its execution has "
        "ended"
    )
    if execution.failed:
        return RoundFailed(
            f"round {name!r} failed when its name was first used ({execution.reason}); {kept}"
        )
    return RoundExistsError(f"round {name!r} was opened before, and completed; {kept}")
