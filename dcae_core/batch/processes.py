"""Worker processes, which end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from ..errors import OptionError

__all__ = ["check_start", "default_count", "process_pool"]


def default_count() -> int:
    return min(16, os.cpu_count() or 1)


def process_pool(count: int, preload: str) -> ProcessPoolExecutor:
    """Return a pool of `count` processes, which begin with the module `preload` imported where that can be shared."""
    # Not "fork", which would copy the threads and devices of this process.
    kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(kind)
    if kind == "forkserver":
        context.set_forkserver_preload([preload])
    return ProcessPoolExecutor(count, context, initializer=_end_with_parent)


def check_start(pool: ProcessPoolExecutor, work: str) -> None:
    """Start a process. work: what they do, for the message. Raises OptionError."""
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise OptionError(
            f"The processes that {work} can't start; their output is above. A script must call this under "
            "if __name__ == '__main__':, since each process imports the script."
        ) from error


def _end_with_parent() -> None:
    """In a worker: end if the parent process is killed. Ctrl-C is left to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
