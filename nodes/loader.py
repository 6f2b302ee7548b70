"""DCAE_Loader. Its choices and their files are in `models`."""

from __future__ import annotations

import time
from collections.abc import Callable

import comfy.model_management as management
import comfy.utils
from comfy_api.v0_0_2 import io

from ..dcae_core import DCAE, names
from ..dcae_core.engine.devices import parse_dtype
from . import models, taesana
from .schema import aliases
from .vae import DCAEVAE, auto_dtype
from .web import show_line

__all__ = ["DCAELoader"]


class DCAELoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        options = models.choices()
        return io.Schema(
            node_id="DCAE_Loader",
            display_name="DC-AE Loader (Sana VAE)",
            category="DC-AE",
            **aliases(),
            description="Loads a DC-AE (Deep Compression Autoencoder). Its VAE works with all VAE nodes.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=options,
                    default=options[0],
                    tooltip="The bundled demo, the DC-AE files in models/vae, 'taesana' (fast drafts) if it is in "
                    "models/vae_approx, and the published variants as downloads.",
                ),
                io.Combo.Input(
                    "variant",
                    options=["auto", *names()],
                    default="auto",
                    tooltip="auto finds it in the file. Needed only for an 'in' or 'mix' file whose name does not say.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=["auto", "bf16", "fp16", "fp32"],
                    default="auto",
                    tooltip="auto: what is fast on this device. fp16 can overflow and is then run again in fp32.",
                ),
                io.Boolean.Input(
                    "allow_download",
                    default=False,
                    tooltip="Fetch a '(download)' model from Hugging Face into models/vae if it is not there.",
                ),
            ],
            outputs=[io.Vae.Output(display_name="vae", tooltip="A VAE for these nodes and for ComfyUI's own.")],
        )

    @classmethod
    def validate_inputs(cls, model: str | None) -> bool | str:
        return model is None or models.problem(model) or True  # None: linked from a node that has not run yet

    @classmethod
    def fingerprint_inputs(cls, model: str | None, **others: object) -> str:
        return models.fingerprint(model) if model else ""

    @classmethod
    def execute(cls, model: str, variant: str, dtype: str, allow_download: bool) -> io.NodeOutput:
        device, chosen = management.vae_offload_device(), parse_dtype(dtype) or auto_dtype()
        if model == taesana.NAME:
            return io.NodeOutput(DCAEVAE(taesana.load(variant, device, chosen)))
        path, named = models.locate(model, allow_download, download_progress())
        requested = named if variant == "auto" else variant
        return io.NodeOutput(DCAEVAE(DCAE.from_file(path, requested, device, chosen)))


def download_progress() -> Callable[[int, int], None]:
    """Return a callback that shows a download on its node, and stops it when the user cancels."""
    bar, start, last = comfy.utils.ProgressBar(1), time.monotonic(), 0.0
    resumed_at: int | None = None

    def progress(done: int, total: int) -> None:
        nonlocal resumed_at, last
        management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)
        now = time.monotonic()
        resumed_at = done if resumed_at is None else resumed_at  # bytes kept from an interrupted download
        if now - last > 0.25 or done == total:
            last = now
            speed = (done - resumed_at) / max(now - start, 0.001) / 1e6
            show_line(f"{done / 1e6:.0f} of {total / 1e6:.0f} MB · {speed:.1f} MB/s · Cancel stops it")

    return progress
