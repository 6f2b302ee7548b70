"""Fetch one file over HTTP, through huggingface_hub's session. Received data is written at once, a cut connection is
resumed, and a stalled server is given up in bounded time. Where to fetch from and what to verify is left to `hub`.

Not `hf_hub_download`, through which promises do not hold (tried in the place of `fetch`, with the tests of
downloads). In huggingface_hub 2.4 each call has a temporary file of its own and deletes it when it fails or is
cancelled, so that nothing is resumed by the next. 10 MB are taken at a time: what a cut leaves of them is lost, so
that a server that cuts after less is never finished with, and a slow transfer can't be cancelled meanwhile. In 0.24
progress can't be watched, so that nothing cancels it. No version compares the sha256 of what arrived, and the file
that is there goes before the new one has come.
"""

from __future__ import annotations

import contextlib
import email.utils
import logging
import os
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import counted

__all__ = ["PROGRESS_INTERVAL", "describe", "fetch", "http_status", "requested_wait"]

log = logging.getLogger(__name__)

MAX_TRIES = 5  # in a row without new data
RETRY_WAIT, MAX_REQUESTED_WAIT = 1.0, 60.0  # seconds: after the first failure, doubling up to 8; that a server may set
STALL_BYTES, STALL_SECONDS = 64 << 10, 60.0  # a server that sends fewer bytes in this time is given up
PROGRESS_INTERVAL = 0.25  # seconds
BLOCK_BYTES = 1 << 16
TRANSIENT = (408, 429, 500, 502, 503, 504)
# Names of classes, since huggingface_hub's versions use requests, httpx or httpx2.
PERMANENT = ("UnsupportedProtocol", "InvalidSchema", "MissingSchema", "InvalidURL", "TooManyRedirects", "WrongSize")


class Truncated(Exception):
    """The server ended its response before it had sent everything."""


class TooSlow(Exception):
    """Fewer than STALL_BYTES arrived in STALL_SECONDS."""


class WrongSize(Exception):
    """The server is about to send another size than was announced."""


class _Transient(Exception):
    """Carries a failure that a retry may overcome."""

    def __init__(self, cause: Exception):
        self.cause = cause


def fetch(url: str, part: Path, total: int, headers: Mapping[str, str], progress: Callable[[int], None]) -> None:
    """Append the missing bytes of a file of `total` bytes to `part`, and cut off any excess.

    progress(bytes in `part`) is called every PROGRESS_INTERVAL while data arrives or is waited for, except while a
    silent server's HF_HUB_DOWNLOAD_TIMEOUT (10 s) runs; an exception from it ends the transfer and propagates. Written
    data stays. Raises Truncated, TooSlow, WrongSize, the disk's OSError, and errors of huggingface_hub, requests or
    httpx.
    """
    try:
        with open(part, "r+b" if part.is_file() else "w+b") as file:
            _fill(file, url, total, headers, progress)
    except BaseException:
        if part.is_file() and not part.stat().st_size:
            part.unlink()
        raise
    progress(total)


def _fill(file: BinaryIO, url: str, total: int, headers: Mapping[str, str], progress: Callable[[int], None]) -> None:
    done = furthest = file.seek(0, os.SEEK_END)
    tries, pace, last_progress = 0, _Pace(), 0.0
    while done < total:
        try:
            with contextlib.closing(_blocks(url, done, total, headers)) as blocks:
                for offset, block in blocks:
                    if offset != done:  # the server ignores ranges and starts over
                        file.seek(offset)
                        file.truncate()
                    done = offset + file.write(block[: total - offset])
                    pace.add(len(block))
                    if time.monotonic() - last_progress > PROGRESS_INTERVAL:
                        last_progress = time.monotonic()
                        progress(done)
                    if done == total:
                        break
                else:
                    raise _Transient(Truncated(f"the connection ended after {done} of {counted(total, 'byte')}"))
        except _Transient as transient:
            cause = transient.cause
            tries = 1 if done > furthest else tries + 1
            furthest = max(done, furthest)
            wait = requested_wait(cause)
            if tries >= MAX_TRIES or (wait or 0) > MAX_REQUESTED_WAIT:
                raise cause from None
            log.warning("%s: resuming from byte %d of %d.", describe(cause), done, total)
            if wait is None:
                _wait(min(8, RETRY_WAIT * 2 ** (tries - 1)), progress, done)
                pace.add(0)
            else:
                _wait(wait, progress, done)
                pace = _Pace()
    file.truncate(total)


def _blocks(url: str, start: int, total: int, headers: Mapping[str, str]) -> Generator[tuple[int, bytes]]:
    """Request everything from byte `start` on, and yield (offset, bytes) as the server sends them."""
    from huggingface_hub.utils import hf_raise_for_status

    headers = {**headers, "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        with _response(url, headers) as (response, blocks):
            if response.status_code == 416 and start:
                yield 0, b""  # the server's file is shorter: discard what is here
                raise Truncated(f"there is nothing to send from byte {start} on")
            hf_raise_for_status(response)
            offset = start if response.status_code == 206 else 0
            length = response.headers.get("Content-Length", "")
            if length.isdigit() and offset + int(length) != total and "Content-Encoding" not in response.headers:
                raise WrongSize(f"{counted(offset + int(length), 'byte')} instead of the {total} announced")
            for block in blocks:
                yield offset, block
                offset += len(block)
    except Exception as error:
        names = {kind.__name__ for kind in type(error).__mro__}
        status = http_status(error)
        if names.isdisjoint(PERMANENT) and (status is None or status in TRANSIENT):
            raise _Transient(error) from error
        raise


@contextlib.contextmanager
def _response(url: str, headers: Mapping[str, str]) -> Generator[tuple[Any, Iterator[bytes]]]:
    """Yield (response, iterator over its bytes as they arrive)."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    session: Any = get_session()  # of httpx or requests
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    if callable(getattr(session, "stream", None)):  # httpx
        with session.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
            yield response, response.iter_raw()
        return
    with session.get(url, headers=headers, timeout=timeout, stream=True) as response:  # requests
        raw = response.raw
        read = getattr(raw, "read1", None) or raw._fp.read1  # urllib3 before 2 has no read1
        yield response, iter(lambda: read(BLOCK_BYTES), b"")


class _Pace:
    """Counts received bytes. Raises TooSlow if fewer than STALL_BYTES arrived in STALL_SECONDS."""

    def __init__(self) -> None:
        self.start, self.received = time.monotonic(), 0

    def add(self, count: int) -> None:
        self.received += count
        seconds = time.monotonic() - self.start
        if seconds < STALL_SECONDS:
            return
        if self.received < STALL_BYTES:
            raise TooSlow(f"{counted(self.received, 'byte')} arrived in {seconds:.0f} seconds")
        self.start, self.received = time.monotonic(), 0


def _wait(seconds: float, progress: Callable[[int], None], done: int) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        progress(done)
        time.sleep(min(PROGRESS_INTERVAL, left))


def describe(error: BaseException) -> str:
    """Return the first line of an error's message, with the error's class unless it is of this module."""
    line = next(iter(str(error).strip().splitlines()), "no details").rstrip(".")
    return line if isinstance(error, Truncated | TooSlow | WrongSize) else f"{type(error).__name__}: {line}"


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status that caused an error, if one did."""
    return getattr(getattr(error, "response", None), "status_code", None)


def requested_wait(error: BaseException) -> float | None:
    """Return the seconds that the server requests in Retry-After (RFC 9110, 10.2.3) or the hub's RateLimit, if any."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    after = (headers.get("Retry-After") or "").strip()
    if after.isdigit():
        return float(after)
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(after).timestamp() - time.time())
    limit = re.search(r"\br=0\s*;\s*t=(\d+)", headers.get("RateLimit") or "")
    return float(limit.group(1)) if limit and http_status(error) == 429 else None
