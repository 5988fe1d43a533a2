"""The errors of gradshard. Their texts name the object, the wrong number, and what to do."""

import json
from typing import Final, Self


class GradshardError(Exception):
    """An error that a user can solve; its text says how."""


class SpecError(GradshardError):
    """The options of a round are not valid."""


class UpdateError(GradshardError):
    """A client's update cannot be averaged; its sender can read the text."""


class PlanError(GradshardError):
    """The round cannot be aggregated within the limits; the text has the numbers."""


class KeeperError(GradshardError):
    """The mask keeper has not answered, or has refused."""


class ChangedObjectError(GradshardError):
    """An object is not, or no longer, the version that was frozen into the plan."""


class StoreError(GradshardError):
    """S3 rejected a request, or failed at every retry."""


class UnsentError(StoreError):
    """S3 was too busy to take a stream, whose bytes have to be computed again."""


class ReplacedPartError(StoreError):
    """A part of an upload is not, or no longer, the one with which it was to be completed."""


class UnreadableObjectError(StoreError):
    """S3 does not return an object: it is archived, or its KMS key is not allowed."""


class BrokenObjectError(StoreError):
    """An object of a round has other content than was written; the next read may be right."""


class DigestError(GradshardError):
    """The received bytes differ from those that S3 has."""


class ServiceError(GradshardError):
    """An AWS service besides S3 rejected a request or cannot be reached."""


class RoundNotFoundError(GradshardError):
    """There is no round of that name."""

    @classmethod
    def of(cls, round_id: str) -> Self:
        """Make an error that says what to do."""
        return cls(f"there is no round {round_id!r}: look at the name, or open it first")

    @classmethod
    def deleted(cls, round_id: str, dates: str) -> Self:
        """Make an error for a round whose objects are deleted; ``dates`` say when it ran."""
        return cls(
            f"round {round_id!r} ran {dates}, and its objects have been deleted since: open a "
            "round of another name"
        )


class RoundExistsError(GradshardError):
    """A round of that name was opened before, with other options."""


class RoundStateError(GradshardError):
    """The state of the round does not allow the action."""


class RoundFailed(GradshardError):  # noqa: N818 - the outcome a caller waits for, not a fault of the call
    """The round ended without an averaged update; the text is the recorded cause."""


class TrainingNotFoundError(GradshardError):
    """There is no training of that name."""

    @classmethod
    def of(cls, name: str) -> Self:
        """Make one that says what to do."""
        return cls(f"there is no training {name!r}: look at the name, or start it first")


class TrainingExistsError(GradshardError):
    """A training of that name was started before, with other options."""


class TrainingStateError(GradshardError):
    """The training is not, or no longer, at the point where that can be done."""


class TrainingFailed(GradshardError):  # noqa: N818 - as RoundFailed
    """The training could not be started, or has paused; the text is the recorded cause."""


class ModelNotFoundError(GradshardError):
    """There is no model of that name, or no such version."""


class ModelStateError(GradshardError):
    """Another version of the model was made meanwhile."""


class PrivacyBudgetError(GradshardError):
    """A round would reveal more than the privacy budget of its model allows."""


class TicketError(GradshardError):
    """A ticket cannot be made or read, or does not allow the request.

    The text never holds its URLs.
    """


class TicketUnansweredError(TicketError):
    """S3 does not answer the requests of a ticket's holder; it may later."""


class WaitTimeoutError(GradshardError):
    """The round has not ended within the timeout of the caller."""


class EngineError(GradshardError):
    """The local engine cannot be started, reached or stopped."""


class DeployError(GradshardError):
    """The application cannot be built or deployed from this machine."""


def plain_failure(error: str, cause: str) -> tuple[str, str]:
    """Take error and cause out of the JSON in which Lambda wraps an exception."""
    try:
        wrapped = json.loads(cause)
    except ValueError:
        return error, cause
    if not isinstance(wrapped, dict) or "errorMessage" not in wrapped:
        return error, cause
    return str(wrapped.get("errorType", error)), str(wrapped["errorMessage"])


_OF_ANOTHER_VERSION: Final = {
    "AttributeError",
    "IndexError",
    "KeyError",
    "TypeError",
    "ValueError",
    BrokenObjectError.__name__,
}


def is_by_deploying(error: str) -> bool:
    """Return whether an error may come from a deployment while a round or a training goes on.

    Functions that are replaced run into Python's errors where the state machine, or the functions
    before, gave them something else than they read.
    """
    return error in _OF_ANOTHER_VERSION
