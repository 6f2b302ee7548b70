"""Commands about models: `dcae info`, `variants`, `plan`, `download`, `convert`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

from .. import variants
from ..architecture import DEFAULTS
from ..errors import BudgetError, CheckpointError, DCAEError, OptionError, escape_unprintable
from .arguments import DTYPES, add_cache_dir, add_network, format_size, model_file, parse_size, read_config

__all__ = ["add"]


def add(command) -> None:
    """Add the commands. command(run, name, help): makes the parser of one."""
    parser = command(info, "info", "Say which network a file holds, and how.")
    parser.add_argument("file")
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
    from ..weights.checkpoint import Checkpoint

    opened = Checkpoint(model_file(arguments.file), read_config(arguments))
    try:
        chosen, doubt = opened.choose(arguments.variant), None
    except CheckpointError as error:
        if not opened.fits:
            raise
        chosen, doubt = opened.fits[0], str(error)
    either = " or ".join
    path = escape_unprintable(str(opened.path))
    print(f"file            {path} ({format_size(opened.bytes)}, {len(opened.files)} file(s))")
    print(f"variant         {either([v.name for v in opened.fits]) if doubt else chosen.name}")
    print(f"layout          {opened.layout}{f', prefix {opened.prefix}' if opened.prefix else ''}")
    print(f"stored as       {', '.join(sorted(opened.dtypes - {'I64'}))}")
    print(f"spatial ratio   {chosen.spatial_ratio}")
    print(f"latent channels {chosen.latent_channels}")
    factors = [str(v.scaling_factor or "not published") for v in (opened.fits if doubt else [chosen])]
    print(f"scaling factor  {either(factors)}")
    custom = chosen.name not in variants.VARIANTS
    for line in _sources(opened.configured, custom):
        print(f"fields from     {line}")
    if custom:
        print(f"note            {chosen.note}")
    if doubt:
        print(f"note            {doubt}")


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
    lines = [f"{variant.name}, {width}x{height}, batch {arguments.batch}, {str(dtype)[6:]}; GiB beside the weights"]
    lines.append(f"{'':7} {'budget':>8} {'peak':>8} {'weights':>8}  strips")
    if dtype != stored:
        lines[0] += f"; {str(stored)[6:]} runs in {str(dtype)[6:]} on this CPU"
    timed = machine is not None and (machine.measured or device.type != "cpu")
    if machine:
        lines[-1] += "    seconds"
        lines[0] += f"; for {machine.name}{', by its data sheet: nothing was measured' if device.type != 'cpu' else ''}"
    for direction in planning.DIRECTIONS:
        for budget in budgets:
            limit = memory.parse_bytes(budget)
            try:
                run = (variant.architecture, direction, height, width, arguments.batch, limit, dtype)
                one_plan = planning.make(*run, device=device.type, machine=machine)
                peak, strips = f"{one_plan.peak_bytes / 2**30:.2f}", "whole" if one_plan.whole else one_plan.strips
                weights = f"{one_plan.weight_bytes / 2**30:.2f}"
                seconds = f"{one_plan.predict(machine):{17 - len(str(strips))}.2f}" if timed else ""
            except BudgetError as error:
                peak, weights, strips, seconds = "-", "", f"needs {memory.format_gib(error.needed)}", ""
            lines.append(f"{direction:7} {budget or 'none':>8} {peak:>8} {weights:>8}  {strips}{seconds}")
    print("\n".join(lines))


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
