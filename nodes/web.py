"""Lines of text for the web extension, and the two routes that serve them. Neither route takes a path."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import comfy.model_management as management
import torch
from aiohttp import web
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..dcae_core import DCAEError, Plan, Variant
from ..dcae_core import plan as planning
from ..dcae_core.engine.devices import compute_dtype, parse_dtype
from ..dcae_core.errors import OptionError, counted
from ..dcae_core.media.sizes import Fit
from ..dcae_core.taesana import NAME as TINY_NAME
from ..dcae_core.taesana import make_plan as make_tiny_plan
from . import models, taesana
from .geometry import true_area
from .vae import auto_dtype

__all__ = ["add_routes", "describe_run", "show_line"]

MAX_SIDE = 1 << 17  # pixels


def describe_run(plan: Plan, picture: tuple[int, int], seconds: float | None = None) -> str:
    """Return a run in one line: "1000x667 (padded to 1024x672) - 6 strips - peak 0.90 GiB - 0.41 s".

    picture: (height, width) of the picture that went in or comes out, which the run may have padded or cropped. The
    peak excludes the weights.
    """
    batch = f"{plan.batch} x " if plan.batch > 1 else ""
    size = f"{batch}{picture[1]}x{picture[0]}"
    if picture != (plan.height, plan.width):
        cropped = picture[0] > plan.height or picture[1] > plan.width
        size += f" ({'cropped' if cropped else 'padded'} to {plan.width}x{plan.height})"
    mode = "whole" if plan.whole else counted(plan.strips, "strip")
    time = [] if seconds is None else [f"{seconds:.2f} s"]
    return " · ".join([size, mode, f"peak {plan.peak_bytes / 2**30:.2f} GiB", *time])


def show_line(text: str, state: str = "busy") -> None:
    """Show a line on the node that is running, in the page that started it: by a message to that client, of which
    /history holds nothing. state: "busy", or "done" after a run."""
    server, running = PromptServer.instance, get_executing_context()
    if running is None or server.client_id is None:
        return
    # A node that another one makes while it runs, as loops do, is shown where that one says.
    node = get_progress_state().dynprompt.get_display_node_id(running.node_id)
    message = {"node": node, "text": text, "state": state, "prompt_id": running.prompt_id}
    server.send_sync("dcae.line", message, server.client_id)


def describe_model(choice: str) -> str:
    """Return what is behind a choice of the Loader, in one line. Raises DCAEError."""
    if choice == taesana.NAME and (tiny := taesana.files()):
        size = _gigabytes(sum(path.stat().st_size for path in tiny.values()))
        return " · ".join([TINY_NAME, "32x", "32 channels", size, " and ".join(tiny)])
    variant, checkpoint = models.inspect(choice)
    parts = [variant.name, f"{variant.spatial_ratio}x", f"{variant.latent_channels} channels"]
    parts.append(f"factor {variant.scaling_factor}" if variant.scaling_factor else "no published factor")
    if checkpoint is None:
        size = _gigabytes(weight_bytes(plans_of(variant), torch.float32))
        return " · ".join([*parts, f"not here: about {size} to download"])
    return " · ".join([*parts, _gigabytes(checkpoint.bytes), f"{checkpoint.layout} keys"])


def plans_of(variant: Variant, channels: int = 0) -> Callable[..., Plan]:
    """Return the planning of a variant, with latents of so many channels; 0 is all."""
    options = {"name": variant.name, "channels": variant.channels(channels or None)}
    return functools.partial(planning.make, variant.architecture, **options)


def weight_bytes(make_plan: Callable[..., Plan], dtype: torch.dtype) -> int:
    """Return the bytes of all weights of a network, by its plans."""
    return sum(make_plan(direction, 1, 1, dtype=dtype).weight_bytes for direction in planning.DIRECTIONS)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def describe_plan(query: dict[str, str]) -> str:
    """Return the line of a run before it happens. Raises DCAEError.

    query: choice, variant and dtype of the Loader; direction, width, height and batch of the pictures, budget_gib
    (weights included; 0 is what the device has) of the node; size_mode with which they are encoded or were, "forgotten"
    for padded ones whose size the latent does not remember; latent_channels; true_width and true_height, which decoding
    may be given.
    """
    try:
        width, height, batch = (int(query[name]) for name in ("width", "height", "batch"))
        more = ("true_width", "true_height", "latent_channels")
        true_width, true_height, channels = (int(query.get(name) or 0) for name in more)
        budget = float(query.get("budget_gib") or 0)
        if not budget < 1 << 20:  # nor NaN
            raise ValueError("budget_gib is too large")
    except (KeyError, ValueError) as error:
        raise OptionError(f"width, height, batch and budget_gib must be numbers: {error}.") from None
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and 1 <= batch <= 4096):
        raise OptionError(f"{batch} x {width}x{height} can't be planned.")
    requested = query.get("variant")
    if query.get("choice") == taesana.NAME:
        make_plan, ratio = make_tiny_plan, 32
    else:
        variant, _ = models.inspect(query.get("choice", ""), None if requested in (None, "auto") else requested)
        make_plan, ratio = plans_of(variant, channels), variant.spatial_ratio
    device = management.vae_device()
    dtype = compute_dtype(parse_dtype(query.get("dtype")) or auto_dtype(), device.type)
    direction, mode = query.get("direction", ""), query.get("size_mode") or "pad"
    fit = Fit(height, width, ratio, "pad" if mode == "forgotten" else mode)
    weights = weight_bytes(make_plan, dtype)
    limit: Any = int(budget * 2**30) if budget > 0 else management.get_total_memory(device)
    run = (direction, *fit.padded, batch, max(1, limit - weights), dtype)
    plan = make_plan(*run, device=device.type)
    if direction == "encode":
        return describe_run(plan, (height, width))
    remembered = None if mode == "forgotten" else fit.true
    rows, columns = true_area(fit.latent, fit.ratio, remembered, height=true_height, width=true_width)
    return describe_run(plan, (rows.stop - rows.start, columns.stop - columns.start))


def add_routes() -> None:
    """Add GET /dcae/model and /dcae/plan, which answer {"text"} or {"problem"}."""
    routes = PromptServer.instance.routes

    def answer(describe: Callable[..., str], *args: object) -> web.Response:
        try:
            return web.json_response({"text": describe(*args)})
        except DCAEError as error:
            return web.json_response({"problem": str(error)})

    @routes.get("/dcae/model")
    async def model(request: web.Request) -> web.Response:
        return answer(describe_model, request.query.get("choice", ""))

    @routes.get("/dcae/plan")
    async def plan(request: web.Request) -> web.Response:
        return answer(describe_plan, dict(request.query))
