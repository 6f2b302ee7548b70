"""Download one file over HTTP, through huggingface_hub's session. What arrives is kept at once, an interrupted transfer
is continued, and a stalled server is given up after a bounded time.

huggingface_hub's own `http_get` hands on 10 MB at a time, so that a slow server can't be cancelled and a cut loses what
came of them, and it waits for as long as a server asks for.
"""

from __future__ import annotations

import contextlib
import email.utils
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["TICK", "Ended", "TooSlow", "WrongSize", "fetch", "requested_wait", "status_of", "summary_of"]

log = logging.getLogger(__name__)

TRIES = 5  # in a row that bring nothing new
WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds: after the first of them, doubling up to 8; and that a server may ask for
LEAST, PATIENCE = 64 << 10, 60.0  # bytes that must arrive in so many seconds
TICK = 0.25  # seconds
BLOCK = 1 << 16
TRANSIENT = (408, 429, 500, 502, 503, 504)
# By name: of requests, httpx and httpx2, of which huggingface_hub's versions use one each.
HOPELESS = ("UnsupportedProtocol", "InvalidSchema", "MissingSchema", "InvalidURL", "TooManyRedirects", "WrongSize")


class Ended(Exception):
    """The server ended its answer before it had sent all."""


class TooSlow(Exception):
    """Less than LEAST bytes arrived in PATIENCE seconds."""


class WrongSize(Exception):
    """The server is about to send another size than was announced."""


class _Interrupted(Exception):
    """Wraps a failure that may be temporary."""

    def __init__(self, cause: Exception):
        self.cause = cause


def fetch(url: str, part: Path, total: int, headers: dict, tick: Callable[[int], None]) -> None:
    """Append the missing of `total` bytes to `part`, and truncate what is too much.

    tick(bytes in `part`) is called every TICK seconds while data arrive or are waited for, a silent server's
    HF_HUB_DOWNLOAD_TIMEOUT (10 s) excepted; what it raises ends the transfer and is passed on. What was written stays.
    Raises Ended, TooSlow, WrongSize, OSError of the disk, and whatever huggingface_hub, requests or httpx raise.
    """
    try:
        with open(part, "r+b" if part.is_file() else "w+b") as file:
            _fill(file, url, total, headers, tick)
    except BaseException:
        if part.is_file() and not part.stat().st_size:
            part.unlink()
        raise
    tick(total)


def _fill(file: BinaryIO, url: str, total: int, headers: dict, tick: Callable[[int], None]) -> None:
    done = furthest = file.seek(0, os.SEEK_END)
    tries, pace, last_tick = 0, _Pace(), 0.0
    while done < total:
        try:
            with contextlib.closing(_arriving(url, done, total, headers)) as arriving:
                for at, data in arriving:
                    if at != done:  # a server that can't go on, and starts over
                        file.seek(at)
                        file.truncate()
                    done = at + file.write(data[: total - at])
                    pace.add(len(data))
                    if time.monotonic() - last_tick > TICK:
                        last_tick = time.monotonic()
                        tick(done)
                    if done == total:
                        break
                else:
                    raise _Interrupted(Ended(f"the connection ended after {done} of {total} bytes"))
        except _Interrupted as interrupted:
            cause = interrupted.cause
            tries = 1 if done > furthest else tries + 1
            furthest = max(done, furthest)
            wait = requested_wait(cause)
            if tries >= TRIES or (wait or 0) > LONGEST_WAIT:
                raise cause from None
            log.warning("%s: it goes on from byte %d of %d.", summary_of(cause), done, total)
            if wait is None:
                _wait(min(8, WAIT * 2 ** (tries - 1)), tick, done)
                pace.add(0)
            else:
                _wait(wait, tick, done)
                pace = _Pace()
    file.truncate(total)


def _arriving(url: str, start: int, total: int, headers: dict) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of the server's answer to a request for everything from `start` on."""
    from huggingface_hub.utils import hf_raise_for_status

    request_headers = {**headers, "Accept-Encoding": "identity"}
    if start:
        request_headers["Range"] = f"bytes={start}-"
    try:
        with _answer(url, request_headers) as (response, blocks):
            if response.status_code == 416 and start:
                yield 0, b""  # there is nothing from there on: what is here is of something else
                raise Ended(f"there is nothing to send from byte {start} on")
            hf_raise_for_status(response)
            at = start if response.status_code == 206 else 0
            length = response.headers.get("Content-Length", "")
            if length.isdigit() and at + int(length) != total and "Content-Encoding" not in response.headers:
                raise WrongSize(f"{at + int(length)} bytes instead of the {total} announced")
            for block in blocks:
                yield at, block
                at += len(block)
    except Exception as error:
        names = {kind.__name__ for kind in type(error).__mro__}
        status = status_of(error)
        if names.isdisjoint(HOPELESS) and (status is None or status in TRANSIENT):
            raise _Interrupted(error) from error
        raise


@contextlib.contextmanager
def _answer(url: str, headers: dict):
    """Yield (response, iterator over its bytes)."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    session, timeout = get_session(), constants.HF_HUB_DOWNLOAD_TIMEOUT
    if callable(getattr(session, "stream", None)):  # httpx
        with session.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
            yield response, response.iter_raw()
        return
    with session.get(url, headers=headers, timeout=timeout, stream=True) as response:  # requests
        raw = response.raw
        read = getattr(raw, "read1", None) or raw._fp.read1  # urllib3 before 2 does not pass it on
        yield response, iter(lambda: read(BLOCK), b"")


class _Pace:
    """Raises TooSlow if less than LEAST bytes came in PATIENCE seconds."""

    def __init__(self):
        self.since, self.came = time.monotonic(), 0

    def add(self, count: int) -> None:
        self.came += count
        seconds = time.monotonic() - self.since
        if seconds < PATIENCE:
            return
        if self.came < LEAST:
            raise TooSlow(f"{self.came} bytes came in {seconds:.0f} seconds")
        self.since, self.came = time.monotonic(), 0


def _wait(seconds: float, tick: Callable[[int], None], done: int) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        tick(done)
        time.sleep(min(TICK, left))


def summary_of(error: BaseException) -> str:
    """Return an error in short."""
    line = next(iter(str(error).strip().splitlines()), "no details").rstrip(".")
    return line if isinstance(error, Ended | TooSlow | WrongSize) else f"{type(error).__name__}: {line}"


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of an error, if it has one."""
    return getattr(getattr(error, "response", None), "status_code", None)


def requested_wait(error: BaseException) -> float | None:
    """Return the seconds that the server asks to wait, in Retry-After (RFC 9110, 10.2.3) or the hub's RateLimit; None
    without either."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    after = (headers.get("Retry-After") or "").strip()
    if after.isdigit():
        return float(after)
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(after).timestamp() - time.time())
    limit = re.search(r"\br=0\s*;\s*t=(\d+)", headers.get("RateLimit") or "")
    return float(limit.group(1)) if limit and status_of(error) == 429 else None
