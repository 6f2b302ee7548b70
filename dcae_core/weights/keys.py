"""The names and shapes of the tensors in a DC-AE file, in both published layouts. Which network they are is left to
`recognise`.

"diffusers" is the layout of the `-diffusers` repositories and of `model`; "original" is that of
mit-han-lab/efficientvit and dc-ai-projects/DC-Gen. They differ in names, in q, k and v (three matrices against one 1x1
convolution) and in how 1x1 maps are shaped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from ..architecture import Architecture
from ..model import Autoencoder

__all__ = ["LAYOUTS", "OPTIONAL", "PREFIXES", "expected", "from_original", "strip_prefix", "to_original", "widened"]

LAYOUTS = ("diffusers", "original")
PREFIXES = ("vae.", "first_stage_model.")
Shape = tuple[int, ...]

# Within a block, diffusers -> original. The resampling convolution ("conv.") depends on the variant and is not here.
BLOCK_NAMES = (
    (r"^conv1\.", "main.conv1.conv."),
    (r"^conv2\.", "main.conv2.conv."),
    (r"^norm\.", "main.conv2.norm."),
    (r"^attn\.to_[qkv]\.", "context_module.main.qkv.conv."),
    (r"^attn\.to_qkv_multiscale\.(\d+)\.proj_in\.", r"context_module.main.aggreg.\1.0."),
    (r"^attn\.to_qkv_multiscale\.(\d+)\.proj_out\.", r"context_module.main.aggreg.\1.1."),
    (r"^attn\.to_out\.", "context_module.main.proj.conv."),
    (r"^attn\.norm_out\.", "context_module.main.proj.norm."),
    (r"^conv_out\.conv_inverted\.", "local_module.main.inverted_conv.conv."),
    (r"^conv_out\.conv_depth\.", "local_module.main.depth_conv.conv."),
    (r"^conv_out\.conv_point\.", "local_module.main.point_conv.conv."),
    (r"^conv_out\.norm\.", "local_module.main.point_conv.norm."),
)


def original_name(key: str, architecture: Architecture) -> str:
    """Return the original layout's name of a tensor that diffusers calls `key` (one name for all of q, k and v)."""
    side, rest = key.split(".", 1)
    coder = architecture.encoder if side == "encoder" else architecture.decoder
    resampler = "conv." if coder.resample == "Conv" else "conv.conv."
    tail = rest.rsplit(".", 1)[-1]
    if match := re.match(r"(?:down|up)_blocks\.(\d+)\.(\d+)\.(.+)", rest):
        stage, index, inner = match.groups()
        if inner.startswith("conv."):
            inner = f"main.{resampler}{tail}"
        for pattern, name in BLOCK_NAMES:
            inner, changed = re.subn(pattern, name, inner)
            if changed:
                break
        return f"{side}.stages.{stage}.op_list.{index}.{inner}"
    shortcut = "main." if coder.shortcut else ""
    pixel_conv = resampler if coder.pixel_stage else "conv."
    if rest.startswith("norm_out."):
        name = "project_out.op_list.0."
    elif side == "encoder":
        name = f"project_in.{pixel_conv}" if rest.startswith("conv_in.") else f"project_out.{shortcut}op_list.0.conv."
    else:
        name = f"project_in.{shortcut}conv." if rest.startswith("conv_in.") else f"project_out.op_list.2.{pixel_conv}"
    return f"{side}.{name}{tail}"


@cache
def _diffusers_shapes(architecture: Architecture) -> dict[str, Shape]:
    with torch.device("meta"):
        return {key: tuple(t.shape) for key, t in Autoencoder(architecture).state_dict().items()}


def expected(architecture: Architecture, layout: str) -> dict[str, Shape]:
    """Return name and shape of every tensor that a file of this network must have, in `layout`."""
    shapes = _diffusers_shapes(architecture)
    if layout == "diffusers":
        return dict(shapes)
    found: dict[str, Shape] = {}
    for key, shape in shapes.items():
        name = original_name(key, architecture)
        if ".qkv." in name:
            found[name] = (3 * shape[0], shape[1], 1, 1)
        elif key.endswith(".to_out.weight"):
            found[name] = (*shape, 1, 1)
        else:
            found[name] = shape
    return found


def from_original(state: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """Convert a state dict from the original to the diffusers layout. Tensors are views where possible."""
    found = {}
    for key in _diffusers_shapes(architecture):
        name = original_name(key, architecture)
        if name not in state and key.endswith(OPTIONAL):
            continue
        tensor = state[name]
        if match := re.search(r"\.attn\.to_([qkv])\.weight$", key):
            tensor = tensor.chunk(3)["qkv".index(match.group(1))].flatten(1)
        elif key.endswith(".to_out.weight"):
            tensor = tensor.flatten(1)
        found[key] = tensor
    return found


def to_original(state: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """Convert a state dict from the diffusers to the original layout."""
    found = {}
    for key, tensor in state.items():
        name = original_name(key, architecture)
        if key.endswith(".to_q.weight"):
            parts = [state[key.replace(".to_q.", f".to_{part}.")] for part in "qkv"]
            if len({part.dtype for part in parts}) > 1:
                parts = [widened(part) for part in parts]
            found[name] = torch.cat(parts)[:, :, None, None]
        elif key.endswith(".to_out.weight"):
            found[name] = tensor[:, :, None, None]
        elif name not in found and ".qkv." not in name:
            found[name] = tensor
    return found


def widened(tensor: Tensor) -> Tensor:
    """Return 8-bit floats as bf16, which holds all their values, other tensors as they are. torch does not compute with
    8-bit floats beside other types."""
    return tensor.bfloat16() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor


OPTIONAL = ".num_batches_tracked"  # batch-norm bookkeeping that inference does not read and some tools drop


def strip_prefix(keys: Mapping[str, object] | list[str]) -> str:
    """Return the prefix of PREFIXES under which these keys hold an autoencoder; "" for none."""
    if any(k.startswith(("encoder.", "decoder.")) for k in keys):
        return ""
    return next((p for p in PREFIXES if any(k.startswith((f"{p}encoder.", f"{p}decoder.")) for k in keys)), "")
