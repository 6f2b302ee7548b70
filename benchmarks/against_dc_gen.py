"""Ours beside the published code of DC-AE: `python benchmarks/against_dc_gen.py CHECKOUT ... [--names NAME ...]`.

CHECKOUT is a clone of https://github.com/dc-ai-projects/DC-Gen (1.0 to 1.5) or of
https://github.com/mit-han-lab/efficientvit (1.0), whose models are run as they are: `pip install omegaconf triton timm
torchvision segment-anything` for them. Their norm is a Triton kernel, run by Triton's interpreter where there is no GPU
(efficientvit's makes a buffer on "cuda" by that name: there it is made on the CPU). First, for every name in their
registries: ours finds the network out from the names and shapes of their tensors, and the name from their config.json.
Then the first name of each network, with random weights at full width and random pictures, in fp32, for 1.5 with each
number of channels: encode, decode: |ours - theirs| / |theirs|; strips: ours in the smallest strips there are, against
theirs. The whole takes the better part of an hour on two cores, nearly all of it Triton's interpreter.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.streaming import machine, picture, smallest
from dcae_core import DCAE, Variant
from dcae_core.engine.execute import run_plan
from dcae_core.weights import recognise

UNUSED = ("onnx", "onnxsim", "ipdb")  # imported by their training code; stood in for where absent
ZOOS = {"dc_gen": "dc_gen.aecore.models.dc_ae", "efficientvit": "efficientvit.models.efficientvit.dc_ae"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkouts", type=Path, nargs="+", metavar="CHECKOUT")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="some of theirs (default: all)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="also write what is printed to this file")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when DC-Gen imports Triton
    for name in UNUSED:
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = mock.MagicMock(__spec__=importlib.machinery.ModuleSpec(name, None))
    lines, worst, seen = [], 0.0, set()

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    say(f"# {machine(arguments.device)}, float32")
    say(f"{'name':26} {'picture':>9} channels    encode    decode  strips: encode    decode")
    for checkout in arguments.checkouts:
        sys.path.insert(0, str(checkout.resolve()))
        package = next(package for package in ZOOS if (checkout / package).is_dir())
        zoo = importlib.import_module(f"{package}.ae_model_zoo")
        if arguments.device == "cpu" and (norm := sys.modules.get(f"{package}.models.nn.triton_rms_norm")):
            empty = {"empty": lambda *shape, device, **options: torch.empty(*shape, **options)}
            norm.torch = types.SimpleNamespace(**{**vars(torch), **empty})
        known = {name: recognised(name, zoo, package) for name in zoo.REGISTERED_DCAE_MODEL}
        say(f"# {package} {commit(checkout)}: {len(known)} names, each found out with its network")
        for name in arguments.names or known:
            if known[name].architecture in seen:
                continue
            seen.add(known[name].architecture)
            for size, channels, errors in case(known[name], zoo, package, arguments.device):
                worst = max(worst, *errors)
                numbers = "".join(f"{error:18.1e}" if i == 2 else f"{error:10.1e}" for i, error in enumerate(errors))
                say(f"{name:26} {size[1]:>4}x{size[0]:<4} {channels:>8}{numbers}")
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


def published(name: str, zoo, package: str) -> torch.nn.Module:
    """Their model of that name, with torch's random weights."""
    config = zoo.create_dc_ae_model_cfg(name)
    config.pretrained_path = None  # some name a file of their authors
    return importlib.import_module(ZOOS[package]).DCAE(config)


def recognised(name: str, zoo, package: str) -> Variant:
    """What ours takes their tensors for, whose config.json has the name."""
    with torch.device("meta"):
        shapes = {key: tuple(tensor.shape) for key, tensor in published(name, zoo, package).state_dict().items()}
    found = recognise.candidates(shapes, name)
    variant = found.choose(hints=recognise.hints({"model_name": name}, {}, Path("model.safetensors")))
    assert (variant.name, found.layout) == (name, "original"), variant
    return variant


@torch.no_grad()
def case(variant: Variant, zoo, package: str, device: str):
    """((height, width), channels, errors) of one variant."""
    torch.manual_seed(0)
    theirs = published(variant.name, zoo, package).eval().to(device)
    for key, tensor in theirs.state_dict().items():
        if tensor.ndim == 1:  # norms and biases away from their defaults, where mistakes would not show
            tensor.uniform_(0.75, 1.25).sub_(1.0 if key.endswith(("bias", "mean")) else 0.0)
    ours = DCAE.from_state_dict(theirs.state_dict(), variant, device=device, dtype="fp32")
    fewer = list(variant.adaptive)
    side = max(64, ours.spatial_ratio)
    for size, some in (((side, side), fewer), ((side, 2 * side), fewer[2:3])):
        x = picture(*size, device).contiguous()  # efficientvit's norm writes as if all were
        # A list makes theirs give one latent for each number: the network before them runs once.
        fewer_too = {"latent_channels": [*some, ours.latent_channels]} if variant.adaptive else {}
        latents = theirs.encode(x, **fewer_too) if fewer_too else [theirs.encode(x)]
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
