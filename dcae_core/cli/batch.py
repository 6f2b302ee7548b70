"""`dcae batch encode` and `dcae batch decode`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Protocol

from ..errors import counted
from ..variants import DEMO
from .arguments import add_network, add_run, parse_colour, parse_size, read_config

__all__ = ["add"]


class Commands(Protocol):
    """argparse's, whose class has no public name."""

    def add_parser(self, name: str, *, help: str, description: str) -> argparse.ArgumentParser: ...


def add(commands: Commands) -> None:
    """Add the commands to argparse's `commands`."""
    text = "Whole data sets: pictures to latents and back, resumable, on one machine or a Ray cluster."
    batch = commands.add_parser("batch", help=text, description=text)
    kinds = batch.add_subparsers(required=True, metavar="COMMAND")

    def running(parser: argparse.ArgumentParser, default: str | None) -> None:
        what = f"variant name, file or folder (default: {default or 'what the latents say'})"
        parser.add_argument("--model", default=default, help=what)
        parser.add_argument("--batch", type=int, default=8, help="pictures at once (default: 8)")
        add_run(parser)

    text = "Pictures of a folder, a glob, Parquet files or WebDataset tars to latents. Run it again to go on."
    parser = kinds.add_parser("encode", help=text, description=text)
    parser.add_argument("source", help="folder, glob or file; a path, or an address such as s3://bucket/folder")
    parser.add_argument("dest", help="folder for the latents; a path or an address")
    running(parser, DEMO)
    add_network(parser)
    parser.add_argument("--format", default="parquet", choices=("parquet", "webdataset", "safetensors"))
    text = "crop: --size, the centre is kept; bucket: about as many pixels, in the picture's shape; pad: as it is, "
    text += "its edges repeated to whole latent pixels (default: crop)"
    parser.add_argument("--fit", default="crop", choices=("crop", "bucket", "pad"), help=text)
    parser.add_argument("--size", default="512", help="side or WIDTHxHEIGHT, for crop and bucket (default: 512)")
    parser.add_argument("--store", default="bf16", choices=("bf16", "fp16"), help="of the latents (default: bf16)")
    parser.add_argument("--scaled", action="store_true", help="store latents times the scaling factor")
    parser.add_argument("--scaling-factor", type=float, help="another than the published one, for --scaled")
    parser.add_argument("--latent-channels", type=int, help="of DC-AE 1.5: only so many of the first (default: all)")
    text = "colour behind what is transparent, such as black or '#808080' (default: white)"
    parser.add_argument("--matte", type=parse_colour, default="white", metavar="COLOUR", help=text)
    parser.add_argument(
        "--keep", action="store_true", help="keep captions, classes and all else that comes with pictures"
    )
    parser.add_argument("--flip", action="store_true", help="store the mirrored picture's latents too")
    parser.add_argument("--part-size", type=int, default=512, help="picture files in a part (default: 512)")
    parser.add_argument("--max-pixels", type=int, default=1 << 28, help="larger pictures are skipped")
    parser.add_argument("--engine", default="local", choices=("local", "ray"))
    parser.add_argument(
        "--workers", type=int, default=0, help="local: processes that decode (default: as many as cores)"
    )
    parser.add_argument("--actors", type=int, default=1, help="ray: how many hold the model (default: 1)")
    parser.add_argument("--gpus", type=float, default=0, help="ray: GPUs that each of them takes (default: 0)")
    parser.add_argument("--metrics", help="append a JSON line for each part to this file")
    parser.set_defaults(run=encode)

    text = "Latents that `dcae batch encode` wrote to picture files. Run it again to go on."
    parser = kinds.add_parser("decode", help=text, description=text)
    parser.add_argument("source", help="a destination of `dcae batch encode`")
    parser.add_argument("dest", help="folder for the pictures")
    running(parser, None)
    parser.add_argument("--format", default="png", choices=("png", "jpg", "webp"))
    parser.add_argument("--keep", action="store_true", help="what was kept with the latents too, as files beside")
    parser.set_defaults(run=decode)


def encode(arguments: argparse.Namespace) -> None:
    from ..batch import run
    from ..batch.encode import Options

    options = Options(
        source=arguments.source,
        destination=arguments.dest,
        model=arguments.model,
        variant=arguments.variant,
        config=read_config(arguments),
        fit=arguments.fit,
        size=parse_size(arguments.size),
        kind=arguments.format,
        store=arguments.store,
        scaled=arguments.scaled,
        scaling_factor=arguments.scaling_factor,
        latent_channels=arguments.latent_channels,
        flip=arguments.flip,
        matte=arguments.matte,
        keep=arguments.keep,
        batch=arguments.batch,
        part_size=arguments.part_size,
        most_pixels=arguments.max_pixels,
        device=arguments.device,
        dtype=arguments.dtype,
        budget=arguments.budget,
        cache_dir=arguments.cache_dir,
    )
    engine = (arguments.engine, arguments.workers, arguments.actors, arguments.gpus)
    outcome = run.encode(options, *engine, metrics=arguments.metrics, progress=_bar())
    print(run.describe(outcome))


def _bar() -> Callable[[int, int | None, int], None]:
    """Return a progress callback that shows a bar with rate and time left, without what was done before."""
    from tqdm import tqdm

    bar = None

    def progress(done: int, total: int | None, skipped: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, initial=done, unit="image", disable=None, miniters=1)  # None: only on a terminal
        if skipped:
            bar.set_postfix({"skipped": skipped}, refresh=False)
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return progress


def decode(arguments: argparse.Namespace) -> None:
    from ..batch.decode import DecodeOptions
    from ..batch.decode import decode as work

    options = DecodeOptions(
        source=arguments.source,
        destination=arguments.dest,
        model=arguments.model,
        ending=arguments.format,
        keep=arguments.keep,
        batch=arguments.batch,
        device=arguments.device,
        dtype=arguments.dtype,
        budget=arguments.budget,
        cache_dir=arguments.cache_dir,
    )
    summary = work(options, _bar())
    if not summary.images:
        print(f"0 pictures: all that is in {arguments.source} is in {arguments.dest}.")
        return
    print(f"{counted(summary.images, 'picture')}, {summary.pixels / 1e6:.1f} megapixels")
