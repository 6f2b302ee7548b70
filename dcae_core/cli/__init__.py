"""The command line: `dcae COMMAND` or `python -m dcae_core COMMAND`.

Exit codes: 0 done; 1 something a user can put right, said in one line on standard error; 2 wrong arguments;
130 stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from .. import __version__, variants
from ..errors import DCAEError, OptionError, escape_unprintable
from ..files import ASSETS, atomic_write
from . import batch
from .arguments import can_be_written, file_of, sides, targets_of

__all__ = ["main"]

DTYPE_CHOICES = ("auto", "bf16", "fp16", "fp32")


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names of files may hold what can't be encoded
            stream.reconfigure(errors="backslashreplace")
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:  # nobody reads on, as after `| head`; what Python flushes at its end must go somewhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (DCAEError, OSError) as error:
        print(f"dcae: {escape_unprintable(str(error))}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        said = _machine(error)
        if said is None:
            raise
        print(f"dcae: {said}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dcae: stopped", file=sys.stderr)
        return 130


def _machine(error: Exception) -> str | None:
    """What to do where the machine is to blame, and not this program."""
    from ..engine.devices import has_failed
    from ..engine.memory import is_out_of_memory

    if is_out_of_memory(error):
        return "out of memory: use a smaller picture, --dtype bf16, or --device cpu."
    if has_failed(error):
        first_line = next(iter(str(error).strip().splitlines()), "no details").rstrip(".")
        return f"the device failed: {first_line}. What was written before is whole. Run it again, or with --device cpu."
    return None


def info(arguments: argparse.Namespace) -> None:
    from ..errors import CheckpointError
    from ..weights.checkpoint import Checkpoint

    checkpoint = Checkpoint(file_of(arguments.file))
    try:
        chosen, doubt = checkpoint.choose(), None
    except CheckpointError as error:
        chosen, doubt = checkpoint.fits[0], str(error)
    either = " or ".join
    path = escape_unprintable(str(checkpoint.path))
    print(f"file            {path} ({_size(checkpoint.bytes)}, {len(checkpoint.files)} file(s))")
    print(f"variant         {either([v.name for v in checkpoint.fits]) if doubt else chosen.name}")
    print(f"layout          {checkpoint.layout}{f', prefix {checkpoint.prefix}' if checkpoint.prefix else ''}")
    print(f"stored as       {', '.join(sorted(checkpoint.dtypes - {'I64'}))}")
    print(f"spatial ratio   {chosen.spatial_ratio}")
    print(f"latent channels {chosen.latent_channels}")
    factors = [str(v.scaling_factor or "not published") for v in (checkpoint.fits if doubt else [chosen])]
    print(f"scaling factor  {either(factors)}")
    if doubt:
        print(f"note            {doubt}")


def list_variants(arguments: argparse.Namespace) -> None:
    from ..weights import hub

    print(f"{'variant':28} ratio channels  factor  here")
    for v in variants.VARIANTS.values():
        here = hub.find(v, arguments.cache_dir)
        line = f"{v.name:28} {v.spatial_ratio:5} {v.latent_channels:8} {v.scaling_factor or '-':>7}  {here or '-'}"
        print(line)


def plan(arguments: argparse.Namespace) -> None:
    from ..engine import memory
    from ..engine import plan as planning
    from ..engine.devices import best_device, best_dtype, parse_dtype
    from ..errors import BudgetError

    variant = variants.find(arguments.variant)
    height, width = sides(arguments.size)
    device = best_device()
    dtype = parse_dtype(arguments.dtype) or best_dtype(device)
    budgets = [arguments.budget] if arguments.budget else [None, *(f"{n}GiB" for n in (24, 12, 8, 4, 2, 1))]
    lines = [f"{variant.name}, {width}x{height}, batch {arguments.batch}, {str(dtype)[6:]}; GiB beside the weights"]
    lines.append(f"{'':7} {'budget':>8} {'peak':>8} {'weights':>8}  strips")
    for direction in planning.DIRECTIONS:
        for budget in budgets:
            limit = memory.parse_bytes(budget)
            try:
                made = planning.make(
                    variant.architecture, direction, height, width, arguments.batch, limit, dtype, device=device.type
                )
                peak, strips = f"{made.peak_bytes / 2**30:.2f}", "whole" if made.whole else made.strips
                weights = f"{made.weight_bytes / 2**30:.2f}"
            except BudgetError as error:
                peak, weights, strips = "-", "", f"needs {memory.format_gib(error.needed)}"
            lines.append(f"{direction:7} {budget or 'none':>8} {peak:>8} {weights:>8}  {strips}")
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
    source = checkpoint.Checkpoint(file_of(arguments.source))
    if target.exists() and any(target.samefile(file) for file in source.files):
        raise OptionError(f"{target} is what is converted, and would be written over: name another.")
    chosen = source.choose(arguments.variant)
    dtype = parse_dtype(None if arguments.dtype == "keep" else arguments.dtype)
    state = source.state(chosen)
    if dtype is not None:
        state = {k: t.to(dtype) if t.is_floating_point() else t for k, t in state.items()}
        for key, tensor in state.items():
            if not is_finite(tensor):
                raise DCAEError(f"{source.path}: {key} holds numbers that {arguments.dtype} can't: use bf16 or fp32.")
    written = checkpoint.save(arguments.target, state, chosen, arguments.to)
    print(f"{escape_unprintable(str(written))} ({chosen.name}, {arguments.to} layout, {_size(written.stat().st_size)})")


def encode(arguments: argparse.Namespace) -> None:
    from ..media import images, latents
    from ..media.sizes import Fit

    if arguments.scaling_factor is not None and not arguments.scaled:
        raise OptionError("--scaling-factor is for scaled latents: add --scaled, or leave it out.")
    pairs = targets_of(arguments, ".safetensors")
    if wrong := [target for _, target in pairs if target.suffix not in (".safetensors", ".latent")]:
        raise OptionError(f"Latents are written to .safetensors files, or into a folder, not to {wrong[0]}.")
    can_be_written([], [str(target) for _, target in pairs])
    ae = _load(arguments)
    factor = ae.variant.factor(arguments.scaling_factor) if arguments.scaled else None
    for source, target in _bar_over(pairs):
        x = images.from_host(images.read(source))
        how = Fit(*x.shape[2:], ae.spatial_ratio, arguments.size_mode)
        channels = arguments.latent_channels
        z = ae.encode(images.fit(x, how), arguments.budget, _strips(source), latent_channels=channels)
        latents.write(target, z.float(), ae.variant, how.true, scaled=arguments.scaled, scaling_factor=factor)
        print(f"{escape_unprintable(str(target))} ({how.true[1]}x{how.true[0]} -> {list(z.shape[1:])})")


def decode(arguments: argparse.Namespace) -> None:
    from ..errors import ImageError, LatentError
    from ..media import images, latents
    from ..media.nonfinite import NonFiniteError

    ae, pairs = None, targets_of(arguments, "-dcae.png")
    can_be_written([str(target) for _, target in pairs], [])
    for source, target in _bar_over(pairs):
        file = latents.read(source)
        if ae is None:
            if not arguments.model and file.variant is None:
                raise DCAEError(f"{source} does not say which DC-AE it was made with: say it with --model.")
            arguments.model = arguments.model or file.variant.name
            ae = _load(arguments)
        if file.variant is not None and file.variant.latent_space != ae.variant.latent_space:
            raise LatentError(
                f"{source} was made with {file.variant.name}, but {ae.variant.name} is loaded and does not read its "
                f"latents: use --model {file.variant.name}."
            )
        try:
            made = ae.decode(file.raw, file.size, arguments.budget, _strips(source))
        except (LatentError, NonFiniteError, ImageError) as error:  # of several files, which?
            raise LatentError(f"{source}: {error}") from error
        pictures = images.to_host(made)
        for i, picture in enumerate(pictures, start=1):
            one = target if len(pictures) == 1 else target.with_stem(f"{target.stem}-{i}")
            images.write(one, picture)
            print(f"{escape_unprintable(str(one))} ({picture.shape[1]}x{picture.shape[0]})")


def roundtrip(arguments: argparse.Namespace) -> None:
    from ..media import images

    pairs = targets_of(arguments, "-dcae.png")
    can_be_written([str(target) for _, target in pairs], [])
    ae = _load(arguments)
    for source, target in _bar_over(pairs):
        picture, result, _ = _roundtrip(ae, source, arguments.budget)
        images.write(target, _beside(picture[0], result[0]) if arguments.side_by_side else result[0])
        print(f"  {escape_unprintable(str(target))}")


def compare(arguments: argparse.Namespace) -> None:
    import json

    from ..compare import codecs, metrics, page, run, sheet, text
    from ..engine.devices import parse_device
    from ..engine.memory import parse_bytes

    can_be_written([arguments.output], [arguments.html, arguments.json])
    if arguments.repeats < 1 or arguments.rows < 1 or not 0 < arguments.amplify < 1e6:
        raise OptionError("--repeats and --rows must be 1 or more, and --amplify more than 0.")
    parse_device(arguments.device), parse_bytes(arguments.budget)  # said here, not once for each model
    names = arguments.models or codecs.local(arguments.cache_dir)
    pictures = list(run.pictures(arguments.images, sides(arguments.size)))
    options = (arguments.device, arguments.dtype, arguments.budget, arguments.cache_dir, arguments.download)
    opened = [(name, lambda name=name: codecs.load(name, *options)) for name in names]
    had, notes = {}, []
    for name, make in (("perceptual", metrics.lpips), ("frechet", metrics.frechet)):
        if name == "frechet" and len(pictures) < 2:
            notes.append("rFID is over a set of pictures: give several.")
            continue
        try:
            had[name] = make(arguments.download)
        except DCAEError as error:
            notes.append(str(error))
    bar = _bar(len(names) * len(pictures))
    keep = arguments.rows if arguments.html or arguments.output else 0
    made = run.compare(opened, pictures, repeats=arguments.repeats, keep=keep, progress=bar, **had)
    whole = [column.name for column in made.columns if column.kind not in ("", "DC-AE")]
    if arguments.budget and whole:
        notes.append(f"The budget is for DC-AEs: {', '.join(whole)} ran without.")
    made.notes += notes
    print(text.table(made))
    if not any(cell.scores for column in made.columns for cell in column.cells):
        raise DCAEError("No autoencoder made anything of any picture: see above. No output was written.")
    outputs = (
        (arguments.json, lambda path: _write_text(Path(path), json.dumps(text.as_json(made), indent=1) + "\n")),
        (arguments.html, lambda path: print(escape_unprintable(str(page.write_page(path, made, arguments.amplify))))),
        (arguments.output, lambda path: _write_picture(path, sheet.draw(made, arguments.amplify))),
    )
    failed = []
    for path, write in outputs:
        try:
            if path:
                write(path)
        except (DCAEError, OSError) as error:  # the others are not lost with it
            failed.append(str(error))
    if failed:
        raise DCAEError(" ".join(failed))


def _write_picture(path: str, picture) -> None:
    from ..media import images

    images.write(path, images.from_pil(picture))
    print(escape_unprintable(str(path)))


def _bar(total: int):
    """A progress callback of `run.compare`, as a bar with what is being done."""
    from tqdm import tqdm

    bar = tqdm(total=total, unit="run", leave=False)

    def progress(what: str, done: int, total: int) -> None:
        bar.set_description_str(what, refresh=False)
        bar.update(done - bar.n)
        bar.refresh()
        if done == total:
            bar.close()

    return progress


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")
    print(escape_unprintable(str(path)))


def demo(arguments: argparse.Namespace) -> None:
    from ..media import images

    arguments.model = variants.DEMO
    ae = _load(arguments)
    photograph = Path(arguments.image) if arguments.image else ASSETS / "example.jpg"
    print(f"{ae.variant.name}: a small demonstration model. The published variants are sharper.")
    picture, result, _ = _roundtrip(ae, photograph, arguments.budget)
    target = Path(arguments.output)
    target.parent.mkdir(parents=True, exist_ok=True)
    images.write(target, _beside(picture[0], result[0]))
    print(f"  photograph left, reconstruction right: {escape_unprintable(str(target))}")


def _roundtrip(ae, source: Path, budget: str | None):
    """(picture, reconstruction, PSNR) of one file; prints sizes, PSNR and times."""
    from ..compare.metrics import psnr
    from ..media import images

    picture = images.read(source)
    x = images.from_host(picture)
    start = time.perf_counter()
    z = ae.encode(x, budget, _strips(source)).float().cpu()
    middle = time.perf_counter()
    result = images.to_host(ae.decode(z, tuple(x.shape[2:]), budget, _strips(source)).cpu())
    end = time.perf_counter()
    score = psnr(picture, result)
    print(escape_unprintable(str(source)))
    print(f"  picture   {x.shape[3]}x{x.shape[2]}, {_size(x.shape[2] * x.shape[3] * 3)} in 8 bits")
    print(f"  latent    {'x'.join(map(str, z.shape[1:]))}, {_size(2 * z.numel())} in 16 bits")
    print(f"  PSNR      {score:.2f} dB")
    print(f"  time      encode {middle - start:.2f} s, decode {end - middle:.2f} s ({ae.device}, {str(ae.dtype)[6:]})")
    return picture, result, score


def _strips(source: Path):
    """A progress callback that shows a bar for runs of more than a few strips."""
    from tqdm import tqdm

    bar = None

    def progress(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, unit="strip", desc=source.name, leave=False, disable=total < 40)
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return progress


def _beside(left, right):
    import torch

    gap = torch.ones(left.shape[0], 8, 3)
    return torch.cat([left, gap, right], dim=1)


def _load(arguments: argparse.Namespace):
    from ..autoencoder import DCAE

    variant = getattr(arguments, "variant", None)
    where = (arguments.device, arguments.dtype, arguments.cache_dir)
    return DCAE(arguments.model, *where, variant=variant, download=arguments.download)


def _bar_over(pairs: list[tuple[Path, Path]]):
    """The pairs, with a progress bar over several."""
    from tqdm import tqdm

    return tqdm(pairs, unit="file", disable=len(pairs) == 1)


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dcae", description="DC-AE: pictures to small latents and back.")
    parser.add_argument("--version", action="version", version=f"dcae {__version__}")
    parser.set_defaults(run=lambda arguments: parser.print_help())
    commands = parser.add_subparsers(metavar="COMMAND")

    def command(run, name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    def running(added: argparse.ArgumentParser, default: str | None, inputs: str | None) -> None:
        if inputs:
            added.add_argument("inputs", nargs="+", metavar="FILE", help=inputs)
            added.add_argument("-o", "--output", help="file, or folder for several; default: beside each input")
            added.add_argument(
                "--model",
                default=default,
                help=f"variant name, file or folder (default: {default or 'what the file says'})",
            )
            added.add_argument("--variant", help="for a file that could be `in` or `mix`: which it is")
            added.add_argument("--download", action="store_true", help="fetch the variant if it is not here")
        added.add_argument("--device", help="cuda, cpu, mps, ... (default: the accelerator, else cpu)")
        added.add_argument("--dtype", choices=DTYPE_CHOICES, default="auto")
        added.add_argument("--budget", help="memory beside the weights, such as 4GiB (default: what is free)")
        folder(added)

    def folder(added: argparse.ArgumentParser) -> None:
        added.add_argument("--cache-dir", help="where weights are kept (default: $DCAE_HOME or ~/.cache/dcae)")

    added = command(info, "info", "Say which variant a file holds, and how.")
    added.add_argument("file")
    folder(command(list_variants, "variants", "List the variants, and which are on this machine."))
    added = command(plan, "plan", "Say what memory a size needs, whole and within budgets.")
    added.add_argument("--variant", default="dc-ae-f32c32-mix-1.0", help="(default: dc-ae-f32c32-mix-1.0)")
    added.add_argument("--size", default="4096x4096", help="side or WIDTHxHEIGHT of the picture (default: 4096x4096)")
    added.add_argument("--batch", type=int, default=1)
    added.add_argument("--budget", help="one budget instead of the table's, such as 6GiB")
    added.add_argument("--dtype", choices=DTYPE_CHOICES, default="bf16")
    added = command(download, "download", "Fetch a variant's weights, checked against the hub's size and sha256.")
    added.add_argument("variant")
    added.add_argument("--revision", default="main", help="branch, tag or commit (default: main)")
    folder(added)
    added = command(convert, "convert", "Write a file in the other key layout, or another precision.")
    added.add_argument("source")
    added.add_argument("target", help="FILE.safetensors, or a folder (gets a config.json too)")
    added.add_argument("--to", choices=("diffusers", "original"), required=True, help="key layout to write")
    added.add_argument("--dtype", choices=("keep", "fp32", "bf16", "fp16"), default="keep")
    added.add_argument("--variant", help="for a file that could be `in` or `mix`: which it is")
    added = command(encode, "encode", "Pictures to latent files.")
    running(added, variants.DEMO, "pictures")
    added.add_argument("--scaled", action="store_true", help="store latents times the scaling factor")
    added.add_argument("--scaling-factor", type=float, help="another than the published one, for --scaled")
    added.add_argument("--latent-channels", type=int, help="of DC-AE 1.5: only so many of the first (default: all)")
    added.add_argument("--size-mode", choices=("pad", "crop"), default="pad", help="for sides that don't divide evenly")
    running(command(decode, "decode", "Latent files to pictures."), None, "latent files")
    added = command(roundtrip, "roundtrip", "Encode and decode pictures, and say how close they come back.")
    running(added, variants.DEMO, "pictures")
    added.add_argument("--side-by-side", action="store_true", help="write the original beside the result")
    added = command(compare, "compare", "Autoencoders side by side: scores, time and memory on your pictures.")
    added.add_argument("images", nargs="+", metavar="IMAGE", help="pictures, or folders of pictures")
    added.add_argument(
        "--models",
        nargs="+",
        metavar="MODEL",
        help="DC-AE variants, files or folders; repositories or folders of diffusers' AutoencoderKL, AutoencoderTiny, "
        "AsymmetricAutoencoderKL, ConsistencyDecoderVAE, AutoencoderDC; taesana:FOLDER (default: the DC-AEs here)",
    )
    added.add_argument("--size", help="side, or WIDTHxHEIGHT: scale to cover it, keep the centre (default: as it is)")
    added.add_argument("--repeats", type=int, default=3, help="timed runs, after one that is not (default: 3)")
    added.add_argument("--rows", type=int, default=8, help="pictures shown, of those compared (default: 8)")
    added.add_argument("--amplify", type=float, default=5, help="of the differences shown (default: 5)")
    added.add_argument("-o", "--out", dest="output", help="write the pictures side by side: FILE.png, .jpg or .webp")
    added.add_argument("--json", help="write all numbers: FILE.json")
    added.add_argument("--html", help="write a page with a slider: FILE.html, and a folder of pictures beside it")
    added.add_argument("--download", action="store_true", help="fetch models and metrics' weights that are not here")
    running(added, None, None)
    batch.add(commands, DTYPE_CHOICES)
    added = command(demo, "demo", "Round trip with the bundled model and photograph; nothing to download.")
    running(added, variants.DEMO, None)
    added.add_argument("image", nargs="?", help="another picture")
    added.add_argument("-o", "--output", default="demo-output/demo.png")
    added.set_defaults(download=False)
    return parser
