"""Ours beside the published code of DC-AE 1.5: `python benchmarks/against_dc_gen.py CHECKOUT [--variants NAME ...]`.

CHECKOUT is a clone of https://github.com/dc-ai-projects/DC-Gen, whose models are run as they are: `pip install
omegaconf triton` for them. Their norm is a Triton kernel, run by Triton's interpreter where there is no GPU.
Random weights at full width, random pictures, fp32. Ours loads DC-Gen's state dict, so names and shapes are held to it
too, and the variant is found out from them. For each number of latent channels, a picture and its latent:
encode, decode: |ours - theirs| / |theirs|; strips: ours in the smallest strips there are, against theirs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.streaming import machine, picture, smallest
from dcae_core import DCAE, VARIANTS
from dcae_core.engine.execute import run_plan

ADAPTIVE = [name for name, variant in VARIANTS.items() if variant.adaptive]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--variants", nargs="+", choices=ADAPTIVE, default=ADAPTIVE, metavar="NAME")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="also write what is printed to this file")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when DC-Gen imports Triton
    sys.path.insert(0, str(arguments.checkout.resolve()))
    lines, worst = [], 0.0

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    say(f"# DC-Gen {commit(arguments.checkout)}; {machine(arguments.device)}, float32")
    say(f"{'variant':20} {'picture':>9} channels    encode    decode  strips: encode    decode")
    for name in arguments.variants:
        for size, channels, errors in case(name, arguments.device):
            worst = max(worst, *errors)
            numbers = "".join(f"{error:18.1e}" if i == 2 else f"{error:10.1e}" for i, error in enumerate(errors))
            say(f"{name:20} {size[1]:>4}x{size[0]:<4} {channels:>8}{numbers}")
    say(f"largest: {worst:.1e}")
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")
    if worst > 1e-5:
        sys.exit("more than 1e-5")


def commit(checkout: Path) -> str:
    """What was checked out, if git tells."""
    asked = ["git", "-C", str(checkout), "rev-parse", "--short=10", "HEAD"]
    done = subprocess.run(asked, capture_output=True, text=True)
    return done.stdout.strip() or "of an unknown commit"


@torch.no_grad()
def case(name: str, device: str):
    """((height, width), channels, errors) of one variant."""
    from dc_gen.ae_model_zoo import create_dc_ae_model_cfg
    from dc_gen.aecore.models.dc_ae import DCAE as Published

    torch.manual_seed(0)
    theirs = Published(create_dc_ae_model_cfg(name)).eval().to(device)
    for key, tensor in theirs.state_dict().items():
        if tensor.ndim == 1:  # norms and biases away from their defaults, where mistakes would not show
            tensor.uniform_(0.75, 1.25).sub_(1.0 if key.endswith(("bias", "mean")) else 0.0)
    ours = DCAE.from_state_dict(theirs.state_dict(), device=device, dtype="fp32")
    assert (ours.variant.name, ours.layout) == (name, "original")
    fewer = list(ours.variant.adaptive)
    for size, some in (((64, 64), fewer), ((64, 128), fewer[2:3])):
        x = picture(*size, device)
        # A list makes theirs give one latent for each number: the network before them runs once.
        latents = theirs.encode(x, latent_channels=[*some, ours.latent_channels])
        for z in latents:
            y, channels = theirs.decode(z), z.shape[1]
            whole = ours.encode(x, latent_channels=channels), ours.decode(z)
            strips = stripped(ours, "encode", x, channels), stripped(ours, "decode", z, channels)
            yield size, channels, [apart(a, b) for a, b in zip((*whole, *strips), (z, y, z, y), strict=True)]


def stripped(ae: DCAE, direction: str, given: torch.Tensor, channels: int) -> torch.Tensor:
    scale = 1 if direction == "encode" else ae.spatial_ratio
    height, width = (side * scale for side in given.shape[2:])
    made = smallest(ae.variant, direction, height, width, ae.dtype, channels)
    return run_plan(ae.model.encoder if direction == "encode" else ae.model.decoder, made, given)


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).norm() / theirs.norm()).item()


if __name__ == "__main__":
    main()
