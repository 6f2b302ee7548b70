"""Time, memory, differences beside diffusers' AutoencoderDC: `python benchmarks/speed.py [--size 1024] [--out BASE]`.

In one process, with the same random weights, pictures and dtype: ours (as chosen, in strips of a quarter, and as
chosen for 4 GiB), and
diffusers' as it is, in channels-last (with --compile also compiled), with its tiling, whose pixels are others, and in
fp32, which is its default. Runs alternate; the first round warms up unless one run takes more than half a minute.

peak: beside the weights; measured on a GPU; for a CPU the plan's (ours) or counted on meta tensors (diffusers').
system: of the processor time, what the kernel took.
difference: from diffusers in fp32.
share: of the speed of the best matrix product of this dtype, measured in the same run; 2 operations for each
multiply-add that the published network does, whether or not it is done here.
With --out: BASE.txt and BASE.json are written, and BASE.png if matplotlib is there.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from diffusers import AutoencoderDC
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.streaming import clock, machine, picture, quarter
from dcae_core import DCAE, VARIANTS, plan
from dcae_core.engine.devices import best_dtype, parse_dtype
from dcae_core.engine.execute import run_plan
from dcae_core.engine.live_bytes import LiveBytes

NAMES = {"f32c32": "dc-ae-f32c32-mix-1.0", "f64c128": "dc-ae-f64c128-mix-1.0", "f128c512": "dc-ae-f128c512-mix-1.0"}
NAMES |= {"sana": "dc-ae-f32c32-sana-1.1", "lite": "dc-ae-lite-f32c32-sana-1.1"}
WAYS = (
    "ours",
    "ours in strips",
    "ours in 4 GiB",
    "diffusers",
    "diffusers channels-last",
    "diffusers compiled",
    "diffusers tiled",
)
WAYS += ("diffusers fp32",)
TITLE = ("variant", "side", "direction", "way", "s", "spread", "system", "GiB", "difference", "TFLOP/s", "share")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--size", nargs="+", type=int, default=[1024], help="sides of square pictures")
    parser.add_argument("--direction", nargs="+", choices=plan.DIRECTIONS, default=plan.DIRECTIONS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="default: all but compiled and fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="default: what is fast on the device")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1e9, help="start no further case after so many")
    parser.add_argument("--compile", action="store_true", help="with diffusers compiled")
    parser.add_argument("--out", type=Path, help="BASE of the names of the results")
    arguments = parser.parse_args()
    ways = arguments.ways or [w for w in WAYS[:-1] if arguments.compile or w != "diffusers compiled"]
    dtype = parse_dtype(arguments.dtype) or best_dtype(torch.device(arguments.device))
    start, rows = time.perf_counter(), []
    head = [f"# {machine(arguments.device)}, {dtype}".replace("torch.", "")]
    head.append(f"matrix products: {matmul_peak(arguments.device, dtype):.3f} TFLOP/s")
    print("\n".join(head))
    print(line(TITLE))
    for name in arguments.variants:
        for side in arguments.size:
            if time.perf_counter() - start > arguments.seconds:
                continue
            for row in case(NAMES[name], side, dtype, arguments, ways):
                rows.append({"variant": name, "side": side, **row})
                print(shown(rows[-1]), flush=True)
    if arguments.out:
        save(arguments.out, head, rows)


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """TFLOP/s of the fastest of some matrix products."""
    best = 0.0
    for side in (1024, 2048) if device == "cpu" else (4096, 8192):
        a = torch.randn(side, side, device=device, dtype=dtype)
        for _ in range(4):
            best = max(best, 2 * side**3 / clock(device, torch.matmul, a, a) / 1e12)
    return best


@torch.no_grad()
def case(name: str, side: int, dtype: torch.dtype, arguments, ways: list[str]):
    """One variant at one size, in both directions."""
    device, variant = arguments.device, VARIANTS[name]
    torch.manual_seed(0)
    config = {k: v for k, v in variant.diffusers_config().items() if not k.startswith("_")}
    with torch.device(device):  # there, initial weights take no time
        theirs = AutoencoderDC(**config).eval().requires_grad_(False)
    given = picture(side, side, device)
    known = {"encode": given}
    if dtype != torch.float32:
        known["latent"] = theirs.encode(given).latent
        known["picture"] = theirs.decode(known["latent"]).sample if "decode" in arguments.direction else None
    ours = DCAE.from_state_dict(theirs.state_dict(), name, device, dtype)
    in_fp32 = copy.deepcopy(theirs) if "diffusers fp32" in ways else None
    torch.nn.Module.to(theirs, dtype)  # diffusers' own warns of what is not so here
    if "latent" not in known:
        known["latent"] = theirs.encode(given).latent
    for direction in arguments.direction:
        x = (given if direction == "encode" else known["latent"]).to(dtype)
        wanted = known["latent"] if direction == "encode" else known.get("picture")
        runs = {way: RUNS[way](ours, in_fp32 if way == "diffusers fp32" else theirs, direction, side) for way in ways}
        seconds, outputs, peaks, system = {way: [] for way in ways}, {}, {}, dict.fromkeys(ways, 0.0)
        for i in range(arguments.repeats + 1):
            for way, run in runs.items():
                with Arranged(theirs, way):
                    if device != "cpu":
                        run(x.float() if way == "diffusers fp32" else x)  # what the run before left in caches is gone
                        torch.cuda.synchronize()
                        torch.cuda.reset_peak_memory_stats()
                        before = torch.cuda.memory_allocated()
                    began, before_times = time.perf_counter(), os.times()
                    outputs[way] = run(x.float() if way == "diffusers fp32" else x)
                    if device != "cpu":
                        torch.cuda.synchronize()
                    seconds[way].append(time.perf_counter() - began)
                    user, kernel = (b - a for a, b in zip(before_times[:2], os.times()[:2], strict=True))
                    system[way] = kernel / max(user + kernel, 1e-9)
                    if device != "cpu":
                        peaks[way] = torch.cuda.max_memory_allocated() - before + x.nbytes
                outputs[way] = outputs[way].float().cpu()
            if i == 0 and max(seconds[way][0] for way in ways) < 30:
                seconds = {way: [] for way in ways}
            elif len(seconds[ways[0]]) >= arguments.repeats:
                break
        wanted = outputs.get("diffusers") if wanted is None else wanted.float().cpu()
        work, peak = flops(name, direction, side), matmul_peak(device, dtype)
        for way in ways:
            middle = statistics.median(seconds[way])
            yield {
                "direction": direction,
                "way": way,
                "seconds": middle,
                "each": seconds[way],
                "system": system[way],
                "bytes": peaks.get(way) or counted(name, direction, side, dtype, way),
                "difference": None if wanted is None else ((outputs[way] - wanted).norm() / wanted.norm()).item(),
                "tflops": work / middle / 1e12,
                "share": work / middle / 1e12 / peak,
            }


def strips(ours: DCAE, theirs, direction: str, side: int):
    coder = ours.model.encoder if direction == "encode" else ours.model.decoder
    made = quarter(ours.variant, direction, side, side, ours.dtype)
    return lambda x: run_plan(coder, made, x)


def in_budget(ours: DCAE, theirs, direction: str, side: int):
    coder = ours.model.encoder if direction == "encode" else ours.model.decoder
    run = (ours.variant.architecture, direction, side, side, 1, 4 << 30, ours.dtype)
    made = plan.make(*run, device=ours.device.type)
    return lambda x: run_plan(coder, made, x)


def eager(ours, theirs: AutoencoderDC, direction: str, side: int):
    return (lambda x: theirs.encode(x).latent) if direction == "encode" else (lambda x: theirs.decode(x).sample)


def compiled(ours, theirs: AutoencoderDC, direction: str, side: int):
    coder = torch.compile(theirs.encoder if direction == "encode" else theirs.decoder)
    return lambda x: coder(x.contiguous(memory_format=torch.channels_last))


RUNS = {
    "ours": lambda ours, theirs, direction, side: ours.encode if direction == "encode" else ours.decode,
    "ours in strips": strips,
    "ours in 4 GiB": in_budget,
    "diffusers": eager,
    "diffusers channels-last": eager,
    "diffusers compiled": compiled,
    "diffusers tiled": eager,
    "diffusers fp32": eager,
}


class Arranged:
    """diffusers' model in the layout and with the tiling that `way` asks for; its own are put back."""

    def __init__(self, theirs: AutoencoderDC, way: str):
        self.theirs, self.way = theirs, way

    def __enter__(self):
        if self.way in ("diffusers channels-last", "diffusers compiled"):
            torch.nn.Module.to(self.theirs, memory_format=torch.channels_last)
        if self.way == "diffusers tiled":
            self.theirs.enable_tiling()

    def __exit__(self, *error):
        torch.nn.Module.to(self.theirs, memory_format=torch.contiguous_format)
        self.theirs.disable_tiling()


def flops(name: str, direction: str, side: int) -> int:
    """Operations of the published network, counted on meta tensors."""
    coder, x = meta(name, direction, side, torch.float32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        coder(x)
    return counter.get_total_flops()


def counted(name: str, direction: str, side: int, dtype: torch.dtype, way: str) -> int | None:
    """Peak bytes beside the weights, input and output included."""
    if way in ("diffusers tiled", "diffusers compiled", "diffusers fp32"):
        return None
    if way.startswith("ours"):
        variant = VARIANTS[name]
        if way == "ours in strips":
            return quarter(variant, direction, side, side, dtype).peak_bytes
        budget = None if way == "ours" else 4 << 30
        return plan.make(variant.architecture, direction, side, side, 1, budget, dtype).peak_bytes
    coder, x = meta(name, direction, side, dtype)
    with LiveBytes([*coder.parameters(), *coder.buffers()]) as count, torch.no_grad():
        coder(x.clone())
    return count.peak


def meta(name: str, direction: str, side: int, dtype: torch.dtype):
    variant = VARIANTS[name]
    config = {k: v for k, v in variant.diffusers_config().items() if not k.startswith("_")}
    with torch.device("meta"):
        model = torch.nn.Module.to(AutoencoderDC(**config).eval(), dtype)
        low = side // variant.spatial_ratio
        shape = (1, 3, side, side) if direction == "encode" else (1, variant.latent_channels, low, low)
        return (model.encoder if direction == "encode" else model.decoder), torch.empty(shape, dtype=dtype)


def line(words: list[str]) -> str:
    widths = (9, 5, 9, 23, 8, 7, 7, 7, 10, 8, 5)
    return " ".join(f"{w:>{n}}" if i > 3 else f"{w:{n}}" for i, (w, n) in enumerate(zip(words, widths, strict=True)))


def shown(row: dict) -> str:
    each = row["each"]
    spread = (max(each) - min(each)) / row["seconds"]
    memory = f"{row['bytes'] / 2**30:.2f}" if row["bytes"] else "-"
    difference = "-" if row["difference"] is None else f"{row['difference']:.1e}"
    words = [row["variant"], str(row["side"]), row["direction"], row["way"], f"{row['seconds']:.3f}", f"{spread:.0%}"]
    words.append(f"{row['system']:.1%}")
    return line([*words, memory, difference, f"{row['tflops']:.3f}", f"{row['share']:.0%}"])


def save(base: Path, head: list[str], rows: list[dict]) -> None:
    base.parent.mkdir(parents=True, exist_ok=True)
    base.with_suffix(".txt").write_text("\n".join([*head, line(TITLE), *map(shown, rows)]) + "\n")
    base.with_suffix(".json").write_text(json.dumps({"head": head, "rows": rows}, indent=1) + "\n")
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("no plot: pip install matplotlib")
        return
    cases = list(dict.fromkeys((r["variant"], r["side"], r["direction"]) for r in rows))
    ways = list(dict.fromkeys(r["way"] for r in rows))
    times = {(r["variant"], r["side"], r["direction"], r["way"]): r["seconds"] for r in rows}
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.24 * len(cases) * (len(ways) + 1)), layout="constrained")
    colours = {"ours": "#2166ac", "ours in strips": "#92c5de"}
    greys = iter(("#7f7f7f", "#a6a6a6", "#c4c4c4", "#dddddd"))
    for i, way in enumerate(ways):
        places = [-j * (len(ways) + 1) - i for j in range(len(cases))]
        values = [times.get((*c, way), 0) for c in cases]
        bars = axes.barh(places, values, 0.9, label=way, color=colours.get(way) or next(greys))
        axes.bar_label(bars, [f"{v:.3g}" if v else "" for v in values], padding=3, fontsize=8)
    axes.set_yticks([-j * (len(ways) + 1) - (len(ways) - 1) / 2 for j in range(len(cases))])
    axes.set_yticklabels([f"{name} {direction}\n{side}x{side}" for name, side, direction in cases])
    axes.set_xlabel("seconds (median)")
    axes.set_title(head[0].lstrip("# "), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    figure.legend(fontsize=8, loc="outside lower center", ncol=len(ways), frameon=False)
    figure.savefig(base.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
