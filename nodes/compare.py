"""DCAE_Compare: any VAEs of ComfyUI through dcae_core.compare."""

from __future__ import annotations

import os
import uuid
from typing import Any

import comfy.model_management as management
import comfy.sd
import folder_paths
import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..dcae_core import images
from ..dcae_core.compare import Codec, Comparison, compare, draw
from ..dcae_core.compare.sheet import difference
from ..dcae_core.compare.text import caption, markdown
from .schema import aliases
from .vae import DCAEVAE, node_progress

__all__ = ["DCAECompare"]

MAX_VAES = 4
MAX_PICTURES = 8  # shown in the grid and on the page


class DCAECompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCAE_Compare",
            display_name="DC-AE Compare",
            category="DC-AE",
            **aliases("compare vae", "psnr", "ssim", "before after"),
            description="Pictures through up to four VAEs, of any kind: what comes back, how close, and at what cost.",
            inputs=[
                io.Image.Input("image", tooltip="The pictures to send through each VAE and back."),
                io.Vae.Input("vae_1", tooltip="Any VAE of ComfyUI, or of the DC-AE Loader."),
                *(
                    io.Vae.Input(f"vae_{i}", optional=True, tooltip="Another VAE to set beside it.")
                    for i in range(2, MAX_VAES + 1)
                ),
                io.Int.Input(
                    "repeats",
                    default=1,
                    min=1,
                    max=20,
                    tooltip="Timed runs of each, after one that is not timed. The time shown is their median.",
                ),
                io.Float.Input(
                    "amplify", default=5.0, min=1.0, max=50.0, step=1.0, tooltip="Of the differences that are shown."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="Originals, results and differences in one picture."),
                io.String.Output(display_name="table", tooltip="Scores, time and memory of each VAE."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        vae_1: comfy.sd.VAE,
        repeats: int,
        amplify: float,
        vae_2: comfy.sd.VAE | None = None,
        vae_3: comfy.sd.VAE | None = None,
        vae_4: comfy.sd.VAE | None = None,
    ) -> io.NodeOutput:
        vaes = [(i, vae) for i, vae in enumerate((vae_1, vae_2, vae_3, vae_4), start=1) if vae is not None]
        rows = [(f"picture {i}", lambda picture=picture: rounded(picture)) for i, picture in enumerate(image, start=1)]
        codecs = [(f"vae_{i}", lambda i=i, vae=vae: codec_of(vae, i)) for i, vae in vaes]
        update = node_progress()
        comparison = compare(
            codecs, rows, repeats=repeats, keep=MAX_PICTURES, progress=lambda _, done, total: update(done, total)
        )
        grid = images.from_pil(draw(comparison, amplify))
        # What clients of the API look for in each entry of /history. The page shows the slider instead.
        shown = {"filename": save_temporary(grid), "subfolder": "", "type": "temp"}
        return io.NodeOutput(
            grid[None], markdown(comparison), ui={"images": [shown], "dcae_compare": [page_data(comparison, amplify)]}
        )


def rounded(image: Tensor) -> Tensor:
    """Return one IMAGE [H, W, C] as [H, W, 3], rounded to 8 bits as saving does."""
    picture = images.to_host(images.from_host(image.float()))[0]
    return (picture * 255).round() / 255


def codec_of(vae: comfy.sd.VAE, number: int) -> Codec:
    """Return a codec that uses the VAE's own encode and decode, under ComfyUI's memory management."""
    is_dcae = isinstance(vae, DCAEVAE)
    kind = vae.dcae.name if is_dcae else type(vae.first_stage_model).__name__
    ratio: Any = vae.spacial_compression_encode()
    model: Any = vae.first_stage_model
    management.load_models_gpu([vae.patcher])  # else the first run's memory would include them

    def encode(x: Tensor) -> Tensor:
        return vae.encode(images.to_host(x).to(vae.output_device))

    def decode(z: Tensor) -> Tensor:
        picture = vae.decode(z)
        return images.from_host(picture.reshape(-1, *picture.shape[-3:]))  # video VAEs have frames as well

    return Codec(
        name=f"vae_{number}: {kind} {dtype_name(vae.vae_dtype)}",
        kind=kind,
        ratio=ratio,
        encode=encode,
        decode=decode,
        device=vae.device,
        dtype=vae.vae_dtype,
        weights=[*model.parameters(), *model.buffers()],
        scaling_factor=vae.dcae.variant.scaling_factor if is_dcae else None,
    )


def dtype_name(dtype: torch.dtype) -> str:
    """Return bf16, fp16 or fp32."""
    return str(dtype).removeprefix("torch.").replace("float", "fp").replace("bfp", "bf")


def page_data(comparison: Comparison, amplify: float) -> dict[str, list[dict[str, object]]]:
    """Return what the page needs for its slider: pictures, as files of ComfyUI's temp folder, and a line for each."""
    pictures: list[dict[str, object]] = []
    for i, row in enumerate(comparison.rows):
        if row.picture is None:
            continue
        results: list[dict[str, str]] = []
        for column in comparison.columns:
            cell = column.cells[i] if column.cells else None
            if cell is None or cell.result is None:
                results.append({"name": column.name, "text": (cell.error if cell else column.error) or ""})
                continue
            deviation = difference(row.picture, cell.result, amplify)
            results.append(
                {
                    "name": column.name,
                    "text": " · ".join(caption(cell)),
                    "result": save_temporary(cell.result),
                    "difference": save_temporary(deviation),
                }
            )
        pictures.append({"name": row.name, "original": save_temporary(row.picture), "results": results})
    return {"pictures": pictures}


def save_temporary(picture: Tensor) -> str:
    """Write a picture into ComfyUI's temp folder; return its name there."""
    folder = folder_paths.get_temp_directory()
    os.makedirs(folder, exist_ok=True)
    name = f"dcae_{uuid.uuid4().hex}.png"
    images.write(os.path.join(folder, name), picture.to(torch.float32))
    return name
