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
from collections.abc import Mapping
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
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
DIGITS = 5


def main() -> None:
    args = arguments()
    try:
        ae = DCAE(args.model, args.device, args.dtype, variant=args.variant, download=args.download)
        kept, held_out = (
            {path.stem: pair(ae, path) for path in paths} for paths in photographs(args.photos, args.hold_out)
        )
        linear_map = preview.fit([*kept.values()], args.ridge)
        table = {name: values(getattr(linear_map, name)) for name in ("factors", "bias")}
        linear_map = Preview(*(linear_map.bias.new_tensor(x) for x in table.values()))  # as rounded
        count = sum(z[0, 0].numel() for z, _ in kept.values())
        entry = {"variant": ae.variant.name, "fitted_to": [*kept], "latent_pixels": count, "ridge": args.ridge}
        entry["psnr"] = score(f"{ae.variant.name}, {count} latent pixels", kept, linear_map)[0]
        if held_out:
            entry["held_out"] = [*held_out]
            scores = score("held out", held_out, linear_map)
            entry["psnr_held_out"], entry["psnr_held_out_of_one_colour"] = scores
        entry |= table
        record(args.table, ae.variant.latent_space, entry)
        print(f"{args.table}: {ae.variant.latent_space}")
    except DCAEError as error:
        sys.exit(str(error))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO_OR_FOLDER")
    parser.add_argument("--hold-out", nargs="+", default=[], metavar="NAME", help="photographs to judge it by")
    parser.add_argument("--ridge", type=float, default=RIDGE, help="see dcae_core/preview.py (default: %(default)s)")
    parser.add_argument("--variant", help="for a file that could be `in` or `mix`: which it is")
    parser.add_argument("--download", action="store_true", help="fetch the variant if it is not here")
    parser.add_argument("--device", help="default: the accelerator, else the CPU")
    parser.add_argument("--dtype", help="fp32, bf16 or fp16 (default: what is fast)")
    parser.add_argument("--table", type=Path, default=TABLE, metavar="FILE", help="default: that of the package")
    return parser.parse_args()


def photographs(paths: list[Path], hold_out: list[str]) -> tuple[list[Path], list[Path]]:
    """Return the files to fit to, and those held out."""
    files = [f for path in paths for f in (sorted(path.iterdir()) if path.is_dir() else [path])]
    files = [f for f in files if f.suffix.lower() in SUFFIXES or f in paths]
    if unknown := set(hold_out) - {f.stem for f in files}:
        sys.exit(f"--hold-out: there is no photograph called {', '.join(sorted(unknown))}.")
    fitted = [f for f in files if f.stem not in hold_out]
    if not fitted:
        sys.exit(f"There are no photographs to fit to in {', '.join(map(str, paths))} ({', '.join(sorted(SUFFIXES))}).")
    return fitted, [f for f in files if f.stem in hold_out]


def pair(ae: DCAE, path: Path) -> Pair:
    x = images.from_host(images.read(path))
    scale = SIDE * ae.spatial_ratio / max(x.shape[2:])
    if scale < 1:
        size = [max(ae.spatial_ratio, round(side * scale)) for side in x.shape[2:]]
        x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(-1, 1)
    return preview.pair(ae.variant, ae.encode, x)


def values(x: Tensor) -> list:
    """Return the numbers as nested lists, rounded to DIGITS."""
    return [values(row) if row.ndim else round(row.item(), DIGITS) for row in x]


def score(title: str, pairs: Mapping[str, Pair], linear_map: Preview) -> list[float]:
    """Print and return the mean PSNR in dB of previews, and of a single colour in their place."""

    def decibels(x: Tensor, y: Tensor) -> float:
        return psnr(images.to_host(x)[0], images.to_host(y)[0])

    scores = {
        n: (decibels(linear_map(z), y), decibels(y.mean((2, 3), True).expand_as(y), y)) for n, (z, y) in pairs.items()
    }
    means = [round(mean(column), 2) for column in zip(*scores.values(), strict=True)]
    for name, (ours, one_colour) in [*scores.items(), (f"{title}: mean of {len(scores)}", means)]:
        print(f"{name:44} {ours:6.2f} dB   one colour {one_colour:6.2f} dB")
    return means


def record(path: Path, key: str, entry: Mapping) -> None:
    """Put an entry into the table, replacing an earlier one. The file is replaced atomically."""
    table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    text = json.dumps(dict(sorted((table | {key: entry}).items())), indent=1)
    # A row of factors, a bias or a list of names in one line.
    text = re.sub(r"\[([^\[\]]*)\]", lambda match: "[" + re.sub(r"\s*\n\s*", " ", match[1]).strip() + "]", text)
    with atomic_write(path) as part:
        Path(part).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
