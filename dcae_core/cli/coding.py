"""Commands that run a model on files: `dcae encode`, `decode`, `roundtrip`, `demo`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from .. import variants
from ..errors import DCAEError, ImageError, LatentError, OptionError, escape_unprintable
from ..files import ASSETS
from ..untrusted import picture_endings
from ..variants import DEMO
from .arguments import add_inputs, check_outputs, each_file, format_size, load, output_paths

__all__ = ["add", "add_demo"]

LATENTS = (".safetensors", ".latent")


def add(command) -> None:
    """Add the commands. command(run, name, help): makes the parser of one."""
    parser = command(encode, "encode", "Pictures to latent files.")
    add_inputs(parser, DEMO, "pictures")
    parser.add_argument("--scaled", action="store_true", help="store latents times the scaling factor")
    parser.add_argument("--scaling-factor", type=float, help="another than the published one, for --scaled")
    parser.add_argument("--latent-channels", type=int, help="of DC-AE 1.5: only so many of the first (default: all)")
    parser.add_argument(
        "--size-mode", choices=("pad", "crop"), default="pad", help="for sides that don't divide evenly"
    )
    add_inputs(command(decode, "decode", "Latent files to pictures."), None, "latent files")
    parser = command(roundtrip, "roundtrip", "Encode and decode pictures, and say how close they come back.")
    add_inputs(parser, DEMO, "pictures")
    parser.add_argument("--side-by-side", action="store_true", help="write the original beside the result")


def add_demo(command) -> None:
    """Add `dcae demo`, the last in the list of commands."""
    parser = command(demo, "demo", "Round trip with the bundled model and photograph; nothing to download.")
    add_inputs(parser, DEMO, None)
    parser.add_argument("image", nargs="?", help="another picture")
    parser.add_argument("-o", "--output", default="demo-output/demo.png")
    parser.set_defaults(download=False)


def encode(arguments: argparse.Namespace) -> None:
    if arguments.scaling_factor is not None and not arguments.scaled:
        raise OptionError("--scaling-factor is for scaled latents: add --scaled, or leave it out.")
    pairs = output_paths(arguments, ".safetensors", picture_endings())
    if wrong := [target for _, target in pairs if target.suffix not in LATENTS]:
        raise OptionError(f"Latents are written to .safetensors files, or into a folder, not to {wrong[0]}.")
    check_outputs([], [str(target) for _, target in pairs])
    from ..media import images, latents
    from ..media.sizes import Fit

    ae = load(arguments)
    factor = ae.variant.factor(arguments.scaling_factor) if arguments.scaled else None

    def encode_one(source: Path, target: Path) -> None:
        x = images.from_host(images.read(source))
        fit = Fit(*x.shape[2:], ae.spatial_ratio, arguments.size_mode)
        channels = arguments.latent_channels
        z = ae.encode(images.fit(x, fit), arguments.budget, _strip_bar(source), latent_channels=channels)
        latents.write(target, z.float(), ae.variant, fit.true, scaled=arguments.scaled, scaling_factor=factor)
        print(f"{escape_unprintable(str(target))} ({fit.true[1]}x{fit.true[0]} -> {list(z.shape[1:])})")

    each_file(pairs, encode_one)


def decode(arguments: argparse.Namespace) -> None:
    from ..media import images, latents
    from ..media.nonfinite import NonFiniteError

    ae, pairs = None, output_paths(arguments, "-dcae.png", LATENTS)
    check_outputs([str(target) for _, target in pairs], [])

    def decode_one(source: Path, target: Path) -> None:
        nonlocal ae
        file = latents.read(source)
        if ae is None:
            if not arguments.model and file.variant is None:
                made = "does not say which DC-AE it was made with"
                if file.name:
                    made = f"was made with {file.name}, which is not published"
                raise DCAEError(f"{source} {made}: say where it is with --model.")
            arguments.model = arguments.model or file.name
            ae = load(arguments)
        if file.name is not None and variants.latent_space(file.name) != ae.variant.latent_space:
            raise LatentError(
                f"{source} was made with {file.name}, but {ae.name} is loaded and does not read its latents: use "
                f"--model {file.name}."
            )
        try:
            decoded = ae.decode(file.raw, file.size, arguments.budget, _strip_bar(source))
        except (LatentError, NonFiniteError, ImageError) as error:  # name the file
            raise LatentError(f"{source}: {error}") from error
        pictures = images.to_host(decoded)
        for i, picture in enumerate(pictures, start=1):
            path = target if len(pictures) == 1 else target.with_stem(f"{target.stem}-{i}")
            images.write(path, picture)
            print(f"{escape_unprintable(str(path))} ({picture.shape[1]}x{picture.shape[0]})")

    each_file(pairs, decode_one)


def roundtrip(arguments: argparse.Namespace) -> None:
    from ..media import images

    pairs = output_paths(arguments, "-dcae.png", picture_endings())
    check_outputs([str(target) for _, target in pairs], [])
    ae = load(arguments)

    def roundtrip_one(source: Path, target: Path) -> None:
        picture, result = _roundtrip(ae, source, arguments.budget)
        images.write(target, _side_by_side(picture[0], result[0]) if arguments.side_by_side else result[0])
        print(f"  {escape_unprintable(str(target))}")

    each_file(pairs, roundtrip_one)


def demo(arguments: argparse.Namespace) -> None:
    from ..media import images

    arguments.model = DEMO
    ae = load(arguments)
    photograph = Path(arguments.image) if arguments.image else ASSETS / "example.jpg"
    print(f"{ae.variant.name}: a small demonstration model. The published variants are sharper.")
    picture, result = _roundtrip(ae, photograph, arguments.budget)
    target = Path(arguments.output)
    target.parent.mkdir(parents=True, exist_ok=True)
    images.write(target, _side_by_side(picture[0], result[0]))
    print(f"  photograph left, reconstruction right: {escape_unprintable(str(target))}")


def _roundtrip(ae, source: Path, budget: str | None):
    """Return (picture, reconstruction) of one file; print sizes, PSNR and times."""
    from ..compare.metrics import psnr
    from ..media import images

    picture = images.read(source)
    x = images.from_host(picture)
    start = time.perf_counter()
    z = ae.encode(x, budget, _strip_bar(source)).float().cpu()
    middle = time.perf_counter()
    result = images.to_host(ae.decode(z, tuple(x.shape[2:]), budget, _strip_bar(source)).cpu())
    end = time.perf_counter()
    score = psnr(picture, result)
    print(escape_unprintable(str(source)))
    print(f"  picture   {x.shape[3]}x{x.shape[2]}, {format_size(x.shape[2] * x.shape[3] * 3)} in 8 bits")
    print(f"  latent    {'x'.join(map(str, z.shape[1:]))}, {format_size(2 * z.numel())} in 16 bits")
    print(f"  PSNR      {score:.2f} dB")
    print(f"  time      encode {middle - start:.2f} s, decode {end - middle:.2f} s ({ae.device}, {str(ae.dtype)[6:]})")
    return picture, result


def _strip_bar(source: Path) -> Callable[[int, int], None]:
    """Return a progress callback that shows a bar for runs of more than a few strips."""
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


def _side_by_side(left, right):
    import torch

    gap = torch.ones(left.shape[0], 8, 3)
    return torch.cat([left, gap, right], dim=1)
