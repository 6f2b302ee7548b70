"""Read the fields of an AutoencoderDC config from the names and shapes of tensors, in either key layout: all that these
determine. The rest (`NOT_IN_TENSORS`, and the scaling factor) is left to a config."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from ..architecture import MAX_STAGES, MAX_WIDTH

__all__ = ["HEAD_DIMS", "NOT_IN_TENSORS", "fields_of"]

Shape = tuple[int, ...]
HEAD_DIMS = "attention_head_dims"
# Tensors tell the head dimension only with multi-scale branches, the shortcuts only in the original layout.
NOT_IN_TENSORS = (
    *("attention_head_dim", "encoder_out_shortcut", "decoder_in_shortcut"),
    *("decoder_act_fns", "decoder_conv_act_fn"),
)

# Of the weights that matter here: diffusers' name for the original one.
NAMES = (
    (r"stages\.(\d+)\.op_list\.", r"blocks.\1."),
    (r"(?:down|up)_blocks\.", "blocks."),
    (r"main\.conv([12])\.(?:conv\.)?", r"conv\1."),
    (r"conv2\.norm\.", "norm."),
    (r"context_module\.main\.proj\.conv\.", "attn.to_out."),
    (r"context_module\.main\.proj\.norm\.", "norm."),
    (r"attn\.norm_out\.", "norm."),
    (r"context_module\.main\.aggreg\.(\d+)\.0\.", r"attn.to_qkv_multiscale.\1.proj_in."),
    (r"context_module\.main\.aggreg\.(\d+)\.1\.", r"attn.to_qkv_multiscale.\1.proj_out."),
    (r"^project_(in|out)\.(?:main\.)?(?:op_list\.[02]\.)?", r"conv_\1."),
    (r"(?:main\.)?(?:conv\.)+(weight|bias)$", r"\1"),
)


def fields_of(shapes: Mapping[str, Shape]) -> dict[str, Any] | None:
    """Return what names and shapes tell, by the names of the fields; None where they are of no such network. Whether
    all tensors fit is not checked. Head dimensions that fit, where several do, are under HEAD_DIMS."""
    original = any(".op_list." in name for name in shapes)
    found: dict[str, Any] = {}
    try:
        for side in ("encoder", "decoder"):
            inner = {n.removeprefix(f"{side}."): s for n, s in shapes.items() if n.startswith(f"{side}.")}
            found |= _side(side, {_plain(name): shape for name, shape in inner.items()})
            if original:
                name = {"encoder": "encoder_out_shortcut", "decoder": "decoder_in_shortcut"}[side]
                found[name] = any(re.match(r"project_(in|out)\.main\.", n) for n in inner)
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    heads = [pair for side in ("encoder", "decoder") for pair in found.pop(f"{side}_heads")]
    sizes = range(1, min((width for width, _ in heads if width < MAX_WIDTH), default=0) + 1)
    fit = [size for size in sizes if all(width // size * size == inner for width, inner in heads)]
    branches = {size for side in ("encoder", "decoder") for size in found.pop(f"{side}_head_dims")}
    fit = [size for size in fit if branches in (set(), {size})]
    if len(fit) == 1:
        return found | {"attention_head_dim": fit[0]}
    return found | ({HEAD_DIMS: fit} if fit else {})


def _plain(name: str) -> str:
    for pattern, plain in NAMES:
        name = re.sub(pattern, plain, name)
    return name


def _side(side: str, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The fields of an encoder or a decoder, the widths of its attention before and after it, and the head dimensions
    that its branches have. Raises KeyError and the like for other things."""
    encodes = side == "encoder"
    stages: dict[int, dict[int, dict[str, Shape]]] = defaultdict(lambda: defaultdict(dict))
    for name, shape in shapes.items():
        if match := re.match(r"blocks\.(\d+)\.(\d+)\.(.+)", name):
            stages[int(match[1])][int(match[2])][match[3]] = shape
    resamplers = {i: block["weight"] for i, blocks in stages.items() for block in blocks.values() if "weight" in block}
    last = max(stages)
    if last > MAX_STAGES:
        raise IndexError
    count = last + (2 if last in resamplers else 1)
    latent = shapes["conv_out.weight" if encodes else "conv_in.weight"]
    rows, heads, head_dims = [], [], set()
    for i in range(count):
        blocks = [block for _, block in sorted(stages[i].items()) if "weight" not in block]
        block = blocks[0] if blocks else {}
        attends = "attn.to_out.weight" in block
        branches = sorted(name for name in block if name.endswith("proj_in.weight"))
        head_dims |= {block[name.replace("proj_in", "proj_out")][1] for name in branches}
        if attends:  # heads are as many as are whole
            width, inner = block["attn.to_out.weight"][:2]
            heads.append((width, inner // (1 + len(branches))))
        width = block["attn.to_out.weight" if attends else "conv1.weight"][0] if block else 0
        norm = "batch_norm" if "norm.running_mean" in block else "rms_norm"
        kind = "EfficientViTBlock" if attends else "ResBlock"
        rows.append([width, len(blocks), kind, tuple(block[name][-1] for name in branches), norm])
    rows[-1][0] = rows[-1][0] or latent[1 if encodes else 0]
    rows[0][0] = rows[0][0] or rows[1][0]  # of an empty stage, which has no width
    widths, depths, kinds, scales, norms = map(tuple, zip(*rows, strict=True))
    # What a resampling convolution makes, and what comes out after shuffling.
    made = {weight[0]: widths[i + 1 if encodes else i] for i, weight in resamplers.items()}
    if not depths[0]:
        made[shapes["conv_in.weight" if encodes else "conv_out.weight"][0]] = widths[1] if encodes else 3
    shuffles = any(outputs != width for outputs, width in made.items())
    found = {
        "latent_channels": latent[0 if encodes else 1],
        f"{side}_block_out_channels": widths,
        f"{side}_layers_per_block": depths,
        f"{side}_block_types": kinds,
        f"{side}_qkv_multiscales": scales,
        f"{side}_heads": heads,
        f"{side}_head_dims": head_dims,
    }
    if encodes:
        return found | {"downsample_block_type": "pixel_unshuffle" if shuffles else "Conv"}
    return found | {"upsample_block_type": "pixel_shuffle" if shuffles else "interpolate", "decoder_norm_types": norms}
