"""The engine of one machine: worker processes read and decode, a thread writes, and the device encodes all the time."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from ..errors import OptionError
from . import sources
from .encode import Batcher, Encoder, Options, geometry, in_order, save_part
from .job import Done, Job
from .prepare import Geometry, Ready, prepare_all
from .sources import Item, Part, Unreadable

__all__ = ["run"]

CHUNK = 4  # sources that a worker gets at a time
Thing = TypeVar("Thing")


def run(
    options: Options,
    job: Job,
    pending: list[Part],
    encoder: Encoder,
    workers: int = 0,
    told: Callable[[Done], None] = lambda done: None,
) -> None:
    """Does the pending parts. workers: processes; 0 is one for each core, at most 16. told: called for each part that
    is done."""
    shape = geometry(options, encoder.ae.variant)
    batcher = Batcher(options.batch)
    rows, keys, skipped, before = [], [], [], encoder.seconds
    written: deque[Future] = deque()
    with _Workers(workers or min(16, os.cpu_count() or 1), shape, job.source) as pool, ThreadPoolExecutor(1) as writer:
        for (part, chunk, last), results in _ahead(pool.map(_chunks(pending, job.source)), 2):
            keys += [one.key for one in chunk]
            skipped += [one for one in results if isinstance(one, Unreadable)]
            full = [batch for one in results if isinstance(one, Ready) and (batch := batcher.add(one))]
            for batch in full + (batcher.rest() if last else []):
                rows += encoder(batch)
            if not last:
                continue
            seconds = encoder.seconds - before
            written.append(writer.submit(save_part, job, part, in_order(rows, keys), skipped, seconds))
            rows, keys, skipped, before = [], [], [], encoder.seconds
            while written and (written[0].done() or len(written) > 4):
                told(written.popleft().result())
        while written:
            told(written.popleft().result())


def _chunks(pending: list[Part], source: str) -> Iterator[tuple[Part, list[Item | Unreadable], bool]]:
    """(part, some of its sources, are these its last?)"""
    for part in pending:
        found = sources.items(part, source)
        chunk = list(islice(found, CHUNK))
        while following := list(islice(found, CHUNK)):
            yield part, chunk, False
            chunk = following
        yield part, chunk, True


class _Workers:
    """Processes that prepare sources. One that dies at its work costs the source it died of, and no other."""

    def __init__(self, count: int, shape: Geometry, source: str):
        self.count, self.arguments = count, (shape, source)

    def __enter__(self) -> _Workers:
        self.pool = self._new()
        try:
            self.pool.submit(os.getpid).result()
        except BrokenProcessPool as error:
            raise OptionError(
                "The processes that decode can't start; what they said is above. A script that calls this must do so "
                "under if __name__ == '__main__':, since each of them imports it."
            ) from error
        return self

    def __exit__(self, *error) -> None:
        self.pool.shutdown(wait=error[0] is None, cancel_futures=True)

    def _new(self, count: int | None = None) -> ProcessPoolExecutor:
        # Not forked from here: threads and devices of this process would come along.
        kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context = multiprocessing.get_context(kind)
        if kind == "forkserver":
            context.set_forkserver_preload([prepare_all.__module__])
        return ProcessPoolExecutor(count or self.count, context, initializer=_end_with_parent)

    def map(self, chunks: Iterable[tuple[Part, list[Item | Unreadable], bool]]):
        """(chunk, results) in their order, with up to two chunks for each worker under way."""
        waiting: deque[tuple[tuple, Future]] = deque()
        chunks = iter(chunks)
        while True:
            for chunk in islice(chunks, max(0, 2 * self.count + 2 - len(waiting))):
                waiting.append((chunk, self._submit(chunk[1])))
            if not waiting:
                return
            chunk, future = waiting.popleft()
            try:
                results = future.result()
            except BrokenProcessPool:
                self.pool.shutdown(wait=False)
                self.pool = self._new()
                results = [self._alone(item) for item in chunk[1]]
                waiting = deque((later, self._submit(later[1])) for later, _ in waiting)
            yield chunk, results

    def _submit(self, items: list[Item | Unreadable]) -> Future:
        try:
            return self.pool.submit(prepare_all, items, *self.arguments)
        except BrokenProcessPool as error:
            failed: Future = Future()
            failed.set_exception(error)
            return failed

    def _alone(self, item: Item | Unreadable) -> Ready | Unreadable:
        with self._new(1) as pool:
            try:
                return pool.submit(prepare_all, [item], *self.arguments).result()[0]
            except BrokenProcessPool:
                return Unreadable(item.key, "the process that decoded it died")


def _end_with_parent() -> None:
    """In a worker: where the process that gives it work is killed, it must not be left waiting. Ctrl-C is that
    process's business, which ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _ahead(things: Iterable[Thing], count: int) -> Iterator[Thing]:
    """`things`, made by a thread that is up to `count` ahead."""
    line: queue.Queue = queue.Queue(count)
    stop = threading.Event()

    def put(what) -> bool:
        while not stop.is_set():
            try:
                line.put(what, timeout=0.2)
                return True
            except queue.Full:
                pass
        return False

    def work() -> None:
        try:
            for thing in things:
                if not put((thing, None)):
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            thing, error = line.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield thing
    finally:
        stop.set()
        thread.join(timeout=5)
