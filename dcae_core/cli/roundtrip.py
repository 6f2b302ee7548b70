"""`dcae roundtrip` and `dcae demo`: there and back, and how close that comes."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import escape_unprintable
from ..files import ASSETS
from ..untrusted import picture_endings
from ..variants import DEMO
from .arguments import Command, add_inputs, check_outputs, each_file, format_size, load, output_paths
from .pictures import add_bits, add_pictures, read_frames, stack_alpha, strip_bar, write_pictures

if TYPE_CHECKING:
    from torch import Tensor

    from ..autoencoder import DCAE
    from ..media.images import Frame

__all__ = ["add", "add_demo"]

_runs = itertools.count()


def add(command: Command) -> None:
    """Add `dcae roundtrip`. command(run, name, help): makes its parser."""
    parser = command(roundtrip, "roundtrip", "Encode and decode pictures, and say how close they come back.")
    add_inputs(parser, DEMO, "pictures")
    add_pictures(parser)
    add_bits(parser)
    parser.add_argument("--side-by-side", action="store_true", help="write the original beside the result")
    parser.add_argument("--json", action="store_true", help="print what was measured as JSON, a line for each file")


def add_demo(command: Command) -> None:
    """Add `dcae demo`, the last in the list of commands."""
    parser = command(demo, "demo", "Round trip with the bundled model and photograph; nothing to download.")
    add_inputs(parser, DEMO, None)
    parser.add_argument("image", nargs="?", help="another picture")
    parser.add_argument("-o", "--output", default="demo-output/demo.png")
    parser.set_defaults(download=False, model=DEMO)


def roundtrip(arguments: argparse.Namespace) -> None:
    pairs = output_paths(arguments, "-dcae.png", picture_endings())
    check_outputs([str(target) for _, target in pairs], [])
    if not pairs:
        return
    ae = load(arguments)

    def roundtrip_one(source: Path, target: Path) -> None:
        frames, results, measured = _roundtrip(ae, source, arguments)
        if not arguments.json:
            print(escape_unprintable(str(source)))
            _print(measured)
        height, width = frames[0].pixels.shape[1:3]
        alpha = stack_alpha([frame.alpha for frame in frames], (height, width))
        if arguments.side_by_side:
            results, alpha = _side_by_side([frame.pixels for frame in frames], results), None
        with contextlib.redirect_stdout(None) if arguments.json else contextlib.nullcontext():
            written = write_pictures(arguments, target, results, alpha, [frame.milliseconds for frame in frames])
        if arguments.json:
            print(json.dumps({"file": str(source), "outputs": list(map(str, written)), **measured}))

    each_file(arguments, pairs, roundtrip_one)


def demo(arguments: argparse.Namespace) -> None:
    from ..media import images

    ae = load(arguments)
    photograph = Path(arguments.image) if arguments.image else ASSETS / "example.jpg"
    print(f"{ae.variant.name}: a small demonstration model. The published variants are sharper.")
    arguments.matte, arguments.keep_alpha, arguments.frames = None, False, False
    frames, results, measured = _roundtrip(ae, photograph, arguments)
    print(escape_unprintable(str(photograph)))
    _print(measured)
    target = Path(arguments.output)
    target.parent.mkdir(parents=True, exist_ok=True)
    images.write(target, _side_by_side([frames[0].pixels], results)[0])
    print(f"  photograph left, reconstruction right: {escape_unprintable(str(target))}")


def _roundtrip(ae: DCAE, source: Path, arguments: argparse.Namespace) -> tuple[list[Frame], Tensor, dict[str, Any]]:
    """Return the pictures of a file, [B, H, W, 3] of what became of them, and what was measured: scores are means over
    the pictures, times of all together."""
    import torch

    from ..compare.metrics import Scores, scores
    from ..media import images

    frames = list(read_frames(source, arguments))
    height, width = frames[0].pixels.shape[1:3]
    results: list[Tensor] = []
    scored: list[Scores] = []
    latent: list[int] = []
    encoding, decoding = 0.0, 0.0
    for frame in frames:
        x = images.from_host(frame.pixels)
        start = time.perf_counter()
        z = ae.encode(x, arguments.budget, strip_bar(arguments, source)).float().cpu()
        middle = time.perf_counter()
        decoded = ae.decode(z, (height, width), arguments.budget, strip_bar(arguments, source))
        results.append(images.to_host(decoded.cpu()))
        latent = list(z.shape[1:])
        encoding, decoding = encoding + middle - start, decoding + time.perf_counter() - middle
        scored.append(scores(frame.pixels[0], results[-1][0]))
    ssim = [one.ssim for one in scored if one.ssim is not None]
    psnr = sum(one.psnr for one in scored) / len(scored)
    measured = {
        "model": ae.name,
        "width": width,
        "height": height,
        "pictures": len(frames),
        "latent": latent,
        "psnr": psnr if math.isfinite(psnr) else None,  # JSON has no infinity
        "ssim": sum(ssim) / len(ssim) if ssim else None,
        "encode_seconds": round(encoding, 4),
        "decode_seconds": round(decoding, 4),
        "first_run": next(_runs) == 0,
        "device": str(ae.device),
        "dtype": str(ae.dtype)[6:],
    }
    return frames, torch.cat(results), measured


def _print(measured: Mapping[str, Any]) -> None:
    width, height, latent, count = (measured[name] for name in ("width", "height", "latent", "pictures"))
    several = f", {count} of them" if count > 1 else ""
    psnr, ssim = measured["psnr"], measured["ssim"]
    first = ", a first run: later ones take less" if measured["first_run"] else ""
    print(f"  picture   {width}x{height}{several}, {format_size(count * width * height * 3)} in 8 bits")
    print(f"  latent    {'x'.join(map(str, latent))}, {format_size(2 * count * math.prod(latent))} in 16 bits")
    print(f"  PSNR      {'equal' if psnr is None else f'{psnr:.2f} dB'}")
    print(f"  SSIM      {'too small for it' if ssim is None else f'{ssim:.4f}'}")
    print(
        f"  time      encode {measured['encode_seconds']:.2f} s, decode {measured['decode_seconds']:.2f} s "
        f"({measured['device']}, {measured['dtype']}{first})"
    )


def _side_by_side(left: Sequence[Tensor], right: Tensor) -> Tensor:
    """[B, H, W, 3] of pictures [1, H, W, 3] and, beside each, what became of it."""
    import torch

    return torch.cat([torch.cat(list(left)), torch.ones(*right.shape[:2], 8, 3), right], dim=2)
