"""Run a job on one machine: worker processes read and decode, one thread writes, and the device encodes meanwhile. The
work on a part is in `encode`, and pending parts in `job`."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

from ..autoencoder import DCAE
from . import sources
from .device import Device
from .encode import Batcher, Encoder, Options, count_notes, geometry, save_part
from .job import Job, PartResult
from .prepare import Geometry, PreparedImage, prepare_all
from .processes import check_start, default_count, process_pool
from .shards import Row
from .sources import Item, Part, Unreadable

__all__ = ["run"]

CHUNK = 4  # sources that a worker gets at a time
Chunk = tuple[Part, list[Item | Unreadable], bool]  # a part, some of its sources, whether these are its last
Results = list[PreparedImage | Unreadable]
Rows = tuple[list[Row], float]  # rows, and seconds of one thread


def run(
    options: Options,
    job: Job,
    pending: list[Part],
    ae: DCAE,
    workers: int = 0,
    on_part: Callable[[PartResult], None] = lambda done: None,
) -> None:
    """Encode the pending parts. workers: number of processes; 0 is one for each core, at most 16. on_part: called for
    each finished part."""
    shape, device = geometry(options, ae.variant), Device(ae, "encode", options.batch, options.budget)
    batcher = Batcher(device.batch)
    encoding: list[Future[Rows]] = []
    skipped: list[Unreadable] = []
    notes: Counter[str] = Counter()
    written: deque[Future[PartResult]] = deque()
    with _Workers(workers or default_count(), shape, job.source) as pool, device, ThreadPoolExecutor(1) as writer:
        for (part, _, last), results in pool.map(_chunks(pending, job.source)):
            notes += count_notes(results)
            skipped += [item for item in results if isinstance(item, Unreadable)]
            full = [batch for item in results if isinstance(item, PreparedImage) and (batch := batcher.add(item))]
            encoding += [_submit(device, options, b) for b in full + (batcher.rest() if last else [])]
            if not last:
                continue
            written.append(writer.submit(_save, job, part, encoding, skipped, notes, device.parallel))
            encoding, skipped, notes = [], [], Counter()
            while written and (written[0].done() or len(written) > 4):
                on_part(written.popleft().result())
        while written:
            on_part(written.popleft().result())


def _save(
    job: Job, part: Part, encoding: list[Future[Rows]], skipped: list[Unreadable], notes: Counter[str], parallel: int
) -> PartResult:
    """Wait for the batches of a part, and write its rows."""
    results = [future.result() for future in encoding]
    rows = [row for rows, _ in results for row in rows]
    return save_part(job, part, rows, skipped, sum(seconds for _, seconds in results) / parallel, notes)


def _submit(device: Device, options: Options, batch: list[PreparedImage]) -> Future[Rows]:

    def work(ae: DCAE) -> Rows:
        encoder = Encoder(options, ae)
        return encoder(batch), encoder.seconds

    _, height, width = batch[0].pixels.shape
    return device.submit(work, (height, width), len(batch), options.latent_channels)


def _chunks(pending: list[Part], source: str) -> Iterator[Chunk]:
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
        check_start(self.pool, "decode")
        return self

    def __exit__(self, *error: object) -> None:
        # Wait for started work even after an error: Python 3.11 may fail at exit while the pool is still shutting down.
        self.pool.shutdown(cancel_futures=True)

    def _new(self, count: int | None = None) -> ProcessPoolExecutor:
        return process_pool(count or self.count, prepare_all.__module__)

    def map(self, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, Results]]:
        """Yield (chunk, results) in order, with up to two chunks in progress for each worker."""
        waiting: deque[tuple[Chunk, Future[Results]]] = deque()
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

    def _submit(self, items: list[Item | Unreadable]) -> Future[Results]:
        try:
            return self.pool.submit(prepare_all, items, *self.arguments)
        except BrokenProcessPool as error:
            failed: Future[Results] = Future()
            failed.set_exception(error)
            return failed

    def _alone(self, item: Item | Unreadable) -> PreparedImage | Unreadable:
        with self._new(1) as pool:
            try:
                return pool.submit(prepare_all, [item], *self.arguments).result()[0]
            except BrokenProcessPool:
                return Unreadable(item.key, "the process that decoded it died")
