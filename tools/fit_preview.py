"""Fit a variant's latent preview to photographs, and put it into dcae_core/assets/previews.json.

    python tools/fit_preview.py MODEL PHOTO_OR_FOLDER... [--hold-out NAME ...] [--variant V] [--download]
    python tools/fit_preview.py dc-ae-f32c32-sana-1.1 photos/ --hold-out one two three --download

MODEL is what DCAE takes: a variant's name, a file or a folder. The map is one for each latent space: that of sana-1.1
is also that of sana-1.0 and of the lite variant. A photograph is made smaller until its longer side is 32 latent
pixels. Thirty photographs of all kinds are plenty: a map has 3 (c + 1) numbers.

Printed, and kept in the table, is the PSNR between the previews and the photographs made f times smaller: a mean over
those it was fitted to, one over those held out, and of these what a single colour gives (the mean colour of each).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Collection
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch import Tensor
from torch.nn import functional as F

from dcae_core import DCAE, DCAEError, images, preview
from dcae_core.compare.metrics import psnr
from dcae_core.files import atomic_write
from dcae_core.media.preview import RIDGE, TABLE, Pair, Preview

SIDE = 32  # latent pixels along a photograph's longer side, at most
SUFFIXES = ".jpg", ".jpeg", ".png", ".webp"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO_OR_FOLDER")
    parser.add_argument("--hold-out", nargs="+", default=[], metavar="NAME", help="photographs to judge it by")
    parser.add_argument("--variant", help="for a file that could be `in` or `mix`: which it is")
    parser.add_argument("--download", action="store_true", help="fetch the variant if it is not here")
    parser.add_argument("--device", help="default: the accelerator, else the CPU")
    parser.add_argument("--table", type=Path, default=TABLE, metavar="FILE", help="default: that of the package")
    args = parser.parse_args()
    paths = [f for path in args.photos for f in (sorted(path.iterdir()) if path.is_dir() else [path])]
    paths = [f for f in paths if f.suffix.lower() in SUFFIXES or f in args.photos]
    fitted_to, held_out = ([f for f in paths if (f.stem in args.hold_out) == out] for out in (False, True))
    if unknown := set(args.hold_out) - {f.stem for f in held_out}:
        sys.exit(f"--hold-out: there is no photograph called {', '.join(sorted(unknown))}.")
    if not fitted_to:
        sys.exit(f"There are no photographs to fit to in {', '.join(map(str, args.photos))} ({', '.join(SUFFIXES)}).")
    try:
        ae = DCAE(args.model, args.device, variant=args.variant, download=args.download)
        pairs, others = ([pair(ae, path) for path in some] for some in (fitted_to, held_out))
        fitted = preview.fit(pairs)
        table = {"factors": fitted.factors.double().round(decimals=5), "bias": fitted.bias.double().round(decimals=5)}
        fitted = Preview(**{name: numbers.float() for name, numbers in table.items()})
        entry = {"variant": ae.variant.name, "fitted_to": [f.stem for f in fitted_to]}
        entry |= {"latent_pixels": sum(z[0, 0].numel() for z, _ in pairs), "ridge": RIDGE}
        entry["psnr"] = likeness([(fitted(z), colours) for z, colours in pairs])
        if others:
            entry |= {"held_out": [f.stem for f in held_out]}
            entry["psnr_held_out"] = likeness([(fitted(z), colours) for z, colours in others])
            one_colour = [(colours.mean((2, 3), True).expand_as(colours), colours) for _, colours in others]
            entry["psnr_held_out_of_one_colour"] = likeness(one_colour)
        for name in [name for name in entry if name.startswith("psnr")]:
            print(f"{name}: {entry[name]:.2f} dB")
        record(args.table, ae.variant.latent_space, entry | {name: x.tolist() for name, x in table.items()})
        print(f"{args.table}: {ae.variant.latent_space}")
    except DCAEError as error:
        sys.exit(str(error))


def pair(ae: DCAE, path: Path) -> Pair:
    x = images.from_host(images.read(path))
    scale = SIDE * ae.spatial_ratio / max(x.shape[2:])
    if scale < 1:
        size = [max(ae.spatial_ratio, round(side * scale)) for side in x.shape[2:]]
        x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(-1, 1)
    return preview.pair(ae.variant, ae.encode, x)


def likeness(pictures: Collection[tuple[Tensor, Tensor]]) -> float:
    """Return the mean PSNR in dB of pairs of pictures."""
    return round(mean(psnr(*(images.to_host(x)[0] for x in two)) for two in pictures), 2)


def record(path: Path, key: str, entry: dict) -> None:
    """Put an entry into the table, replacing an earlier one. The file is replaced atomically."""
    table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    text = json.dumps(dict(sorted((table | {key: entry}).items())), indent=1)
    # A row of factors, a bias or a list of names in one line.
    text = re.sub(r"\[([^\[\]]*)\]", lambda match: "[" + re.sub(r"\s*\n\s*", " ", match[1]).strip() + "]", text)
    with atomic_write(path) as part:
        Path(part).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
