"""The files of tickets: secrets that only their owner can read."""

import errno
import os
from pathlib import Path
from typing import ClassVar, Final, Self

from gradshard.tickets.allowed_hosts import origin_of
from gradshard.utils.atomic_file import add_path_to_errors
from gradshard_core.errors import SpecError, TicketError, UpdateError
from gradshard_core.units import MIB

MAX_FILE_BYTES: Final = MIB
"""A larger file is not a ticket, but perhaps the update."""

NOT_A_TICKET: Final = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    SpecError,
    UpdateError,
    RecursionError,
)
"""Errors that :meth:`TicketFile.parse` raises for other files."""


class TicketFile:
    """A ticket that can be written to a file and read from one.

    Its URLs are secrets, because anyone who has them can act as its client. They appear in no error
    and in no ``repr``.
    """

    kind: ClassVar[str]
    """The kind of ticket, in errors."""
    made_by: ClassVar[str]
    """The command that makes its file, in errors."""
    max_file_bytes: ClassVar[int] = MAX_FILE_BYTES
    """The most bytes of its file."""

    @classmethod
    def parse(cls, data: str | bytes) -> Self:
        """Read the content of a file; raise one of :data:`NOT_A_TICKET` if it is none."""
        raise NotImplementedError

    def dumps(self) -> str:
        """Return the ticket as the text of its file; it is a secret, as the file is."""
        raise NotImplementedError

    @property
    def signed_url(self) -> str:
        """One of its URLs; all name the same host."""
        raise NotImplementedError

    @classmethod
    def loads(cls, text: str) -> Self:
        """Read the text that :meth:`dumps` returned.

        Raises
        ------
        TicketError
            The text is not such a ticket.
        """
        try:
            return cls.parse(text)
        except NOT_A_TICKET:
            raise TicketError(f"the text is not {cls.kind}: give what dumps gave") from None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a ticket's file.

        Raises
        ------
        TicketError
            The file is not such a ticket.
        """
        with Path(path).open("rb") as file:
            data = file.read(cls.max_file_bytes + 1)
        try:
            return cls.parse(data)
        except NOT_A_TICKET:
            raise TicketError(
                f"{path} is not {cls.kind}: give the file that `{cls.made_by}` wrote"
            ) from None

    def save(self, path: str | Path) -> None:
        """Write the ticket to a new file that only its owner can read.

        Raises
        ------
        OSError
            The file exists already, or cannot be written; then no file is left.
        """
        path = Path(path)
        try:
            # The mode is set at creation, so nobody else can open the file in between.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            what = "is there already, and may be a ticket in use: delete it, or name another file"
            raise FileExistsError(errno.EEXIST, what, str(path)) from None
        try:
            with add_path_to_errors(path), os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(self.dumps())
        except BaseException:
            path.unlink()
            raise

    @property
    def host(self) -> str:
        """The host of the requests, such as ``https://bucket.s3.eu-central-1.amazonaws.com``."""
        return origin_of(self.signed_url)

    @property
    def is_temporary(self) -> bool:
        """Whether it was made with temporary credentials, which end by themselves."""
        return "X-Amz-Security-Token=" in self.signed_url
