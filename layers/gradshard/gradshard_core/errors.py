"""The errors of gradshard: each names the object and the number that is off, and what to do."""

from typing import Self


class GradshardError(Exception):
    """Something a user can mend; its text is written to be read by them."""


class SpecError(GradshardError):
    """A round was asked for in terms that make no sense."""


class UpdateError(GradshardError):
    """A client's update cannot be averaged; the text is the reason its sender reads."""


class PlanError(GradshardError):
    """The round cannot be aggregated within the limits; the text has the numbers."""


class ChangedObjectError(GradshardError):
    """An object is not, or no longer, the version that was frozen into the plan."""


class StoreError(GradshardError):
    """S3 rejected a request, or went on failing after the retries."""


class UnsentError(StoreError):
    """S3 refused a stream for now. Its bytes are not kept, so they have to be made again."""


class UnreadableObjectError(StoreError):
    """S3 has an object but does not give it: it is archived, or under a key that is not ours."""


class BrokenObjectError(StoreError):
    """An object of a round's own is not what was written; the next read may give what was."""


class DigestError(GradshardError):
    """The bytes that arrived are not those that S3 has."""


class ServiceError(GradshardError):
    """An AWS service besides S3 rejected a request or cannot be reached."""


class RoundNotFoundError(GradshardError):
    """There is no round of that name."""

    @classmethod
    def of(cls, round_id: str) -> Self:
        """Make one that says what to do."""
        return cls(f"there is no round {round_id!r}: look at the name, or open it first")

    @classmethod
    def deleted(cls, round_id: str, dates: str) -> Self:
        """Make one for a round of which only its execution is left; ``dates`` say when it ran."""
        return cls(
            f"round {round_id!r} ran {dates}, and its objects have been deleted since: open a "
            "round of another name"
        )


class RoundExistsError(GradshardError):
    """A round of that name was opened before, in other terms."""


class RoundStateError(GradshardError):
    """The round is not, or no longer, at the point where that can be done."""


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
    """There is no model, or no version of it, of that name."""


class ModelStateError(GradshardError):
    """The model has moved on since the round, or whoever changes it, looked at it."""


class TicketError(GradshardError):
    """A ticket cannot be made or read, or does not open what was asked for.

    The text never holds its URLs.
    """


class WaitTimeoutError(GradshardError):
    """The round has not ended within the time the caller was willing to wait."""


class EngineError(GradshardError):
    """The local engine cannot be started, reached or stopped."""


class DeployError(GradshardError):
    """The application cannot be built or deployed from this machine."""
