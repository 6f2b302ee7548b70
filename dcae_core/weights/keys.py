"""The names and shapes of a DC-AE's tensors in both published layouts, and conversion between the two.

"diffusers" is the layout of the `-diffusers` repositories and of `model`; "original" is that of
mit-han-lab/efficientvit and dc-ai-projects/DC-Gen. They differ in names, in q, k and v (three matrices or one 1x1
convolution) and in the shape of 1x1 weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

import torch
from torch import Tensor

from ..architecture import Architecture
from ..errors import CheckpointError, counted
from ..model import Autoencoder
from ..untrusted import shorten

__all__ = ["LAYOUTS", "OPTIONAL", "autoencoder_names", "expected", "to_diffusers", "to_original", "widened"]

LAYOUTS = ("diffusers", "original")
WRAPPERS = re.compile(r"(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# How an autoencoder's first and last convolutions are named: what is before "encoder." is a prefix.
STARTS = re.compile(rf"((?:.*\.)?)(encoder|decoder)\.(?:{WRAPPERS.pattern})*(?:conv|project)_(?:in|out)\.")
OPTIONAL = ".num_batches_tracked"  # batch-norm counters that inference does not read and some tools drop
Shape = tuple[int, ...]

# Within a block, diffusers -> original. The resampling convolution's name depends on the architecture.
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


def _original_name(key: str, architecture: Architecture) -> str:
    """Return the original layout's name for the diffusers `key`. q, k and v share one name."""
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


@lru_cache(64)
def _diffusers_shapes(architecture: Architecture) -> dict[str, Shape]:
    with torch.device("meta"):
        return {key: tuple(t.shape) for key, t in Autoencoder(architecture).state_dict().items()}


def expected(architecture: Architecture, layout: str) -> dict[str, Shape]:
    """Return the name and shape of every tensor of this architecture in `layout`."""
    shapes = _diffusers_shapes(architecture)
    if layout == "diffusers":
        return dict(shapes)
    converted: dict[str, Shape] = {}
    for key, shape in shapes.items():
        name = _original_name(key, architecture)
        if ".qkv." in name:
            converted[name] = (3 * shape[0], shape[1], 1, 1)
        elif key.endswith(".to_out.weight"):
            converted[name] = (*shape, 1, 1)
        else:
            converted[name] = shape
    return converted


def to_diffusers(state: Mapping[str, Tensor], layout: str, architecture: Architecture) -> dict[str, Tensor]:
    """Return `state`, which is in `layout`, in the diffusers layout. Tensors are views where possible.

    Missing or misshapen batch-norm counters become zeros, and those that the architecture does not have are dropped.
    """
    original, converted = layout == "original", {}
    for key in _diffusers_shapes(architecture):
        name = _original_name(key, architecture) if original else key
        if key.endswith(OPTIONAL):
            valid = name in state and state[name].ndim == 0
            converted[key] = state[name] if valid else torch.zeros((), dtype=torch.int64, device="cpu")
            continue
        tensor = state[name]
        if original and (match := re.search(r"\.attn\.to_([qkv])\.weight$", key)):
            tensor = tensor.chunk(3)["qkv".index(match.group(1))].flatten(1)
        elif original and key.endswith(".to_out.weight"):
            tensor = tensor.flatten(1)
        converted[key] = tensor
    return converted


def to_original(state: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """Return `state`, which is in the diffusers layout, in the original layout."""
    converted = {}
    for key, tensor in state.items():
        name = _original_name(key, architecture)
        if key.endswith(".to_q.weight"):
            parts = [state[key.replace(".to_q.", f".to_{part}.")] for part in "qkv"]
            if len({part.dtype for part in parts}) > 1:
                parts = [widened(part) for part in parts]
            converted[name] = torch.cat(parts)[:, :, None, None]
        elif key.endswith(".to_out.weight"):
            converted[name] = tensor[:, :, None, None]
        elif name not in converted and ".qkv." not in name:
            converted[name] = tensor
    return converted


def widened(tensor: Tensor) -> Tensor:
    """Return 8-bit floats as bf16, which holds all their values, and other tensors unchanged. torch does not mix 8-bit
    floats with other types."""
    return tensor.bfloat16() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor


def autoencoder_names(names: Iterable[str], where: str) -> tuple[str, dict[str, str]]:
    """Return (prefix, {name in its layout: name as given}) of the one autoencoder among these names.

    The prefix is what wrappers and whole models put before "encoder." and "decoder.", at any depth; what torch.compile
    and the like put between is left out too. Where neither coder begins as one of a DC-AE does, all names are returned.
    Raises CheckpointError for several autoencoders; `where` names the file.
    """
    names = list(names)
    starts = [match.groups() for name in names if (match := STARTS.match(name))]
    halves = [{prefix for prefix, side in starts if side == one} for one in ("encoder", "decoder")]
    prefixes = sorted(halves[0] & halves[1] or halves[0] | halves[1]) or [""]
    if len(prefixes) > 1:
        listed = " and ".join(repr(shorten(prefix)) if prefix else "no prefix" for prefix in prefixes[:4])
        raise CheckpointError(
            f"{where} holds {counted(len(prefixes), 'autoencoder')}, with names under {listed}: save the one that you "
            "want in a file of its own."
        )
    inner: dict[str, str] = {}
    prefix = prefixes[0]
    for name in names:
        if prefix and not name.startswith((f"{prefix}encoder.", f"{prefix}decoder.")):
            continue  # of the whole model that the prefix is of
        plain = WRAPPERS.sub("", name.removeprefix(prefix))
        if plain in inner:
            both = f"{shorten(inner[plain])} and {shorten(name)}"
            raise CheckpointError(f"{where} holds {shorten(plain)} twice, as {both}.")
        inner[plain] = name
    return prefix, inner
