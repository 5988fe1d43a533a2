"""Tickets: with one, a client without AWS credentials takes part in one round.

A ticket is a few presigned URLs: S3 checks each one's signature, and with it the object's key, the
method, the time, and for the upload that there is no object yet and how long it is. A signature
holds for one length only, so a ticket has one for each of up to a thousand lengths, and the client
fills its update's header up with spaces to the next of them. Large updates go up in parts, each of
which has URLs of its own (:mod:`gradshard.client.ticket_parts`).
"""

import contextlib
import errno
import itertools
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Final, NoReturn, Self, overload

from urllib3.exceptions import HTTPError

from gradshard.client import ticket_parts
from gradshard.client.downloads import fetch_tensors
from gradshard.client.presigned import Answer, Line, is_url, origin_of
from gradshard.client.tensors import Array
from gradshard.client.ticket_parts import PartUrls
from gradshard.client.upload_source import Content, Padded, check_finite, content_of, in_order_of
from gradshard.client.uploads import (
    Progress,
    SentOnce,
    checksum_of,
    has_etag,
    holds_by_etag,
    send_parts,
    tell_nobody,
)
from gradshard.utils.atomic_file import add_path_to_errors
from gradshard.utils.polling import sleep_before_poll
from gradshard_core.errors import (
    ChangedObjectError,
    RoundFailed,
    RoundStateError,
    SpecError,
    TicketError,
    UpdateError,
    WaitTimeoutError,
)
from gradshard_core.formats.digests import parts_of
from gradshard_core.formats.keys import ObjectVersion, RoundKeys, check_id
from gradshard_core.formats.layout import Layout
from gradshard_core.planning.transfers import SINGLE_PUT_BYTES
from gradshard_core.s3.store import Part, S3Store
from gradshard_core.s3.streams import MAX_ATTEMPTS, Body, Meter, sleep_backoff
from gradshard_core.units import MIB

VERSION: Final = 1
"""Of the file's form."""

MAX_SECONDS: Final = 7 * 24 * 3600
"""How long S3 takes a presigned URL,
https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-presigned-url.html (2026-11)."""

DEFAULT_SECONDS: Final = 24 * 3600

MAX_LENGTHS: Final = 1024
"""Filling up then costs at most a thousandth of the largest update; the file has 100 kB."""

MIN_STEP_BYTES: Final = 64 * 1024
"""Steps finer than this would save no request: so much of an update is read for its header."""

MAX_FILE_BYTES: Final = MIB
"""What is larger is no ticket, but perhaps the update."""

UPLOAD_ATTEMPTS: Final = 3
"""Of a whole update each."""

PASSING: Final = frozenset({"RequestTimeout", "ConditionalRequestConflict", "OperationAborted"})
"""Errors of S3 that another attempt may not meet: a slow line, or two requests at once."""

NOT_A_TICKET: Final = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    SpecError,
    UpdateError,
    RecursionError,
)
"""What reading some other file as a ticket ends in."""

_SIGNATURE: Final = "&X-Amz-Signature="
_LENGTH: Final = re.compile(r"\d{1,15}", re.ASCII)
_METADATA: Final = "x-amz-meta-"


def lengths(max_bytes: int, min_bytes: int = 1) -> range:
    """Return the lengths an update of ``min_bytes`` or more may be filled up to, longest first."""
    step = max(MIN_STEP_BYTES, -(-max_bytes // MAX_LENGTHS))
    return range(max_bytes, min_bytes - 1, -step)


@dataclass(frozen=True)
class Ticket:
    """What opens one client's part in one round; whoever has it is that client.

    Its URLs are secrets, and are in no error and no ``repr``.

    Parameters
    ----------
    round_id, client
        Whose part.
    expires_at
        When S3 rejects it, or earlier if the credentials end that it was made with.
    max_bytes
        How long an update may be, its header included.
    upload
        Beginnings of URLs for a PUT, and for each the ends by length; none if there are ``parts``.
    parts
        What an update goes up with that may be too large for one PUT.
    layout
        What the update's tensors must be, as a round's terms have it, if that is known: the ticket
        is not to be used up by an update that would be rejected.
    model
        Of a round that is applied, the model to train: ``url`` for a GET, ``etag`` and ``nbytes``.
    allow_nonfinite
        Whether NaN and infinities may be sent; an update that would be rejected for them is not.
    uploaded_url
        For a HEAD of the update.
    rejection_url
        For a GET of why it was rejected.
    ended_url
        For a HEAD of the manifest, which is there when the round has ended. What it says names
        the other clients, so it cannot be read.
    result_url
        For a GET of the averaged update.
    """

    round_id: str
    client: str
    expires_at: datetime
    max_bytes: int
    upload: Mapping[str, Mapping[str, str]] = field(repr=False)
    uploaded_url: str = field(repr=False)
    rejection_url: str = field(repr=False)
    ended_url: str = field(repr=False)
    result_url: str = field(repr=False)
    parts: PartUrls | None = field(default=None, repr=False)
    layout: Mapping[str, Any] | None = field(default=None, repr=False)
    model: Mapping[str, Any] | None = field(default=None, repr=False)
    allow_nonfinite: bool = True

    @classmethod
    def make(
        cls,
        store: S3Store,
        keys: RoundKeys,
        client: str,
        *,
        expires: int,
        max_bytes: int,
        min_bytes: int = 1,
        layout: Layout | None = None,
        allow_nonfinite: bool = True,
        model: ObjectVersion | None = None,
        single_put_bytes: int = SINGLE_PUT_BYTES,
    ) -> Self:
        """Make a ticket with the credentials of a bucket's store.

        Nothing is asked of S3, unless ``max_bytes`` is over ``single_put_bytes``: then an upload in
        parts is begun. Each length takes a millisecond to sign: whoever knows that updates have
        ``min_bytes`` at least spares those below.

        Raises
        ------
        TicketError
            S3 takes no such time or size.
        StoreError
            S3 begins no upload.
        """
        _check_given("expires", expires, MAX_SECONDS)
        _check_given("max_bytes", max_bytes, ticket_parts.MAX_UPDATE_BYTES)
        expires_at = datetime.now(UTC) + timedelta(seconds=expires)
        key = keys.update(client)
        upload: dict[str, dict[str, str]] = {}
        parts: PartUrls | None = None
        if max_bytes > single_put_bytes:
            parts = PartUrls.make(
                store, key, expires=expires, max_bytes=max_bytes, min_bytes=min_bytes
            )
        for length in () if parts else lengths(max_bytes, min_bytes):
            url = store.presign_new(key, length, expires)
            # All but the signature is the same, unless a second has passed.
            begin, mark, end = url.partition(_SIGNATURE)
            upload.setdefault(begin + mark, {})[str(length)] = end
        return cls(
            round_id=keys.round_id,
            client=client,
            expires_at=expires_at,
            max_bytes=max_bytes,
            upload=upload,
            uploaded_url=store.presign_read(key, expires, head=True),
            rejection_url=store.presign_read(keys.rejection(client), expires),
            ended_url=store.presign_read(keys.manifest, expires, head=True),
            result_url=store.presign_read(keys.result, expires),
            parts=parts,
            layout=_bounded(layout),
            allow_nonfinite=allow_nonfinite,
            model=None
            if model is None
            else {
                "url": store.presign_read(model.key, expires),
                "etag": model.etag,
                "nbytes": model.nbytes,
            },
        )

    @classmethod
    def reading(
        cls, store: S3Store, keys: RoundKeys, client: str, key: str, *, expires: int
    ) -> Self:
        """Make a ticket that uploads nothing, and fetches the object ``key`` when it is there.

        Raises
        ------
        TicketError
            S3 takes no such time.
        """
        _check_given("expires", expires, MAX_SECONDS)
        return cls(
            round_id=keys.round_id,
            client=client,
            expires_at=datetime.now(UTC) + timedelta(seconds=expires),
            max_bytes=0,
            upload={},
            uploaded_url=store.presign_read(keys.update(client), expires, head=True),
            rejection_url=store.presign_read(keys.rejection(client), expires),
            ended_url=store.presign_read(key, expires, head=True),
            result_url=store.presign_read(key, expires),
        )

    @classmethod
    def loads(cls, text: str) -> "Ticket":
        """Read what :meth:`dumps` gave.

        Raises
        ------
        TicketError
            It is no ticket.
        """
        ticket = _parse(text.encode())
        if ticket is None:
            raise TicketError("the text is not a ticket: give what Ticket.dumps gave")
        return ticket

    @classmethod
    def load(cls, path: str | Path) -> "Ticket":
        """Read a ticket's file.

        Raises
        ------
        TicketError
            It is none.
        """
        with Path(path).open("rb") as file:
            ticket = _parse(file.read(MAX_FILE_BYTES + 1))
        if ticket is None:
            raise TicketError(
                f"{path} is not a ticket: give the file that `gradshard ticket` wrote"
            )
        return ticket

    def save(self, path: str | Path) -> None:
        """Write the ticket to a new file that only its owner can read.

        Raises
        ------
        OSError
            The file is there already, or cannot be written; then there is none.
        """
        path = Path(path)
        try:
            # Made with its mode, and never opened to others meanwhile.
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

    def dumps(self) -> str:
        """Return the ticket as its file holds it: a secret, as the file is."""
        record = asdict(self)
        record |= {"ticket": VERSION, "expires_at": self.expires_at.isoformat(timespec="seconds")}
        return json.dumps(record, separators=(",", ":"))

    def submit(
        self,
        update: Mapping[str, Any] | str | Path,
        samples: int | None = None,
        *,
        training: Mapping[str, float] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Upload the client's update, which the ticket allows once.

        The same update again is no error. Where the connection breaks, a PUT is sent from the
        beginning, three times at most; of an upload in parts only the part that broke, and what
        has arrived stays for the next submission.

        Parameters
        ----------
        update, samples, training, progress
            As :meth:`gradshard.client.federation.Round.submit` takes them.

        Raises
        ------
        UpdateError
            The update could not be averaged, or is too large; nothing was sent.
        RoundStateError
            The round has ended.
        TicketError
            The ticket was used for another update, or S3 takes it no more.
        """
        with content_of(update, samples, training) as given:
            content = self._fitted(given)
            if content.nbytes > self.max_bytes:
                raise UpdateError(
                    f"the update is {content.nbytes} bytes, over the {self.max_bytes} of the "
                    "ticket; ask for one for larger updates"
                )
            if not self.allow_nonfinite:
                check_finite(content)
            padded = Padded(content, self._fitting(content.nbytes))
            if self._has(padded):
                return
            if self.has_ended():
                raise RoundStateError(
                    f"round {self.round_id!r} has ended; ask for a ticket of the next one"
                )
            tell = progress or tell_nobody
            if self.parts:
                self._put_parts(self.parts, padded, tell)
            else:
                self._put(padded, tell)

    def rejection(self) -> str | None:
        """Return why the client's update was rejected or came too late; None if it was not."""
        answer = self._ask("GET", self.rejection_url)
        if answer is None:
            return None
        try:
            return str(json.loads(answer.content)["reason"])
        except (ValueError, LookupError, TypeError, RecursionError):
            raise self._not_s3(f"{len(answer.content)} bytes that give no reason") from None

    def has_ended(self) -> bool:
        """Whether the round has ended, well or not."""
        return self._ask("HEAD", self.ended_url) is not None

    def status(self) -> dict[str, Any]:
        """Return what the ticket's holder may know of the round, as JSON.

        ``state`` is ``open``, ``completed`` or ``failed``; ``uploaded`` the bytes of the client's
        update, and ``reason`` why it was rejected or came too late, or None.
        """
        answer = self._ask("HEAD", self.uploaded_url)
        state = "open"
        if self.has_ended():
            state = "failed" if self._find_result() is None else "completed"
        return {
            "round": self.round_id,
            "client": self.client,
            "state": state,
            "uploaded": None if answer is None else self._length(answer),
            "reason": self.rejection(),
            "expires_at": self.expires_at.isoformat(timespec="seconds"),
            "max_bytes": self.max_bytes,
        }

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the round has ended well.

        Parameters
        ----------
        timeout
            Seconds to wait at most.

        Raises
        ------
        RoundFailed
            There is no averaged update.
        WaitTimeoutError
            The round goes on.
        """
        give_up = None if timeout is None else time.monotonic() + timeout
        for looks in itertools.count():
            if self.has_ended():
                self._ended_result()
                return
            if give_up is not None and time.monotonic() >= give_up:
                break
            sleep_before_poll(looks, give_up)
        raise WaitTimeoutError(f"round {self.round_id!r} has not ended within {timeout:g} s")

    @overload
    def fetch(self, *, progress: Progress | None = None) -> dict[str, Array]: ...

    @overload
    def fetch(self, path: str | Path, *, progress: Progress | None = None) -> Path: ...

    def fetch(
        self, path: str | Path | None = None, *, progress: Progress | None = None
    ) -> dict[str, Array] | Path:
        """Fetch the averaged update, as :meth:`gradshard.client.federation.Round.fetch` does.

        Raises
        ------
        RoundFailed
            There is none.
        RoundStateError
            There is none yet.
        """
        if not self.has_ended():
            raise RoundStateError(f"round {self.round_id!r} has not ended; wait for it first")
        reader = _Reader(self, self.result_url)
        return fetch_tensors(reader, self._ended_result(), path, progress)

    @overload
    def fetch_model(self, *, progress: Progress | None = None) -> dict[str, Array]: ...

    @overload
    def fetch_model(self, path: str | Path, *, progress: Progress | None = None) -> Path: ...

    def fetch_model(
        self, path: str | Path | None = None, *, progress: Progress | None = None
    ) -> dict[str, Array] | Path:
        """Fetch the model to train, as :meth:`gradshard.client.federation.Round.fetch_model` does.

        Raises
        ------
        RoundStateError
            The round is not applied to a model.
        """
        if self.model is None:
            raise RoundStateError(f"round {self.round_id!r} is not applied to a model")
        url, etag, nbytes = self.model["url"], self.model["etag"], self.model["nbytes"]
        source = ObjectVersion(f"the model of round {self.round_id!r}", "", etag, nbytes)
        return fetch_tensors(_Reader(self, url), source, path, progress)

    @property
    def temporary(self) -> bool:
        """Whether it was made with credentials that end on their own."""
        return "X-Amz-Security-Token=" in self.result_url

    @property
    def _upload_urls(self) -> dict[int, str]:
        return {
            int(length): begin + end
            for begin, ends in self.upload.items()
            for length, end in ends.items()
        }

    def _fitted(self, content: Content) -> Content:
        """Check an update's layout, and return it in the order of the round's."""
        expected = None if self.layout is None else _layout(self.layout)
        difference = expected and expected.difference(content.layout)
        if difference:
            raise UpdateError(
                f"its layout is not the one round {self.round_id!r} was opened with: {difference}"
            )
        return in_order_of(expected, content)

    def _fitting(self, nbytes: int) -> int:
        """Return the least length that the ticket takes and an update can be filled up to."""
        if self.parts:
            return self.parts.fitting(nbytes)
        return min(n for n in self._upload_urls if n >= nbytes)

    @property
    def host(self) -> str:
        """Where it goes, such as ``https://bucket.s3.eu-central-1.amazonaws.com``."""
        return origin_of(self.result_url)

    @cached_property
    def _line(self) -> Line:
        return Line(self.result_url)

    def _put(self, content: Content, tell: Progress) -> None:
        mark = _mark_of(content)
        for failures in range(UPLOAD_ATTEMPTS):
            if failures:
                sleep_backoff(failures)
            body = SentOnce(content, tell)
            headers: dict[str, Any] = {
                "Content-Length": str(content.nbytes),
                "If-None-Match": "*",
                "Content-Disposition": mark,
                # A rejection then comes before the body is sent. In bytes botocore looks for it.
                "Expect": b"100-continue",
            }
            tell(0, content.nbytes)
            with contextlib.suppress(OSError):
                answer = self._line.send("PUT", self._upload_urls[content.nbytes], headers, body)
                if answer.status_code == 200:
                    self._check_of_s3(answer)
                    return
                if answer.status_code == 412:
                    self._check_used_for(content)
                    return
                self._check_passing(answer)
            body.check()
        raise TicketError(
            f"uploading to round {self.round_id!r} broke {UPLOAD_ATTEMPTS} times; submit it again"
        )

    def _put_parts(self, urls: PartUrls, content: Content, tell: Progress) -> None:
        """Send what parts of an update are not there yet, and make the update of them."""
        ranges = urls.ranges(content.nbytes)
        answer = self._ask("GET", urls.listing)
        if answer is None:
            raise self._gone()
        there = ticket_parts.listed(answer.content)
        held = [part for part in there if holds_by_etag(content, part, ranges)]

        def send(number: int, body: IO[bytes], nbytes: int) -> Part:
            return self._put_part(urls.put(number, nbytes), number, body, nbytes)

        sent = send_parts(content, ranges, held, send, tell)
        self._complete(urls, content, ticket_parts.completion(sent))

    def _put_part(self, url: str, number: int, body: IO[bytes], nbytes: int) -> Part:
        headers = {"Content-Length": str(nbytes), "Expect": b"100-continue"}
        for failures in range(MAX_ATTEMPTS):
            if failures:
                sleep_backoff(failures)
                body.seek(0)
            with contextlib.suppress(OSError):
                answer = self._line.send("PUT", url, headers, body)
                if answer.status_code == 200:
                    self._check_of_s3(answer)
                    return Part(number, self._header(answer, "ETag"), nbytes)
                if answer.status_code == 404:
                    raise self._gone()
                self._check_passing(answer)
        raise TicketError(
            f"uploading part {number} to round {self.round_id!r} broke {MAX_ATTEMPTS} times; "
            "submit again: what has arrived is not sent again"
        )

    def _complete(self, urls: PartUrls, content: Content, body: bytes) -> None:
        for failures in range(MAX_ATTEMPTS):
            if failures:
                sleep_backoff(failures)
            with contextlib.suppress(OSError):
                answer = self._line.send("POST", urls.completion, {"If-None-Match": "*"}, body)
                # S3 begins to answer before it is done: the status says nothing of a failure.
                if answer.status_code == 200 and not answer.code:
                    self._check_of_s3(answer)
                    return
                # 404: of an attempt before, whose answer was lost.
                if answer.status_code in {404, 412}:
                    self._check_used_for(content)
                    return
                if answer.status_code == 400:
                    raise TicketError(
                        f"S3 cannot put the parts of client {self.client!r} in round "
                        f"{self.round_id!r} together ({answer.code}): another program sent some "
                        "with the same ticket meanwhile; submit again"
                    )
                if answer.status_code != 200:
                    self._check_passing(answer)
        raise TicketError(
            f"S3 did not finish the upload to round {self.round_id!r}, {MAX_ATTEMPTS} times in a "
            "row; submit again: what has arrived is not sent again"
        )

    def _gone(self) -> TicketError:
        return TicketError(
            f"the upload of client {self.client!r} to round {self.round_id!r} that the ticket was "
            "made for is gone: its update was taken away, or it lay unfinished for too long; ask "
            "the round's operator for another ticket"
        )

    def _has(self, content: Content) -> bool:
        """Whether this very update is there already.

        Raises
        ------
        TicketError
            Another one is.
        """
        answer = self._ask("HEAD", self.uploaded_url)
        if answer is None:
            return False
        if self._is_of(answer, content):
            return True
        nbytes = self._length(answer)
        under_kms = answer.headers.get("x-amz-server-side-encryption", "").startswith("aws:kms")
        if self.parts and under_kms and nbytes == content.nbytes:
            raise TicketError(
                f"the ticket of client {self.client!r} was used already: an update of {nbytes} "
                f"bytes is in round {self.round_id!r}; whether it is this one cannot be told, "
                "since it was sent in parts and is under a KMS key"
            )
        raise TicketError(
            f"the ticket of client {self.client!r} was used already: another update, of "
            f"{nbytes} bytes, is in round {self.round_id!r}; a ticket uploads once, unless the "
            "round's operator deletes that update"
        )

    def _is_of(self, answer: Answer, content: Content) -> bool:
        """Whether an update that is there, as S3 answers, is this one."""
        if self._length(answer) != content.nbytes:
            return False
        if self.parts is None:
            return bool(answer.headers.get("Content-Disposition") == _mark_of(content))
        return has_etag(content, self._header(answer, "ETag"), self.parts.ranges(content.nbytes))

    def _check_used_for(self, content: Content) -> None:
        # Of an attempt before, whose answer was lost; or of someone else who has the ticket.
        if not self._has(content):
            raise TicketError(
                f"the update of client {self.client!r} in round {self.round_id!r} was taken away "
                "meanwhile; ask the round's operator"
            )

    def _find_result(self) -> ObjectVersion | None:
        """Return the averaged update; None if there is none."""
        answer = self._ask("GET", self.result_url, {"Range": "bytes=0-0"})
        if answer is None:
            return None
        size = self._header(answer, "Content-Range").rpartition("/")[2]
        if not _LENGTH.fullmatch(size):
            raise self._not_s3("no object's length")
        nbytes = int(size)
        key = RoundKeys(self.round_id).result
        return ObjectVersion(key, "", self._header(answer, "ETag"), nbytes)

    def _ended_result(self) -> ObjectVersion:
        source = self._find_result()
        if source is None:
            raise RoundFailed(
                f"round {self.round_id!r} failed; its operator can see why "
                f"(gradshard show {self.round_id})"
            )
        return source

    def _ask(
        self, method: str, url: str, headers: Mapping[str, str] | None = None
    ) -> Answer | None:
        """Make a request without a body, again where it breaks; None if there is no object."""
        for failures in range(MAX_ATTEMPTS):
            if failures:
                sleep_backoff(failures)
            with contextlib.suppress(OSError):
                answer = self._line.send(method, url, headers or {})
                if answer.status_code == 404 or answer.status_code < 300:
                    self._check_of_s3(answer)
                    return None if answer.status_code == 404 else answer
                if answer.status_code < 500:
                    self._rejected(answer)
        raise TicketError(
            f"S3 does not answer for round {self.round_id!r}, {MAX_ATTEMPTS} times in a row; see "
            "whether this machine is connected, and try again"
        )

    def _check_passing(self, answer: Answer) -> None:
        """Raise what S3 answers for good; return if another attempt may fare better."""
        if answer.status_code < 500 and answer.code not in PASSING and answer.status_code != 409:
            self._rejected(answer)

    def _header(self, answer: Answer, name: str) -> str:
        found = answer.headers.get(name)
        if not found:
            raise self._not_s3(f"no {name}")
        return found

    def _length(self, answer: Answer) -> int:
        found = self._header(answer, "Content-Length")
        if not _LENGTH.fullmatch(found):
            raise self._not_s3("no length")
        return int(found)

    def _check_of_s3(self, answer: Answer) -> None:
        if not answer.is_of_s3:
            raise self._not_s3(f"{answer.status_code} without a request's id")

    def _not_s3(self, what: str) -> TicketError:
        return TicketError(
            f"{self.host} does not answer as S3 does ({what}): something between may answer "
            "instead, such as a network that asks for a login; open a web page, or use another "
            "network"
        )

    def _rejected(self, answer: Answer) -> NoReturn:
        """Say why S3 does not take the ticket; of its answer only the code, which is plain."""
        if not (answer.is_of_s3 or answer.code):
            raise self._not_s3(str(answer.status_code))
        if datetime.now(UTC) >= self.expires_at:
            why = f"it expired at {self.expires_at.isoformat(timespec='seconds')}"
        else:
            why = (
                f"S3 answered {answer.code or answer.status_code}: the credentials "
                "it was made with have ended, or may not do this"
            )
        raise TicketError(
            f"the ticket of client {self.client!r} in round {self.round_id!r} is not valid: {why}; "
            "ask the round's operator for another"
        )


def _mark_of(content: Content) -> str:
    """Return by what an update's sender knows it again: a header that S3 keeps, with its SHA-256.

    S3's own checksum is a header that a ticket would have to sign, before there is an update; and
    an ETag is not the MD5 of the bytes under a KMS key.
    """
    return f'attachment; sha256="{checksum_of(content)}"'


class _Reader:
    """What a ticket has a URL for."""

    def __init__(self, ticket: Ticket, url: str) -> None:
        self.meter = Meter()
        self._ticket, self._url = ticket, url

    def get_body(self, source: ObjectVersion, start: int, end: int) -> Body:
        """Open bytes [start, end) of it."""
        self.meter.add(gets=1)
        headers = {"Range": f"bytes={start}-{end - 1}", "If-Match": source.etag}
        answer = self._ticket._line.send("GET", self._url, headers, stream=True)
        if answer.status_code in {404, 412}:
            raise ChangedObjectError(f"{source.key}: it changed while it was fetched")
        if 400 <= answer.status_code < 500:
            self._ticket._rejected(answer)
        expected = f"bytes {start}-{end - 1}/{source.nbytes}"
        if answer.headers.get("Content-Range") != expected:
            answer.raw.close()
            raise OSError(f"S3 answered {answer.status_code}")
        metadata = {
            name.lower().removeprefix(_METADATA): value for name, value in answer.headers.items()
        }
        encryption = answer.headers.get("x-amz-server-side-encryption", "")
        return _Body(answer, parts_of(source.etag, source.nbytes, metadata, encryption))


class _Body:
    """An answer's body, whose failures are errors without its URL.

    ``parts`` are the sizes by which the object can be checked
    (:mod:`gradshard_core.formats.digests`).
    """

    def __init__(self, answer: Answer, parts: tuple[int, ...] | None) -> None:
        self._raw = answer.raw
        self.parts = parts
        self.close = answer.raw.close

    def readinto(self, buffer: memoryview, /) -> int:
        try:
            count: int = self._raw.readinto(buffer)
        except HTTPError as error:
            raise OSError(f"the connection broke ({type(error).__name__})") from None
        return count


def _bounded(layout: Layout | None) -> dict[str, Any] | None:
    """Return a layout as a ticket has it, unless its file would become too large for that."""
    stated = None if layout is None else layout.to_json()
    return stated if len(json.dumps(stated)) <= MAX_FILE_BYTES // 2 else None


def _layout(tensors: Mapping[str, Any]) -> Layout:
    return Layout.pack((name, of["dtype"], of["shape"]) for name, of in tensors.items())


def _check_given(name: str, value: Any, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise TicketError(
            f"{name} is {value!r}, not a whole number from 1 to {most}, the most that S3 takes"
        )


def _parse(data: bytes) -> Ticket | None:
    """Read a ticket; None if it is none."""
    try:
        return _parsed(data)
    except NOT_A_TICKET:
        return None


def _parsed(data: bytes) -> Ticket:
    """Read a ticket, or fail in one of the ways of :data:`NOT_A_TICKET`."""
    record = json.loads(data)
    if record.pop("ticket") != VERSION:
        raise ValueError("of another form")
    parts = None if record["parts"] is None else PartUrls(**record["parts"])
    record |= {"expires_at": datetime.fromisoformat(record["expires_at"]), "parts": parts}
    ticket = Ticket(**record)
    check_id("round", ticket.round_id)
    check_id("client", ticket.client)
    reads = (ticket.uploaded_url, ticket.rejection_url, ticket.ended_url, ticket.result_url)
    uploads = (*ticket._upload_urls.values(), *(parts.urls() if parts else ()))
    if not all(is_url(url) for url in (*reads, *uploads)):
        raise ValueError("no URL")
    if ticket.layout is not None:
        _layout(ticket.layout)
    if ticket.model is not None and not (
        is_url(ticket.model["url"])
        and type(ticket.model["nbytes"]) is int
        and 0 < ticket.model["nbytes"] <= ticket_parts.MAX_UPDATE_BYTES
        and isinstance(ticket.model["etag"], str)
    ):
        raise ValueError("no model")
    urls = (*reads, *uploads, *([] if ticket.model is None else [ticket.model["url"]]))
    if len({origin_of(url) for url in urls}) != 1:
        raise ValueError("of several hosts")
    if parts and ticket.upload:
        raise ValueError("two ways to upload")
    if type(ticket.allow_nonfinite) is not bool:
        raise ValueError("neither allowed nor not")
    most = max(ticket._upload_urls, default=0)
    takes_most = parts.takes(ticket.max_bytes) if parts else most == ticket.max_bytes
    if not takes_most or ticket.expires_at.tzinfo is None:
        raise ValueError("at odds with itself")
    return ticket
