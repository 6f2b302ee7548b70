"""What a run will need: rows per strip, and bytes, before any work is done. Arithmetic on the layers' own costs."""

from __future__ import annotations

import contextlib
import gc
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from .. import model
from ..errors import OptionError
from ..media.sizes import Fit
from ..variants import VARIANTS, Variant
from . import coder as fast
from .layers.strips import Attend, Sums
from .live_bytes import LiveBytes
from .ops import winograd
from .sweeps import Sweep, sweeps

__all__ = [
    "Budget",
    "BudgetError",
    "Plan",
    "free_bytes",
    "is_onednns",
    "is_out_of_memory",
    "make",
    "parse_bytes",
    "release",
    "rounded_up",
]

Budget = str | int | float | None
DIRECTIONS = ("encode", "decode")
# CUDA, ROCm, MPS, XPU; torch's allocator on Linux, on Windows; cuBLAS and cuDNN (..._STATUS_ALLOC_FAILED)
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "status_alloc_failed")
CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
CGROUP_V2 = "memory.max", "memory.current", "inactive_file"
CGROUP_V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


class BudgetError(OptionError):
    """A memory budget that is too small; `needed` is the smallest that would do, in bytes."""

    def __init__(self, message: str, needed: int = 0):
        super().__init__(message)
        self.needed = needed


@dataclass(frozen=True)
class Plan:
    """How a run will go. `height` and `width` are of the picture, padded to whole latent pixels.

    whole: the network runs layer by layer, `together` pictures at once. Else in sweeps, one picture after another:
    rows[i] are the rows of its source that sweep i takes at a time, sources[i] the rows that it has. channels: of the
    latent.
    peak_bytes: activations, input and output on the device: what torch's tensors hold. What a library works in (cuDNN's
    workspaces, weights that oneDNN reorders) is not in it. weight_bytes: the weights of this direction.
    """

    direction: str
    variant: str
    height: int
    width: int
    batch: int
    whole: bool
    together: int
    rows: tuple[int, ...]
    sources: tuple[int, ...]
    peak_bytes: int
    weight_bytes: int
    channels: int

    @property
    def strips(self) -> int:
        """Strips of the sweep that touches the picture; 1 for a whole run."""
        if self.whole:
            return 1
        i = 0 if self.direction == "encode" else -1
        return -(-self.sources[i] // self.rows[i])

    @property
    def steps(self) -> int:
        """How often `progress` is called: for each strip of all sweeps and pictures, or each whole run."""
        if self.whole:
            return -(-self.batch // self.together)
        return self.batch * sum(-(-s // r) for s, r in zip(self.sources, self.rows, strict=True))

    def __str__(self) -> str:
        how = "whole" if self.whole else f"in {self.strips} strips"
        many = f"{self.batch} x " if self.batch > 1 else ""
        return (
            f"{self.direction} {many}{self.width}x{self.height} {how} with {self.variant}: "
            f"peak {self.peak_bytes / 2**30:.2f} GiB, and {self.weight_bytes / 2**30:.2f} GiB of weights"
        )


def make(
    variant: Variant,
    direction: str,
    height: int,
    width: int,
    batch: int = 1,
    budget: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    whole: bool = True,
    channels: int | None = None,
) -> Plan:
    """The plan for pictures of `height` x `width` pixels: whole if that is within `budget` bytes (None: no limit), else
    (or with `whole` False in any case) the tallest strips that are. Deterministic; needs no device. channels: the first
    of the latent's, for an adaptive variant; None is all.

    Raises BudgetError, which names the smallest budget that would do, and OptionError.
    """
    if direction not in DIRECTIONS:
        raise OptionError(f"direction {direction!r} is not known: use encode or decode.")
    if batch < 1:
        raise OptionError(f"A batch of {batch} pictures can't be planned.")
    size, channels = torch.empty(0, dtype=dtype).element_size(), variant.channels(channels)
    height, width = Fit(height, width, variant.spatial_ratio).padded
    parts, weight_count = _structure(variant.architecture, direction, channels)
    ends = _ends(variant, channels, height, width, batch, size)
    layers = _whole(variant.architecture, direction, channels, dtype)
    pixels, scratch = height * width, layers.scratch(height, width, size)
    together = 0 if not whole else batch if budget is None else min(batch, layers.most(pixels, scratch, budget - ends))
    if together > 0:
        peak_bytes = ends + layers.bytes(pixels, scratch, together)
        weight_bytes = weight_count * size
        return Plan(
            direction, variant.name, height, width, batch, True, together, (), (), peak_bytes, weight_bytes, channels
        )
    sources, chosen, peaks, least = [], [], [], 0
    at = (height, width) if direction == "encode" else (height // variant.spatial_ratio, width // variant.spatial_ratio)
    before = 0  # bytes of the map that the sweep reads, where it is not the input itself
    for i, part in enumerate(parts):
        after_size = part.sweep.size_after(*at)
        last = i == len(parts) - 1
        after = 0 if last else part.channels_after * after_size[0] * after_size[1] * size
        resident = ends + before + (0 if before == after and before else after)

        def peak(rows: int, part=part, width=at[1], resident=resident) -> int:
            return (resident + part.cost(width, rows, size)) * 101 // 100  # and 1 % for what is too small to list

        smallest = min(part.unit, at[0])
        least = max(least, peak(smallest))
        rows = _tallest(peak, at[0], part.unit, budget)
        sources.append(at[0])
        chosen.append(rows)
        peaks.append(peak(rows))
        at, before = after_size, after
    least = min(least, ends + layers.bytes(pixels, scratch, 1)) if whole else least
    if budget is not None and least > budget:
        needed = f"{rounded_up(least)} GiB"
        raise BudgetError(
            f"{direction} of {width}x{height} with {variant.name} needs at least {needed} beside the weights, but the "
            f"budget is {_shown(budget)}. Give it {needed}, or a smaller picture.",
            least,
        )
    return Plan(
        direction,
        variant.name,
        height,
        width,
        batch,
        False,
        1,
        tuple(chosen),
        tuple(sources),
        max(peaks),
        weight_count * size,
        channels,
    )


def parse_bytes(budget: Budget) -> int | None:
    """Bytes from a number, or from words such as "4GiB", "800 MB" or "1.5g"; None stays None. Raises OptionError."""
    if budget is None:
        return None
    if isinstance(budget, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?i?)b?\s*", budget.lower())
        if not match or match.group(2) not in UNITS:
            raise OptionError(f"{budget!r} is not a budget: write bytes, or for example 4GiB or 800MB.")
        budget = float(match.group(1)) * UNITS[match.group(2)]
    if not budget < math.inf:
        raise OptionError(f"A budget of {budget} bytes can't be: give a number, or none for what is free.")
    if budget <= 0:
        raise OptionError(f"A budget of {budget} bytes holds nothing: give more, or none for what is free.")
    return int(budget)


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can be had on `device` now, with what torch holds there unused; None where that can't be known."""
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
        return max(0, min([free, *_container()]))
    return None


def _container() -> Iterator[int]:
    """What the limits of control groups leave this process, such as a container's: beyond them it is killed. Cached
    files that nothing uses are not counted. Files as in Linux's admin-guide/cgroup-v2 and cgroup-v1/memory."""
    told, root = CGROUPS
    lines = told.read_text(encoding="utf-8").splitlines() if told.is_file() else []
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
    """Is this how torch, or a library under it, says that a device or the machine has no memory left?"""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or any(words in str(error).lower() for words in OUT_OF_MEMORY) or is_onednns(error)


def is_onednns(error: BaseException) -> bool:
    """Is this oneDNN's, which gives no reason? From then on it can't make anything new in the same thread, however much
    memory there is: Xbyak, which writes its code, keeps the error, for each thread."""
    return str(error).strip() in ("could not create a primitive", "could not execute a primitive")


def release(device: torch.device) -> None:
    """Gives back what torch keeps for later on `device`."""
    gc.collect()
    if device.type in ("cuda", "xpu", "mps"):
        getattr(torch, device.type).empty_cache()


@dataclass(frozen=True)
class _Part:
    """One sweep and what its layers cost."""

    sweep: Sweep
    layers: tuple
    sums: Sums | None
    channels_after: int
    unit: int  # source rows that make whole rows everywhere

    def cost(self, width: int, rows: int, size: int) -> int:
        """Bytes of all buffers and of the greatest temporaries, for strips of `rows` rows."""
        buffers = scratch = 0
        for layer in self.layers:
            held, most = layer.cost(width, rows, size)
            buffers, scratch = buffers + held, max(scratch, most)
            width, rows = width * layer.scale // layer.step, max(1, rows // layer.step) * layer.scale
        if self.sums:
            held, most = self.sums.cost(width, rows, size)
            buffers, scratch = buffers + held, max(scratch, most)
        return buffers + scratch


@cache
def _structure(architecture: tuple, direction: str, channels: int) -> tuple[list[_Part], int]:
    _, half = _half(architecture, direction)
    found = sweeps(half.of_first(channels))
    parts = []
    for i, sweep in enumerate(found):
        layers = ([Attend(sweep.attention, None)] if sweep.attention is not None else []) + sweep.layers
        following = found[i + 1].attention if i + 1 < len(found) else None
        unit = 1
        for layer in layers:
            unit *= layer.step
        sums, channels = (Sums(following), following.channels) if following is not None else (None, 0)
        parts.append(_Part(sweep, tuple(layers), sums, channels, unit))
    return parts, sum(p.numel() for p in half.parameters())


def _half(architecture: tuple, direction: str) -> tuple[Variant, fast.Half]:
    """A variant of this architecture, and its encoder or decoder without weights."""
    variant = next(v for v in VARIANTS.values() if v.architecture == architecture)
    with torch.device("meta"):
        whole = fast.Autoencoder(model.Autoencoder(variant))
    return variant, whole.encoder if direction == "encode" else whole.decoder


@dataclass(frozen=True)
class _Whole:
    """What each layer of a whole run takes. pixel_bytes: of maps, at most, for each pixel of the picture."""

    layers: tuple
    pixel_bytes: tuple[int, ...]
    decodes: int  # picture pixels along a side, for each of the input's

    def scratch(self, height: int, width: int, size: int) -> list[int]:
        """Bytes of each layer that do not grow with the picture, nor with the batch."""
        height, width, found = height // self.decodes, width // self.decodes, []
        for layer in self.layers:
            found.append(layer.working(height, width, size))
            height, width = height * layer.scale // layer.step, width * layer.scale // layer.step
        return found

    def bytes(self, pixels: int, scratch: list[int], together: int) -> int:
        return max(each * pixels * together + more for each, more in zip(self.pixel_bytes, scratch, strict=True))

    def most(self, pixels: int, scratch: list[int], budget: int) -> int:
        """Pictures at once, within `budget` bytes."""
        pairs = zip(self.pixel_bytes, scratch, strict=True)
        return min((budget - more) // (each * pixels) for each, more in pairs if each)


@cache
def _whole(architecture: tuple, direction: str, channels: int, dtype: torch.dtype) -> _Whole:
    """Counted, not computed: all maps of a whole run grow with the number of pixels. Input and output are left out."""
    variant, half = _half(architecture, direction)
    half, side = half.to(dtype).of_first(channels), variant.spatial_ratio * 4 if direction == "encode" else 4
    inputs = 3 if direction == "encode" else channels
    x, found = torch.empty(1, inputs, side, side, dtype=dtype, device="meta"), []
    with winograd.switched(False), torch.no_grad(), LiveBytes([x, *half.parameters(), *half.buffers()]) as count:
        x = half.arrange(x)
        for layer in half.layers:
            count.peak = count.now
            x = layer(x)
            found.append(-(-count.peak // (variant.spatial_ratio * 4) ** 2))
    return _Whole(tuple(half.layers), tuple(found), variant.spatial_ratio if direction == "decode" else 1)


def _ends(variant: Variant, channels: int, height: int, width: int, batch: int, size: int) -> int:
    """Bytes of the input and the output."""
    latent = channels * height * width // variant.spatial_ratio**2
    return batch * size * (3 * height * width + latent)


def _tallest(peak, height: int, unit: int, budget: int | None) -> int:
    """The most rows, in multiples of `unit`, whose peak is within the budget, evened out over the strips; the fewest
    where none is."""
    units = -(-height // unit)
    low, high = 1, units
    while budget is not None and low < high:
        middle = (low + high + 1) // 2
        if peak(min(middle * unit, height)) <= budget:
            low = middle
        else:
            high = middle - 1
    most = units if budget is None else low
    return min(-(-units // -(-units // most)) * unit, height)


def _shown(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 // 10 else f"{count / 2**20:.2f} MiB"


def rounded_up(count: int) -> str:
    """GiB with two decimals, rounded up."""
    return f"{-(-count * 100 // 2**30) / 100:.2f}"
