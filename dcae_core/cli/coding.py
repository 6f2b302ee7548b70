"""Commands that run a model on files: `dcae encode`, `decode`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import variants
from ..errors import DCAEError, ImageError, LatentError, OptionError, counted, escape_unprintable
from ..untrusted import picture_endings
from ..variants import DEMO
from .arguments import Command, add_inputs, check_outputs, each_file, load, output_paths
from .pictures import add_bits, add_pictures, durations, read_frames, stack_alpha, strip_bar, write_pictures

__all__ = ["add"]

LATENTS = (".safetensors", ".latent")


def add(command: Command) -> None:
    """Add the commands. command(run, name, help): makes the parser of one."""
    parser = command(encode, "encode", "Pictures to latent files.")
    add_inputs(parser, DEMO, "pictures")
    add_pictures(parser)
    parser.add_argument("--scaled", action="store_true", help="store latents times the scaling factor")
    parser.add_argument("--scaling-factor", type=float, help="another than the published one, for --scaled")
    parser.add_argument("--latent-channels", type=int, help="of DC-AE 1.5: only so many of the first (default: all)")
    parser.add_argument(
        "--size-mode", choices=("pad", "crop"), default="pad", help="for sides that don't divide evenly"
    )
    parser = command(decode, "decode", "Latent files to pictures.")
    add_inputs(parser, "what the file says", "latent files")
    add_bits(parser)


def encode(arguments: argparse.Namespace) -> None:
    if arguments.scaling_factor is not None and not arguments.scaled:
        raise OptionError("--scaling-factor is for scaled latents: add --scaled, or leave it out.")
    pairs = output_paths(arguments, ".safetensors", picture_endings())
    if wrong := [target for _, target in pairs if target.suffix not in LATENTS]:
        raise OptionError(f"Latents are written to .safetensors files, or into a folder, not to {wrong[0]}.")
    check_outputs([], [str(target) for _, target in pairs])
    if not pairs:
        return
    import torch

    from ..media import images, latents
    from ..media.sizes import Fit

    ae = load(arguments)
    factor = ae.variant.factor(arguments.scaling_factor) if arguments.scaled else None

    def encode_one(source: Path, target: Path) -> None:
        parts: list[torch.Tensor] = []
        alphas: list[torch.Tensor | None] = []
        milliseconds: list[int | None] = []
        size = (0, 0)
        for frame in read_frames(source, arguments):
            x = images.from_host(frame.pixels)
            fit = Fit(x.shape[2], x.shape[3], ae.spatial_ratio, arguments.size_mode)
            size = fit.true
            channels, progress = arguments.latent_channels, strip_bar(arguments, source)
            z = ae.encode(images.fit(x, fit), arguments.budget, progress, latent_channels=channels)
            parts.append(z.float().cpu())
            alphas.append(frame.alpha if frame.alpha is None else frame.alpha[:, fit.rows, fit.columns])
            milliseconds.append(frame.milliseconds)
        z = torch.cat(parts)
        latents.write(
            target,
            z,
            ae.variant,
            size,
            scaled=arguments.scaled,
            scaling_factor=factor,
            alpha=stack_alpha(alphas, size),
            milliseconds=durations(milliseconds),
        )
        several = f", {counted(len(z), 'picture')}" if len(z) > 1 else ""
        print(f"{escape_unprintable(str(target))} ({size[1]}x{size[0]} -> {list(z.shape[1:])}{several})")

    each_file(arguments, pairs, encode_one)


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
            decoded = ae.decode(file.raw, file.size, arguments.budget, strip_bar(arguments, source))
        except (LatentError, NonFiniteError, ImageError) as error:  # name the file
            raise LatentError(f"{source}: {error}") from error
        write_pictures(arguments, target, images.to_host(decoded), file.alpha, file.milliseconds)

    each_file(arguments, pairs, decode_one)
