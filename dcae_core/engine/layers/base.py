"""What all layers share: the contract of a layer, and its state while rows stream through it. Who feeds it is left to
`sweeps`.

A layer is one class in one file of this folder. It says how its weights are made from a module of `model`, what it does
with a whole map, what it does with a strip of rows, and the memory of both. All maps are [B, C, H, W], channels-last.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..machine import Work
from ..ops import winograd
from ..rows import Rows
from ..target import Target

__all__ = [
    "LAYERS",
    "FirstPass",
    "Layer",
    "LayerStream",
    "Receiver",
    "TwoPassLayer",
    "Weights",
    "Window",
    "empty_map",
    "frozen",
]

LAYERS: dict[type[nn.Module], type[Layer]] = {}  # a class of `model` -> the layer that runs it


@dataclass(frozen=True)
class Window:
    """A buffer of rows that a layer needs while it streams: `rows` of `channels`, as wide as its input. `above`: rows
    of zeros before the first, as a convolution's padding has."""

    channels: int
    rows: int
    above: int = 0


class Layer(nn.Module):
    """A step of the network as it runs. It turns `step` input rows, and columns, into `scale` output ones.

    reference: the class of `model` that the layer runs. The layer is made from such a module, which stays unchanged,
    and the names of the rewrites to make (`rewrites.REWRITES`).

    A layer that reads only neighbouring rows of its input, `above` and `below` each `step` of them, sets these,
    `channels` (of its input), `run` and `scratch`. Other layers set `channels` and `below`, and override `forward`,
    `whole_bytes`, `windows`, `take_in` and `work`. One that needs sums over the whole map first is a `TwoPassLayer`.
    """

    reference: ClassVar[type[nn.Module] | None] = None
    step = scale = 1
    above = below = 0
    channels: int

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "reference" in cls.__dict__ and cls.reference is not None:
            LAYERS[cls.reference] = cls

    def run(self, window: Tensor, x: Tensor, out: Tensor | None, pad: int) -> Tensor:
        """Compute the rows of `x` [B, C, H, W] into `out`, or into a new map if that is None. window: these rows with
        those `above` and `below` (`pad` 0), or without them (`pad` rows of zeros are to be added at each end)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Compute a whole map."""
        return self.run(x, x, None, self.above)

    def whole_bytes(self, batch: int, rows: int, width: int, target: Target) -> int:
        """Return the most bytes that `forward` holds for `batch` inputs of so many rows and columns, its result among
        them, but not the inputs."""
        return batch * self.scratch(rows, width, target)

    @property
    def lag(self) -> int:
        """Rows of input that arrive after its own until a unit of `step` is finished."""
        return -(-self.below // self.step) * self.step

    def flops(self, rows: int, width: int) -> int:
        """Return the operations for so many rows and columns of input, a multiply-add as 2: each weight of a
        convolution once for each place of its result."""
        return 2 * self.weight_count * rows * width // self.step**2

    def cost(self, batch: int, size: tuple[int, int], maps: int, temporaries: int, target: Target) -> Work:
        """Return what `batch` inputs of so many rows and columns take; bytes of maps and temporaries as in `Work`."""
        transformed = self.by_winograd(*size, target)
        weights = self.weight_count * target.size * (4 if transformed else 1)  # 16 numbers for 9, by way of 12
        return Work(maps, temporaries, batch * self.flops(*size), weights, transformed)

    def by_winograd(self, rows: int, width: int, target: Target) -> bool:
        """Whether its convolutions, for so many rows and columns of input, are Winograd's."""
        return target.size == 4 and any(winograd.pays(weight, rows, width, target) for weight in self.weights_3x3)

    @cached_property
    def weights_3x3(self) -> list[Tensor]:
        """Weights of 3x3 convolutions that are not depthwise."""
        return [weight for weight in self.parameters() if weight.shape[2:] == (3, 3) and weight.shape[1] > 1]

    @cached_property
    def weight_count(self) -> int:
        """Weights of convolutions."""
        return sum(weight.numel() for weight in self.parameters() if weight.ndim == 4)

    def scratch(self, rows: int, width: int, target: Target) -> int:
        """Return the most bytes of temporaries, without the result, for a strip of so many rows of input."""
        raise NotImplementedError

    def windows(self, rows: int) -> dict[str, Window]:
        """Return the buffers, by name, for strips of up to `rows` rows of input. The producer writes into "x"."""
        return {"x": Window(self.channels, rows + self.above + 2 * self.below + self.step - 1, self.above)}

    def take_in(self, stream: LayerStream, n: int, last: bool) -> int:
        """Take `n` rows that were written into `stream.x`; with `last` there are no more. Return how many units of
        `step` rows can be finished in all."""
        stream.x.add(n)
        if last:
            stream.x.pad(self.below)
        return (stream.x.end - self.below) // self.step

    def work(self, stream: LayerStream, start: int, stop: int, out: Tensor) -> None:
        """Write the units `start` to `stop` (exclusive) to `out`, and drop the rows that no other unit needs."""
        top, bottom = self.step * start, self.step * stop
        self.run(stream.x.take(top - self.above, bottom + self.below), stream.x.take(top, bottom), out, 0)
        stream.x.forget(bottom - self.above)

    def stream_bytes(self, rows: int, width: int, target: Target) -> tuple[int, int]:
        """Return (bytes of the buffers, most bytes of temporaries) for strips of `rows` rows of input."""
        held = sum(window.channels * window.rows for window in self.windows(rows).values())
        return held * width * target.size, self.scratch(rows, width, target)

    def size_after(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of the result."""
        return height * self.scale // self.step, width * self.scale // self.step


class TwoPassLayer(Layer):
    """A layer that needs sums over the whole map first: it starts a sweep, and its stream holds the sums."""

    def first_pass(self) -> FirstPass:
        """Return what gathers the sums, see `attention.AttentionSums`."""
        raise NotImplementedError


class FirstPass(Protocol):
    """What gathers the `sums` of a layer while the map before it is made."""

    sums: Tensor

    def open(self, rows: int, width: int, like: Tensor) -> None: ...

    def add(self, x: Tensor, last: bool) -> None: ...

    def stream_bytes(self, rows: int, width: int, target: Target) -> tuple[int, int]: ...


class Receiver(Protocol):
    """What rows are pushed into: a `LayerStream`, or the end of a pipeline."""

    def open(self, rows: int, width: int, like: Tensor) -> tuple[int, int]: ...

    def room(self, n: int) -> Tensor: ...

    def push(self, n: int, last: bool) -> None: ...


class LayerStream:
    """The state of a layer while a map [1, C, H, W] streams through it: its buffers, as attributes, and its progress.

    A producer writes `n` rows into `room(n)` and calls `push(n, last)`. The layer writes what can be computed from
    them into the room of `next` and pushes in turn, so that nothing is computed twice and no strips are joined.
    """

    next: Receiver
    sums: Tensor  # what the layer's first pass has gathered, if it has one
    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Rows: ...  # the layer's windows

    def __init__(self, layer: Layer, sums: Tensor | None = None):
        self.layer = layer
        if sums is not None:
            self.sums = sums

    def open(self, rows: int, width: int, like: Tensor) -> tuple[int, int]:
        """Make the buffers for strips of up to `rows` rows. Return the most rows, and the width, of the result."""
        self.units, self.done = max(1, rows // self.layer.step), 0
        for name, window in self.layer.windows(rows).items():
            setattr(self, name, Rows(window.channels, width, window.rows, above=window.above, like=like))
        return self.units * self.layer.scale, width * self.layer.scale // self.layer.step

    def room(self, n: int) -> Tensor:
        return self.x.room(n)

    def push(self, n: int, last: bool) -> None:
        """Process `n` more rows, at least one, that are in the room; with `last` there are no more."""
        ready, scale = self.layer.take_in(self, n, last), self.layer.scale
        while self.done < ready:
            stop = min(ready, self.done + self.units)
            count = (stop - self.done) * scale
            self.layer.work(self, self.done, stop, self.next.room(count))
            self.done = stop
            self.next.push(count, last and stop == ready)


class Weights(nn.Module):
    """Weight and bias of a convolution, which are not trained."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.weight, self.bias = frozen(weight), None if bias is None else frozen(bias)


def frozen(tensor: Tensor) -> nn.Parameter:
    """A weight that is not trained."""
    return nn.Parameter(tensor, requires_grad=False)


def empty_map(like: Tensor, *shape: int) -> Tensor:
    """An uninitialised channels-last map, of the device and dtype of `like`."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
