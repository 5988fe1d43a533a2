"""A client's actions in a round. They are the same with AWS credentials and with a ticket."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, overload

from gradshard.updates.compression import decoded
from gradshard.updates.downloads import Checking, fetch_tensors
from gradshard.updates.tensors import Array
from gradshard.updates.upload_source import Content, check_finite, in_order_of
from gradshard.updates.uploads import Progress
from gradshard.utils.polling import poll
from gradshard_core.errors import RoundStateError, UpdateError, WaitTimeoutError
from gradshard_core.formats.object_keys import ObjectVersion
from gradshard_core.formats.tensor_layout import Layout

T = TypeVar("T")

Source = tuple[Checking, ObjectVersion, str]
"""An object, what opens ranges of it, and its checksum; empty if that has to be asked for."""


class RoundAccess(ABC):
    """Access to one round; subclasses say how its objects are reached."""

    @property
    @abstractmethod
    def id(self) -> str:
        """The round's id."""

    @abstractmethod
    def has_ended(self) -> bool:
        """Return whether the round has ended, completed or failed."""

    @abstractmethod
    def _average(self) -> Source:
        """Return the average; raise if there is none, or none yet."""

    @abstractmethod
    def _model(self) -> Source:
        """Return the model that the round began from; raise if it has none."""

    @overload
    def fetch(self, *, progress: Progress | None = None) -> dict[str, Array]: ...

    @overload
    def fetch(self, path: str | Path, *, progress: Progress | None = None) -> Path: ...

    def fetch(
        self, path: str | Path | None = None, *, progress: Progress | None = None
    ) -> dict[str, Array] | Path:
        """Fetch the average.

        Parameters
        ----------
        path
            The file to write, in a few MB of memory; it appears when it is complete.
        progress
            Called with the bytes received and the total.

        Returns
        -------
        dict or Path
            Arrays by name, which share one buffer; or ``path``.

        Raises
        ------
        RoundFailed
            The round failed; the error has the cause, unless a ticket is used.
        RoundStateError
            The round has not ended.
        """
        return fetch_tensors(*self._average(), path, progress)

    @overload
    def fetch_model(self, *, progress: Progress | None = None) -> dict[str, Array]: ...

    @overload
    def fetch_model(self, path: str | Path, *, progress: Progress | None = None) -> Path: ...

    def fetch_model(
        self, path: str | Path | None = None, *, progress: Progress | None = None
    ) -> dict[str, Array] | Path:
        """Fetch the model that the round began from, as :meth:`fetch` fetches the average.

        Raises
        ------
        RoundStateError
            The round makes no version of a model, or is just being opened.
        """
        return fetch_tensors(*self._model(), path, progress)

    def _wait(self, timeout: float | None, look: Callable[[int], T | None]) -> T:
        """Poll until ``look``, which gets the number of the poll, returns something.

        Raises
        ------
        WaitTimeoutError
            The timeout passed.
        """
        for number in poll(timeout):
            if (found := look(number)) is not None:
                return found
        raise WaitTimeoutError(f"round {self.id!r} has not ended within {timeout:g} s")

    def _fit(
        self,
        content: Content,
        layout: Layout | None,
        *,
        partial: bool = False,
        allow_nonfinite: bool,
    ) -> Content:
        """Return an update in the order of the round's layout.

        Raises
        ------
        UpdateError
            Its layout is not the round's, or it holds NaN or infinities that the round does not
            allow.
        """
        difference = layout and layout.difference(content.layout, partial=partial)
        if difference:
            raise UpdateError(
                f"the update does not have the layout of round {self.id!r}: {difference}"
            )
        if not allow_nonfinite:
            check_finite(decoded(content))
        return in_order_of(layout, content)

    def _not_ended(self) -> RoundStateError:
        return RoundStateError(f"round {self.id!r} has not ended; wait for it first")

    def _makes_no_version(self) -> RoundStateError:
        return RoundStateError(f"round {self.id!r} makes no version of a model")
