"""Carry out a plan, whole or in strips: in less memory where it runs out, in fp32 where fp16 overflows. Choosing a plan
is left to `plan`, one streamed run to `sweeps`."""

from __future__ import annotations

import contextlib
import contextvars
import logging
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import TypedDict

import torch
from torch import Tensor

from ..errors import BudgetError, counted
from ..media import images
from ..media.nonfinite import Finite, NonFiniteError, explain_nonfinite, require_finite
from ..media.sizes import Fit
from . import memory, sweeps
from .coder import Coder, InferenceCoder
from .devices import best_dtype, compute_dtype
from .plan import Plan

__all__ = ["Progress", "run", "run_plan", "run_with_retries", "without_autocast"]

log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
TRIES = 3


class Output(TypedDict):
    """Of the result."""

    device: torch.device | str
    dtype: torch.dtype


def run(
    coder: Coder,
    make_plan: Callable[[], Plan],
    x: Tensor,
    progress: Progress | None = None,
    output_device: torch.device | str | None = None,
    as_uint8: bool = False,
    keep_weights: bool = False,
) -> tuple[Tensor, Plan]:
    """Encode or decode `x` by the plan that `make_plan` makes for the coder as it is; return the result, in the coder's
    dtype, and the plan that was carried out. fp16 is computed in fp32 where `devices.compute_dtype` says so, and a
    result that is not finite in it is computed again, and returned, in fp32. That converts the coder's weights
    meanwhile, so only one thread at a time may run a coder.

    x: pictures [B, 3, H, W] in [-1, 1] or uint8, or raw latents [B, c, h, w]. progress: called with (done, total) after
    each step; what it raises ends the run. as_uint8: pictures as 0 to 255. keep_weights: weights in fp16 are not let go
    while they are run in fp32, since somebody else has them too.

    Raises BudgetError where memory runs out whatever is tried, NonFiniteError, and what `explain_nonfinite` raises.
    """

    dtype, device = coder.like.dtype, coder.like.device.type

    def run_in(compute: torch.dtype, output: torch.dtype) -> tuple[Tensor, Plan]:
        output = torch.uint8 if as_uint8 else output
        with _converted(coder, compute, keep_weights):
            result, plan = run_with_retries(coder, make_plan(), x, progress, output_device, output)
            return require_finite(result), plan

    compute = compute_dtype(dtype, device)
    if compute != dtype:
        _warn_of_fp32()
    try:
        return run_in(compute, dtype)
    except NonFiniteError:
        explain_nonfinite(coder, x)
        if dtype != torch.float16:
            raise
    log.warning("%s overflowed in fp16 and is computed again in fp32; bf16 avoids that.", make_plan().name)
    return run_in(torch.float32, torch.float32)


@contextlib.contextmanager
def _converted(coder: Coder, dtype: torch.dtype, keep_weights: bool) -> Generator[None]:
    """A context in which the coder is in `dtype`. keep_weights: as for `run`."""
    before = coder.like.dtype
    if dtype == before:
        yield
        return
    kept = [(p, p.data) for p in coder.parameters()] if keep_weights else []
    try:
        coder.to(dtype)  # fp16 weights survive the way to fp32 and back unchanged
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data
        coder.to(before)


@cache
def _warn_of_fp32() -> None:
    fast = " bf16 takes less time." if best_dtype(torch.device("cpu")) == torch.bfloat16 else ""
    log.warning("This CPU has no fp16 arithmetic: weights in fp16 are run in fp32.%s", fast)


def run_with_retries(
    coder: Coder,
    plan: Plan,
    x: Tensor,
    progress: Progress | None,
    output_device: torch.device | str | None,
    output_dtype: torch.dtype | None,
) -> tuple[Tensor, Plan]:
    """Return the result and the plan that gave it: `plan`, or where memory runs out, one for less memory."""
    device, run_in, tries = coder.like.device, _in_this_thread, 0
    while True:
        tries += 1
        try:
            return run_in(device, partial(run_plan, coder, plan, x, progress, output_device, output_dtype)), plan
        except (RuntimeError, MemoryError) as error:
            if hasattr(error, "of_progress") or not memory.is_out_of_memory(error):
                raise
            log.warning("Out of memory in: %s. Trying again with less.", plan)
            if memory.is_onednn_failure(error):
                run_in = _in_another_thread
        memory.release(device)
        memory.shrink(device)
        smaller = plan.within(plan.peak_bytes // 2 if tries + 1 < TRIES else 1)  # the last time in the least there is
        if tries == TRIES or smaller.peak_bytes >= plan.peak_bytes:
            break
        plan = smaller
    elsewhere = "" if device.type == "cpu" else ", or run it on the CPU"
    raise BudgetError(
        f"Memory ran out {counted(tries, 'time')} on {device}, the last time in: {plan}. Close other programs, or use "
        f"a smaller picture{elsewhere}."
    )


def run_plan(
    coder: Coder,
    plan: Plan,
    x: Tensor,
    progress: Progress | None = None,
    output_device: torch.device | str | None = None,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """Carry out `plan`, once. The result is on `output_device` and in `output_dtype`, by default the coder's."""
    like, done, finite = coder.like, 0, Finite()
    output: Output = {"device": output_device or like.device, "dtype": output_dtype or like.dtype}

    def on_step() -> None:
        nonlocal done
        done += 1
        if progress:
            try:
                progress(done, plan.steps)
            except Exception as error:
                vars(error)["of_progress"] = True  # whatever it is, memory has not run out in the run itself
                raise

    coder = coder.first_channels(plan.channels)
    if plan.whole or not isinstance(coder, InferenceCoder):
        result = _whole(coder, plan, x, output, on_step, finite)
    else:
        result = _in_strips(coder, plan, x, output, on_step, finite)
    finite.require()
    return result


def _in_strips(
    coder: InferenceCoder, plan: Plan, x: Tensor, output: Output, on_strip: Callable[[], None], finite: Finite
) -> Tensor:
    """In sweeps, one picture after another."""
    size = (plan.height, plan.width) if plan.direction == "encode" else plan.latent_size
    out = torch.empty(_result_shape(plan, len(x)), **output)
    for i in range(len(x)):
        sweeps.run(coder, sweeps.Source(x[i : i + 1], size), out[i : i + 1], plan.rows, on_strip, finite)
    return out


def _whole(coder: Coder, plan: Plan, x: Tensor, output: Output, on_part: Callable[[], None], finite: Finite) -> Tensor:
    """Layer by layer, as many pictures at once as the plan says."""
    like = coder.like

    def compute(part: Tensor) -> Tensor:
        if part.dtype == torch.uint8:
            part = images.from_uint8(part.to(like.device).to(like.dtype))
        part = part.to(like.device, like.dtype)
        if plan.direction == "encode":
            part = images.fit(part, Fit(part.shape[2], part.shape[3], plan.architecture.spatial_ratio))
        y = coder(part)
        return images.to_uint8(y, finite) if output["dtype"] == torch.uint8 else y

    if plan.together >= len(x):
        out = compute(x).to(**output)
        on_part()
        return out
    out = torch.empty(_result_shape(plan, len(x)), **output)
    for part, place in zip(x.split(plan.together), out.split(plan.together), strict=True):
        place.copy_(compute(part))
        on_part()
    return out


def _result_shape(plan: Plan, batch: int) -> tuple[int, int, int, int]:
    if plan.direction == "encode":
        return (batch, plan.channels, *plan.latent_size)
    return batch, 3, plan.height, plan.width


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Autocast would change dtypes on the way."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def _in_this_thread(device: torch.device, carry_out: Callable[[], Tensor]) -> Tensor:
    with torch.no_grad(), without_autocast(device):
        return carry_out()


def _in_another_thread(device: torch.device, carry_out: Callable[[], Tensor]) -> Tensor:
    """oneDNN can do no more in this one: see `memory.is_onednn_failure`."""
    mode = torch.is_inference_mode_enabled()

    def work() -> Tensor:
        with torch.inference_mode(mode):
            return _in_this_thread(device, carry_out)

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, work).result()
