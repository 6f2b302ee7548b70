"""Make the bundled demo model from a folder of photographs.

    python tools/train_demo.py PHOTOS_FOLDER --out FILE [--steps N] [--minutes M] [--hold-out NAME ...] [--resume]

First the weights are set by linear algebra (a minute or two), then trained; all on the CPU, in under an hour. From the
first minutes on there is a usable FILE, replaced every other minute by a later one; beside it FILE.state keeps what
--resume needs. With --minutes the schedule follows the clock, so only a run bounded by --steps alone gives the same
weights each time (on the same machine).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

# Before torch is imported: its threads then sleep while they wait for each other, which on a busy machine is faster.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo_model.algebra import fit_decoder, fit_encoder, switch_off_branches
from demo_model.losses import psnr
from demo_model.photographs import Photographs, to_bytes
from demo_model.training import Trainer, flat_colours

from dcae_core.files import atomic_write
from dcae_core.model import Autoencoder
from dcae_core.variants import DEMO, VARIANTS

SEED = 20
FIT_CROPS = 384  # crops of 256 pixels for the algebra
REPORT_SECONDS = 120


def main() -> None:
    args = arguments()
    torch.manual_seed(SEED)
    photographs = Photographs(args.photos, args.hold_out)
    say(f"{len(photographs.names)} photographs, {len(photographs.held_out)} held out")

    model = Autoencoder(VARIANTS[DEMO].architecture)
    state_file = args.out.with_name(args.out.name + ".state")
    if args.resume:
        trainer = Trainer(model, photographs, [], SEED)
        trainer.load(torch.load(state_file))
    else:
        trainer = Trainer(model, photographs, initialise(model, photographs), SEED)

    mean_model = Autoencoder(VARIANTS[DEMO].architecture)

    def report(text: str, keep_state: bool = True) -> None:
        mean_model.load_state_dict(trainer.ema.values)
        say(text + "; " + quality(mean_model, photographs))
        write_weights(mean_model, photographs, args.out)
        if keep_state:
            with atomic_write(state_file) as part:
                torch.save(trainer.state(), part)

    report("resumed" if args.resume else "after the algebra")
    going_on = args.steps > 0
    while going_on:
        trainer.run_phase(args.steps, args.minutes, REPORT_SECONDS, report)
        name = trainer.phase.name
        going_on = trainer.next_phase()
        report(f"{name} finished", keep_state=going_on)
    state_file.unlink(missing_ok=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, metavar="PHOTOS_FOLDER")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the safetensors file to write")
    parser.add_argument("--steps", type=int, default=4000, help="0 stops after the algebra (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="of training at most")
    parser.add_argument("--hold-out", nargs="+", default=[], metavar="NAME", help="photographs not to train on")
    parser.add_argument("--resume", action="store_true", help="go on from FILE.state")
    return parser.parse_args()


def initialise(model: Autoencoder, photographs: Photographs) -> list[Tensor]:
    rng = np.random.default_rng(SEED)
    generator = torch.Generator().manual_seed(SEED)
    crops = flat_colours(photographs.batch(FIT_CROPS, 256, rng), rng)
    switch_off_branches(model)
    gains = fit_encoder(model.encoder, crops, generator)
    fit_decoder(model, crops, generator)
    return gains


@torch.no_grad()
def quality(model: Autoencoder, photographs: Photographs) -> str:
    """PSNR on the photographs held out, and on black, grey and white."""
    pictures = dict(photographs.held_out)
    pictures |= {name: torch.full((3, 256, 256), v) for name, v in (("black", -1.0), ("grey", 0.0), ("white", 1.0))}
    found = []
    for name, picture in pictures.items():
        made = model.decoder(model.encoder(picture[None]))[0]
        found.append(f"{name} {psnr(to_bytes(made), to_bytes(picture)):.2f}")
    return ", ".join(found) + " dB"


@torch.no_grad()
def scaling_factor(model: Autoencoder, photographs: Photographs) -> float:
    """One over the root mean square of the latents of the training photographs: of the middle of each, at two scales.

    The same crops each time, from every photograph: a random few dozen give anything from 1.2 to 1.4.
    """
    latents = [model.encoder(crop[None]).double().flatten() for crop in photographs.middles(512)]
    return torch.cat(latents).square().mean().item() ** -0.5


def write_weights(model: Autoencoder, photographs: Photographs, file: Path) -> None:
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    metadata = {"variant": DEMO, "layout": "diffusers", "scaling_factor": f"{scaling_factor(model, photographs):.4g}"}
    metadata |= {"licence": "Apache-2.0", "photographs": " ".join(photographs.names)}
    with atomic_write(file) as part:
        save_file(weights, part, metadata)


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


if __name__ == "__main__":
    main()
