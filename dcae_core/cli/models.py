"""Commands about models: `dcae info`, `variants`, `plan`, `download`, `convert`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import variants
from ..architecture import DEFAULTS
from ..errors import BudgetError, CheckpointError, DCAEError, ImageError, OptionError, counted, escape_unprintable
from ..untrusted import open_image
from .arguments import DTYPES, Command, add_cache_dir, add_network, format_size, model_file, parse_size, read_config

__all__ = ["add"]


def add(command: Command) -> None:
    """Add the commands. command(run, name, help): makes the parser of one."""
    parser = command(info, "info", "Say what a file is: which network it holds, and how.")
    parser.add_argument("file", help="weights, by path or by the name of a variant; a picture, or latents")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    add_network(parser)
    add_cache_dir(command(list_variants, "variants", "List the variants, and which are on this machine."))
    parser = command(plan, "plan", "Say how a size runs within budgets, and the memory it takes.")
    default = "dc-ae-f32c32-mix-1.0"
    parser.add_argument("--variant", default=default, help=f"its name, a file or a folder (default: {default})")
    parser.add_argument("--size", default="4096x4096", help="side or WIDTHxHEIGHT of the picture (default: 4096x4096)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--budget", help="one budget instead of the table's, such as 6GiB")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    text = "H100, RTX 4090, RTX 3060, 780M or M3: seconds by its data sheet; or a file by benchmarks/machine.py"
    parser.add_argument("--machine", help=text)
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser = command(download, "download", "Fetch a variant's weights, checked against the hub's size and sha256.")
    parser.add_argument("variant")
    parser.add_argument("--revision", default="main", help="branch, tag or commit (default: main)")
    add_cache_dir(parser)
    parser = command(convert, "convert", "Write a file in the other key layout, or another precision.")
    parser.add_argument("source")
    parser.add_argument("target", help="FILE.safetensors, or a folder (gets a config.json too)")
    parser.add_argument("--to", choices=("diffusers", "original"), required=True, help="key layout to write")
    parser.add_argument("--dtype", choices=("keep", "fp32", "bf16", "fp16"), default="keep")
    add_network(parser)


def info(arguments: argparse.Namespace) -> None:
    known = _picture(arguments.file) or _latents(arguments.file) or _weights(arguments)
    if arguments.json:
        print(json.dumps(known))
        return
    for name, value in known.items():
        for line in value if isinstance(value, list) else [value]:
            print(f"{name.replace('_', ' '):15} {escape_unprintable(str(line))}")


def _picture(path: str) -> dict[str, object] | None:
    """Return what is known of a picture file; None for another."""
    from PIL import Image

    from ..media.pictures import frame_count

    try:
        file = open_image(path)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} is a picture of more pixels than are read: scale it down.") from error
    except Exception:  # Pillow's errors have no common class
        return None
    known: dict[str, object] = {"file": path, "picture": f"{file.format}, {file.width}x{file.height}"}
    try:
        known["pictures"] = frame_count(file)
    except Exception:
        known["pictures"] = "1, and what follows is damaged"
    return {**known, "note": "dcae encode makes latents of it"}


def _latents(path: str) -> dict[str, object] | None:
    """Return what is known of a latent file; None for another. Raises LatentError for one that can't be used."""
    from ..media import latents

    if not latents.is_latents(path):
        return None
    file = latents.read(path)
    height, width = file.size or (None, None)
    known = {"file": path, "latents": "x".join(map(str, file.raw.shape)), "variant": file.name or "is not said"}
    known |= {"picture": f"{width}x{height}"} if file.size else {}
    known |= {"alpha": "kept"} if file.alpha is not None else {}
    known |= {"animation": f"{sum(file.milliseconds) / 1000:g} s"} if file.milliseconds else {}
    return {**known, "note": "dcae decode makes pictures of it"}


def _weights(arguments: argparse.Namespace) -> dict[str, object]:
    from ..weights.checkpoint import Checkpoint

    opened = Checkpoint(model_file(arguments.file), read_config(arguments))
    try:
        chosen, doubt = opened.choose(arguments.variant), None
    except CheckpointError as error:
        if not opened.fits:
            raise
        chosen, doubt = opened.fits[0], str(error)
    either, custom = " or ".join, chosen.name not in variants.VARIANTS
    factors = [str(v.scaling_factor or "not published") for v in (opened.fits if doubt else [chosen])]
    return {
        "file": f"{opened.path} ({format_size(opened.bytes)}, {counted(len(opened.files), 'file')})",
        "variant": either([v.name for v in opened.fits]) if doubt else chosen.name,
        "layout": f"{opened.layout}{f', prefix {opened.prefix}' if opened.prefix else ''}",
        "stored_as": ", ".join(sorted(opened.dtypes - {"I64"})),
        "spatial_ratio": chosen.spatial_ratio,
        "latent_channels": chosen.latent_channels,
        "scaling_factor": either(factors),
        "fields_from": list(_sources(opened.configured, custom)),
        "note": [*([chosen.note] if custom else []), *([doubt] if doubt else [])],
    }


def _sources(configured: Mapping[str, tuple[object, str]], custom: bool) -> Iterator[str]:
    """Yield where the fields of a config are from. custom: whether those that are in no config are the tensors'."""
    sources = dict.fromkeys(DEFAULTS, "its tensors") if custom else {}
    sources |= {field: source for field, (_, source) in configured.items()}
    for source in dict.fromkeys(sources.values()):
        fields = [field for field in sources if sources[field] == source]
        if all(field in fields for field in DEFAULTS):
            fields = ["all of the network", *(field for field in fields if field not in DEFAULTS)]
        yield f"{source}: {', '.join(fields)}"


def list_variants(arguments: argparse.Namespace) -> None:
    from ..weights import hub

    print(f"{'variant':28} ratio channels  factor  here")
    for v in variants.VARIANTS.values():
        here = hub.find(v, arguments.cache_dir)
        line = f"{v.name:28} {v.spatial_ratio:5} {v.latent_channels:8} {v.scaling_factor or '-':>7}  {here or '-'}"
        print(line)


def plan(arguments: argparse.Namespace) -> None:
    import torch

    from ..engine import memory
    from ..engine import plan as planning
    from ..engine.devices import best_device, best_dtype, compute_dtype, parse_dtype
    from ..engine.machine import Machine
    from ..weights import hub
    from ..weights.checkpoint import Checkpoint

    file = hub.is_path(arguments.variant)
    variant = Checkpoint(arguments.variant).choose() if file else variants.find(arguments.variant)
    height, width = parse_size(arguments.size)
    machine = Machine.load(arguments.machine) if arguments.machine else None
    device = torch.device(machine.device) if machine else best_device()
    stored = parse_dtype(arguments.dtype) or best_dtype(device)
    dtype = compute_dtype(stored, device.type)
    budgets = [arguments.budget] if arguments.budget else [None, *(f"{n}GiB" for n in (24, 12, 8, 4, 2, 1))]
    timed = machine is not None and (machine.measured or device.type != "cpu")
    rows = []
    for direction in planning.DIRECTIONS:
        for budget in budgets:
            row: dict[str, Any] = {"direction": direction, "budget": budget}
            try:
                limit = memory.parse_bytes(budget)
                run = (variant.architecture, direction, height, width, arguments.batch, limit, dtype)
                made = planning.make(*run, device=device.type, machine=machine)
                row |= {"peak_bytes": made.peak_bytes, "weight_bytes": made.weight_bytes, "strips": made.strips}
                row |= {"whole": made.whole, "seconds": made.predict(machine) if machine and timed else None}
            except BudgetError as error:
                row |= {"needed_bytes": error.needed}
            rows.append(row)
    of = {"variant": variant.name, "width": width, "height": height, "batch": arguments.batch, "dtype": str(dtype)[6:]}
    if arguments.json:
        print(json.dumps({**of, "plans": rows}))
        return
    head = f"{variant.name}, {width}x{height}, batch {arguments.batch}, {str(dtype)[6:]}; GiB beside the weights"
    if dtype != stored:
        head += f"; {str(stored)[6:]} runs in {str(dtype)[6:]} on this CPU"
    if machine:
        head += f"; for {machine.name}{', by its data sheet: nothing was measured' if device.type != 'cpu' else ''}"
    print(head)
    print(f"{'':7} {'budget':>8} {'peak':>8} {'weights':>8} {'strips':>16}{'   seconds' if timed else ''}")
    for row in rows:
        print(_plan_line(row))


def _plan_line(row: Mapping[str, Any]) -> str:
    from ..engine.memory import format_gib

    start = f"{row['direction']:7} {row['budget'] or 'none':>8}"
    if "needed_bytes" in row:
        needs = f"needs {format_gib(row['needed_bytes'])}"
        return f"{start} {'-':>8} {'':>8} {needs:>16}"
    peak, weights = row["peak_bytes"] / 2**30, row["weight_bytes"] / 2**30
    seconds = "" if row["seconds"] is None else f"{row['seconds']:10.2f}"
    return f"{start} {peak:8.2f} {weights:8.2f} {'whole' if row['whole'] else row['strips']:>16}{seconds}"


def download(arguments: argparse.Namespace) -> None:
    from ..weights import hub

    path = hub.download(arguments.variant, arguments.cache_dir, revision=arguments.revision)
    print(escape_unprintable(str(path)))


def convert(arguments: argparse.Namespace) -> None:
    from ..engine.devices import parse_dtype
    from ..media.nonfinite import is_finite
    from ..weights import checkpoint

    target = Path(arguments.target)
    if target.suffix.lower() in (".bin", ".pt", ".pth", ".ckpt", ".gguf"):
        raise OptionError(f"{target} would be a folder: name a file that ends in .safetensors, or a folder.")
    source = checkpoint.Checkpoint(model_file(arguments.source), read_config(arguments))
    if target.exists() and any(target.samefile(file) for file in source.files):
        raise OptionError(f"{target} is what is converted, and would be written over: name another.")
    chosen = source.choose(arguments.variant)
    dtype = parse_dtype(None if arguments.dtype == "keep" else arguments.dtype)
    state = source.state(chosen.architecture)
    if dtype is not None:
        state = {k: t.to(dtype) if t.is_floating_point() else t for k, t in state.items()}
        for key, tensor in state.items():
            if not is_finite(tensor):
                raise DCAEError(f"{source.path}: {key} holds numbers that {arguments.dtype} can't: use bf16 or fp32.")
    written = checkpoint.save(arguments.target, state, chosen, arguments.to)
    size = format_size(written.stat().st_size)
    print(f"{escape_unprintable(str(written))} ({chosen.name}, {arguments.to} layout, {size})")
