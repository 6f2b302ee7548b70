"""Run a model on a device while other threads and processes read and write."""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from ..autoencoder import DCAE
from ..engine.memory import parse_bytes, usable_bytes
from ..errors import BudgetError

__all__ = ["Device"]

Result = TypeVar("Result")
Work = Callable[[DCAE], tuple[Result, float]]


class Device:
    """Run batches in threads, with few of them waiting. On a CPU `parallel` threads run at the same time, on separate
    cores: cores that share a batch all wait when another process takes one of them.

    direction: "encode" or "decode". batch: pictures in a batch; `parallel` batches together hold up to `max_batch`.
    """

    def __init__(self, ae: DCAE, direction: str, max_batch: int, budget: str | None = None):
        self.ae, self.direction, self.parallel, self.threads = ae, direction, 1, torch.get_num_threads()
        # An fp16 run that overflows is repeated with the weights in fp32. All threads share these weights.
        if ae.device.type == "cpu" and ae.dtype != torch.float16:
            self.parallel = max(n for n in range(1, min(self.threads, max_batch) + 1) if self.threads % n == 0)
        self.batch = max(1, max_batch // self.parallel)
        self.bound = parse_bytes(budget) or usable_bytes(ae.device)
        self.share = self.bound and self.bound // self.parallel  # bytes; None if the system does not report free memory
        self.per_thread = threading.local()
        self.waiting: deque[Future[Any]] = deque()

    def __enter__(self) -> Device:
        self.pool = ThreadPoolExecutor(self.parallel, initializer=self._start)
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown(cancel_futures=error[0] is not None)
        torch.set_num_threads(self.threads)  # also for threads started later

    def _start(self) -> None:
        torch.set_num_threads(self.threads // self.parallel)
        self.per_thread.ae = copy.copy(self.ae)

    def submit(
        self, work: Work[Result], size: tuple[int, int], count: int, channels: int | None = None
    ) -> Future[tuple[Result, float]]:
        """Call `work` with the model, for `count` pictures of `size` (height, width) with padding. It returns (result,
        seconds); the future has the result, and the seconds of one thread."""
        concurrent = self._fits_concurrently(size, count, channels)
        while len(self.waiting) > (self.parallel if concurrent else 0):
            self.waiting.popleft().result()
        if concurrent:
            future = self.pool.submit(lambda: work(self.per_thread.ae))
        else:  # in this thread, with all cores and the whole budget
            result, seconds = work(self.ae)
            future = Future[tuple[Result, float]]()
            future.set_result((result, seconds * self.parallel))
        self.waiting.append(future)
        return future

    def _fits_concurrently(self, size: tuple[int, int], count: int, channels: int | None) -> bool:
        """Whether `parallel` such batches fit into the budget at the same time, each as it would run alone."""
        if self.parallel == 1:
            return True
        try:
            shared, alone = (
                self.ae.plan(self.direction, *size, count, bound, channels) for bound in (self.share, self.bound)
            )
        except BudgetError:
            return False
        return shared == alone
