"""Files at an address, read by ranges: any part of one is a request, and a change of the file is told by its answer."""

from __future__ import annotations

import io
import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse, InvalidURL
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from huggingface_hub import constants, get_token

from maxgan.data.files import MAX_FILE_BYTES, StoreError
from maxgan.data.http import SCHEMES, RedirectError, get

AT_ONCE = 16
"""Threads that wait for answers, where many requests are to be made."""
PIECE_BYTES = 1 << 23
"""What is read at once of a file that is read whole."""
WAITS = (0.5, 1, 2, 4, 8, 16, 32)
"""Seconds before each further attempt, after the network or the server has failed."""
_FIRST_WAITS = 3  # at the start a mistake is likelier than a passing failure
_LONGEST_WAIT = 120
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_REFUSED = (401, 403)
_ABSENT = (404, 410)
# A request takes about as long as this many bytes.
_NEAR_BYTES = 1 << 16
_FIRST_BYTES, _MOST_BYTES = 1 << 13, 1 << 22
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "maxgan"}
T = TypeVar("T")


class AbsentError(StoreError):
    """There is no such file, or none that may be read."""


class _PassingError(Exception):
    """What may be better at the next attempt, and the seconds that the server asks to wait."""

    def __init__(self, problem: str, wait: float = 0) -> None:
        super().__init__(problem)
        self.wait = wait


def is_address(name: str) -> bool:
    """Whether a name is one of a file to be read over HTTP."""
    return name.partition("://")[0].lower() in SCHEMES and "://" in name


def plain(url: str) -> str:
    """An address without what may be secret in it: user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class RemoteFile:
    """A file at an address, as it was when this was made; safe to use from threads, after a fork, and picklable.

    The Hugging Face Hub is told the token of its user, if there is one (HF_TOKEN, or what `hf auth login` has left).

    Args:
        url: where it is; redirects are followed.

    Attributes:
        path: the address for messages.
        stamp: its size in bytes, and what tells its state: the commit of a file of the Hub, else the ETag or the time
            of the last change that the server tells; empty if it tells neither.
        ranges: whether parts of it can be read.

    Raises AbsentError if it isn't there or may not be read, and StoreError where nothing answers or no size is told.
    """

    def __init__(self, url: str) -> None:
        self.path = plain(url)
        self._url = self._place = url
        # A file of a commit never changes, whatever the servers that keep it for the Hub call its state.
        commit = re.match(re.escape(constants.ENDPOINT) + r"/.+/resolve/([0-9a-f]{40})/", url)
        self._commit = commit[1] if commit else None
        self.stamp, self.ranges = self._try(self._look, _FIRST_WAITS)

    def _look(self) -> tuple[tuple[int, str], bool]:
        """Ask for the first byte, since addresses that are signed allow no HEAD."""
        with self._get({"Range": "bytes=0-0"}) as answer:
            size = re.fullmatch(r"bytes (?:0-0|\*)/(\d+)", answer.headers.get("Content-Range", ""))
            if answer.status == 206 and size:
                answer.read(1)
            elif answer.status == 416 and size and int(size[1]) == 0:
                pass
            else:
                self._refuse(answer, 200)
                size = re.fullmatch(r"(\d+)", answer.headers.get("Content-Length", ""))
            if size is None or len(size[1]) > 18:
                raise StoreError(f"{self.path} can't be used, as its server does not tell its size: download it first")
            return (int(size[1]), self._state(answer)), answer.status != 200

    def check(self) -> None:
        """Nothing: each read tells whether the file has changed."""

    def read(self, offset: int, size: int) -> bytes:
        """Some bytes of it; raises StoreError where they can't be had, or where the file is another than it was."""
        if not self.ranges:
            raise StoreError(
                f"{self.path} is sent as a whole only, as its server knows no ranges: set data.streaming false, which "
                f"keeps a copy"
            )
        if not size:
            return b""
        assert 0 <= offset < offset + size <= self.stamp[0], (offset, size, self.stamp)
        return self._try(lambda: self._read(offset, size))

    def _read(self, offset: int, size: int) -> bytes:
        with self._get({"Range": f"bytes={offset}-{offset + size - 1}"}) as answer:
            self._refuse(answer, 206, 200, 416)
            if answer.status == 200 and self._state(answer) == self.stamp[1]:
                raise _PassingError("the whole file in place of a part")
            told = f"bytes {offset}-{offset + size - 1}/{self.stamp[0]}"
            if answer.headers.get("Content-Range") != told or self._state(answer) != self.stamp[1]:
                raise self._changed()
            if answer.headers.get("Content-Length", str(size)) != str(size):
                raise _PassingError(f"{answer.headers['Content-Length']} bytes in place of {size}")
            return self._exactly(answer, size)

    def pieces(self, start: int = 0) -> Iterator[bytes]:
        """All its bytes from `start` on, 0 where there are no ranges; raises StoreError as `read` does."""
        if self.ranges:
            for offset in range(start, self.stamp[0], PIECE_BYTES):
                yield self.read(offset, min(PIECE_BYTES, self.stamp[0] - offset))
            return
        assert start == 0, start
        try:
            with self._get({}) as answer:
                self._refuse(answer, 200)
                if (self._state(answer), answer.headers.get("Content-Length")) != (self.stamp[1], str(self.stamp[0])):
                    raise self._changed()
                for offset in range(0, self.stamp[0], PIECE_BYTES):
                    yield self._exactly(answer, min(PIECE_BYTES, self.stamp[0] - offset))
        except (_PassingError, OSError, HTTPException) as error:
            raise self._unreachable(error, 1) from error

    @contextmanager
    def _get(self, headers: dict[str, str]) -> Iterator[HTTPResponse]:
        """Ask where the address led last time: a signed place serves for a while, and spares a request each time."""
        place = self._place
        with get(place, {**_HEADERS, **_login(place), **headers}) as (answer, found):
            if place != self._url and answer.status in (400, *_REFUSED, *_ABSENT):
                raise _PassingError(f"status {answer.status}")
            if answer.status < 300:
                self._place = found
            yield answer

    def _try(self, work: Callable[[], T], waits: int | None = None) -> T:
        """What `work` gives, tried anew after waiting where the network or the server fails."""
        waits = len(WAITS) if waits is None else waits
        for attempt in range(waits + 1):
            try:
                return work()
            except (ssl.SSLCertVerificationError, RedirectError, InvalidURL) as error:
                raise self._unreachable(error, attempt + 1) from error
            except (_PassingError, OSError, HTTPException) as error:
                self._place = self._url
                if attempt == waits:
                    raise self._unreachable(error, attempt + 1) from error
                time.sleep(min(max(WAITS[attempt], getattr(error, "wait", 0)), _LONGEST_WAIT))
        raise AssertionError

    def _refuse(self, answer: HTTPResponse, *allowed: int) -> None:
        """Raise what a status means that is none of those allowed."""
        status = answer.status
        if status in allowed:
            return
        if status in _PASSING:
            after = answer.headers.get("Retry-After", "")
            raise _PassingError(f"status {status}", int(after) if re.fullmatch(r"\d{1,6}", after) else 0)
        if status in _ABSENT:
            raise AbsentError(f"{self.path} is missing (status {status}): correct data.source, or put it there")
        if status in _REFUSED:
            raise AbsentError(
                f"{self.path} is refused (status {status}): ask for the right to read it, or correct data.source"
            )
        raise StoreError(f"{self.path} can't be read (status {status}): see what its server says")

    def _exactly(self, answer: HTTPResponse, size: int) -> bytes:
        content = answer.read(size)
        if len(content) != size:
            raise _PassingError(f"the connection was cut after {len(content)} of {size} bytes")
        return content

    def _state(self, answer: HTTPResponse) -> str:
        told = answer.headers.get("ETag", answer.headers.get("Last-Modified", ""))
        return self._commit or told.removeprefix("W/")

    def _changed(self) -> StoreError:
        return StoreError(f"{self.path} was changed while it was in use: let it rest and start again")

    def _unreachable(self, error: Exception, attempts: int) -> StoreError:
        problem = " ".join(str(error).split())[:200] or type(error).__name__
        times = f"{attempts} attempt{'s' if attempts > 1 else ''}"
        return StoreError(
            f"{self.path} can't be read ({problem}; {times}): see the network and the address, and start again"
        )


def _login(url: str) -> dict[str, str]:
    """What tells the Hugging Face Hub who asks; nothing for other servers."""
    token = get_token() if url.startswith(f"{constants.ENDPOINT}/") else None
    return {"Authorization": f"Bearer {token}"} if token else {}


class Window(io.RawIOBase):
    """A remote file as a stream to seek in, for one thread.

    Near steps read on, in pieces that grow, so that a file of small parts is read through; a far one begins anew with a
    small piece, so that of large parts nothing but what is asked for is read.
    """

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._position = self._start = 0
        self._piece = b""
        self._ahead = _FIRST_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = (
            offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.stamp[0]}[whence]
        )
        return self._position

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def read(self, size: int | None = -1) -> bytes:
        rest = max(0, self._file.stamp[0] - self._position)
        size = rest if size is None or size < 0 else min(size, rest)
        if not size:
            return b""
        if size > MAX_FILE_BYTES:
            raise StoreError(
                f"{self._file.path} has a part of {size:,} bytes, more than the {MAX_FILE_BYTES:,} that are read at "
                f"once: use a file that you trust, or set data.streaming false"
            )
        end = self._start + len(self._piece)
        if not self._start <= self._position <= self._position + size <= end:
            near = self._start <= self._position <= end + _NEAR_BYTES
            self._ahead = min(2 * self._ahead, _MOST_BYTES) if near else _FIRST_BYTES
            self._piece = self._file.read(self._position, min(max(size, self._ahead), rest))
            self._start = self._position
        self._position += size
        return self._piece[self._position - size - self._start : self._position - self._start]
