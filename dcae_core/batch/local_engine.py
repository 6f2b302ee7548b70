"""Run a job on one machine: worker processes read and decode, one thread writes, and the device encodes meanwhile. The
work on a part is in `encode`, and pending parts in `job`."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

import torch

from ..engine.memory import parse_bytes, usable_bytes
from ..errors import BudgetError, OptionError
from . import sources
from .encode import Batcher, Encoder, Options, count_notes, geometry, save_part
from .job import Job, PartResult
from .prepare import Geometry, PreparedImage, prepare_all
from .shards import Row
from .sources import Item, Part, Unreadable

__all__ = ["Device", "run"]

CHUNK = 4  # sources that a worker gets at a time


def run(
    options: Options,
    job: Job,
    pending: list[Part],
    encoder: Encoder,
    workers: int = 0,
    on_part: Callable[[PartResult], None] = lambda done: None,
) -> None:
    """Encode the pending parts. workers: number of processes; 0 is one for each core, at most 16. on_part: called for
    each finished part."""
    shape, device = geometry(options, encoder.ae.variant), Device(encoder)
    batcher = Batcher(device.batch)
    encoding, skipped, notes = [], [], Counter()
    written: deque[Future] = deque()
    workers = workers or min(16, os.cpu_count() or 1)
    with _Workers(workers, shape, job.source) as pool, device, ThreadPoolExecutor(1) as writer:
        for (part, _, last), results in pool.map(_chunks(pending, job.source)):
            notes += count_notes(results)
            skipped += [item for item in results if isinstance(item, Unreadable)]
            full = [batch for item in results if isinstance(item, PreparedImage) and (batch := batcher.add(item))]
            encoding += map(device.submit, full + (batcher.rest() if last else []))
            if not last:
                continue
            written.append(writer.submit(_save, job, part, encoding, skipped, notes, device.parallel))
            encoding, skipped, notes = [], [], Counter()
            while written and (written[0].done() or len(written) > 4):
                on_part(written.popleft().result())
        while written:
            on_part(written.popleft().result())


def _save(
    job: Job, part: Part, encoding: list[Future], skipped: list[Unreadable], notes: Counter[str], parallel: int
) -> PartResult:
    """Wait for the batches of a part, and write its rows."""
    results = [future.result() for future in encoding]
    rows = [row for rows, _ in results for row in rows]
    return save_part(job, part, rows, skipped, sum(seconds for _, seconds in results) / parallel, notes)


class Device:
    """Encode in threads, with few batches waiting. On a CPU `parallel` threads encode at the same time, on separate
    cores: cores that share a batch all wait when a decoding process takes one of them. batch: pictures in a batch;
    `parallel` batches together hold up to `Options.batch`."""

    def __init__(self, encoder: Encoder):
        self.encoder, self.parallel = encoder, 1
        self.threads, max_batch = torch.get_num_threads(), encoder.options.batch
        # An fp16 run that overflows is repeated with the weights in fp32. All threads share these weights.
        if encoder.ae.device.type == "cpu" and encoder.ae.dtype != torch.float16:
            self.parallel = max(n for n in range(1, min(self.threads, max_batch) + 1) if self.threads % n == 0)
        self.batch = max(1, max_batch // self.parallel)
        self.bound = parse_bytes(encoder.options.budget) or usable_bytes(encoder.ae.device)
        self.share = self.bound and self.bound // self.parallel  # bytes; None if the system does not report free memory
        self.per_thread = threading.local()
        self.waiting: deque[Future] = deque()

    def __enter__(self) -> Device:
        self.pool = ThreadPoolExecutor(self.parallel, initializer=self._start)
        return self

    def __exit__(self, *error) -> None:
        self.pool.shutdown(cancel_futures=error[0] is not None)
        torch.set_num_threads(self.threads)  # also for threads started later

    def _start(self) -> None:
        torch.set_num_threads(self.threads // self.parallel)
        self.per_thread.encoder = Encoder(self.encoder.options, copy.copy(self.encoder.ae))

    def submit(self, batch: list[PreparedImage]) -> Future:
        """Return a future of (rows, seconds of one thread)."""
        concurrent = self._fits_concurrently(batch)
        while len(self.waiting) > (self.parallel if concurrent else 0):
            self.waiting.popleft().result()
        if concurrent:
            future = self.pool.submit(lambda: _timed(self.per_thread.encoder, batch))
        else:  # in this thread, with all cores and the whole budget
            rows, seconds = _timed(self.encoder, batch)
            (future := Future()).set_result((rows, seconds * self.parallel))
        self.waiting.append(future)
        return future

    def _fits_concurrently(self, batch: list[PreparedImage]) -> bool:
        """Whether `parallel` such batches fit into the budget at the same time, each as it would run alone."""
        if self.parallel == 1:
            return True
        _, height, width = batch[0].pixels.shape
        ae, channels = self.encoder.ae, self.encoder.options.latent_channels
        try:
            shared, alone = (
                ae.plan("encode", height, width, len(batch), bound, channels) for bound in (self.share, self.bound)
            )
        except BudgetError:
            return False
        return shared == alone


def _timed(encoder: Encoder, batch: list[PreparedImage]) -> tuple[list[Row], float]:
    before = encoder.seconds
    return encoder(batch), encoder.seconds - before


def _chunks(pending: list[Part], source: str) -> Iterator[tuple[Part, list[Item | Unreadable], bool]]:
    """Yield (part, some of its sources, whether these are its last)."""
    for part in pending:
        items = sources.items(part, source)
        chunk = list(islice(items, CHUNK))
        while following := list(islice(items, CHUNK)):
            yield part, chunk, False
            chunk = following
        yield part, chunk, True


class _Workers:
    """Processes that prepare sources. If one dies, only the source it worked on is lost."""

    def __init__(self, count: int, shape: Geometry, source: str):
        self.count, self.arguments = count, (shape, source)

    def __enter__(self) -> _Workers:
        self.pool = self._new()
        try:
            self.pool.submit(os.getpid).result()
        except BrokenProcessPool as error:
            raise OptionError(
                "The processes that decode can't start; their output is above. A script must call this under "
                "if __name__ == '__main__':, since each process imports the script."
            ) from error
        return self

    def __exit__(self, *error) -> None:
        # Wait for started work even after an error: Python 3.11 may fail at exit while the pool is still shutting down.
        self.pool.shutdown(cancel_futures=True)

    def _new(self, count: int | None = None) -> ProcessPoolExecutor:
        # Not "fork", which would copy the threads and devices of this process.
        kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context = multiprocessing.get_context(kind)
        if kind == "forkserver":
            context.set_forkserver_preload([prepare_all.__module__])
        return ProcessPoolExecutor(count or self.count, context, initializer=_end_with_parent)

    def map(self, chunks: Iterable[tuple[Part, list[Item | Unreadable], bool]]):
        """Yield (chunk, results) in order, with up to two chunks in progress for each worker."""
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

    def _alone(self, item: Item | Unreadable) -> PreparedImage | Unreadable:
        with self._new(1) as pool:
            try:
                return pool.submit(prepare_all, [item], *self.arguments).result()[0]
            except BrokenProcessPool:
                return Unreadable(item.key, "the process that decoded it died")


def _end_with_parent() -> None:
    """In a worker: end if the parent process is killed. Ctrl-C is left to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
