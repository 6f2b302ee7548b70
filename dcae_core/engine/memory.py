"""Parse and print sizes, measure free memory, recognise that memory ran out. What a run takes is in `plan`."""

from __future__ import annotations

import contextlib
import gc
import math
import re
from collections.abc import Iterator
from numbers import Real
from pathlib import Path

import torch

from ..errors import OptionError, counted

__all__ = [
    "Budget",
    "format_bytes",
    "format_gib",
    "free_bytes",
    "is_onednn_failure",
    "is_out_of_memory",
    "parse_bytes",
    "release",
    "shrink",
    "usable_bytes",
]

Budget = str | int | float
# CUDA, ROCm, MPS, XPU; torch's allocator on Linux, on Windows; cuBLAS and cuDNN (..._STATUS_ALLOC_FAILED)
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "status_alloc_failed")
UNCOUNTED = 256 << 20  # bytes, see usable_bytes; a guess, since nothing was measured on a GPU
_shares: dict[str, float] = {}
CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
CGROUP_V2 = "memory.max", "memory.current", "inactive_file"
CGROUP_V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


def parse_bytes(budget: Budget | None) -> int | None:
    """Return the bytes of a number or a text such as "4GiB", "800 MB" or "1.5g"; None for None. Raises OptionError."""
    if budget is None:
        return None
    if isinstance(budget, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?i?)b?\s*", budget.lower())
        if not match or match.group(2) not in UNITS:
            raise OptionError(f"{budget!r} is not a budget: write bytes, or for example 4GiB or 800MB.")
        budget = float(match.group(1)) * UNITS[match.group(2)]
    if isinstance(budget, bool) or not isinstance(budget, Real):
        raise OptionError(f"{budget!r} is not a budget: write bytes, or for example '4GiB' or '800MB'.")
    if not budget < math.inf:
        raise OptionError(f"A budget of {budget} bytes can't be: give a number, or none for what is free.")
    if budget <= 0:
        raise OptionError(f"A budget of {budget} bytes holds nothing: give more, or none for what is free.")
    return int(budget)


def free_bytes(device: torch.device) -> int | None:
    """Return the free bytes on `device`, with those that torch caches there; None where that is not known."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    if device.type == "cpu":
        try:
            with open("/proc/meminfo", encoding="ascii") as file:
                free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
        except (OSError, StopIteration):
            return None
        return max(0, min([free, *_free_in_containers()]))
    return None


def usable_bytes(device: torch.device) -> int | None:
    """Return how many of the free bytes to plan a run with; None where that is not known. On a CPU all. On a GPU not
    what plans don't count: workspaces of cuDNN and cuBLAS, and that torch's allocator rounds blocks up to 2 MiB (a run
    in strips has some 100); nor a twentieth, which lies in gaps between blocks. Less where memory ran out here before,
    see `shrink`."""
    free = free_bytes(device)
    if free is None or device.type == "cpu":
        return free
    return max(1, int((free - UNCOUNTED) * _shares.get(str(device), 0.95)))


def shrink(device: torch.device) -> None:
    """Memory ran out on `device` although a plan was within it: later runs that are given no budget plan with four
    fifths of what they did."""
    _shares[str(device)] = max(0.25, 0.8 * _shares.get(str(device), 0.95))


def _free_in_containers() -> Iterator[int]:
    """Yield the free bytes of each control group (such as a container) of this process, which is killed beyond them.
    File caches count as free. Sources: Linux's admin-guide/cgroup-v2 and cgroup-v1/memory."""
    listing, root = CGROUPS
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    for _, kinds, path in (line.split(":", 2) for line in lines):
        if kinds and "memory" not in kinds.split(","):
            continue
        top = root / "memory" if kinds else root
        limit, used, cached = CGROUP_V1 if kinds else CGROUP_V2
        here = top / path.strip("/")
        for folder in (here, *here.parents):
            with contextlib.suppress(OSError, ValueError, StopIteration):  # not there, or "max"
                free = int((folder / limit).read_text()) - int((folder / used).read_text())
                stat = (folder / "memory.stat").read_text().splitlines()
                yield free + next(int(line.split()[1]) for line in stat if line.startswith(f"{cached} "))
            if folder == top:
                break


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error`, of torch or a library below it, reports that a device or the machine is out of memory."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return (
        isinstance(error, kinds)
        or any(words in str(error).lower() for words in OUT_OF_MEMORY)
        or is_onednn_failure(error)
    )


def is_onednn_failure(error: BaseException) -> bool:
    """Whether `error` is oneDNN's, which gives no reason. After it oneDNN can't compile anything in the same thread,
    however much memory is free: Xbyak, its assembler, keeps the error for each thread."""
    return str(error).strip() in ("could not create a primitive", "could not execute a primitive")


def release(device: torch.device) -> None:
    """Free what torch caches on `device`."""
    gc.collect()
    if device.type in ("cuda", "xpu", "mps"):
        getattr(torch, device.type).empty_cache()


def format_bytes(count: int) -> str:
    """Return GiB, MiB or bytes with their unit."""
    if count < 1 << 20:
        return counted(count, "byte")
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 // 10 else f"{count / 2**20:.2f} MiB"


def format_gib(count: int) -> str:
    """Return GiB with two decimals, rounded up, so that the number printed is enough."""
    return f"{-(-count * 100 // 2**30) / 100:.2f}"
