"""The figures of streaming: `python benchmarks/streaming.py budgets|counts|errors|times|sides [--quick] [--out FILE]`.

budgets  smallest activation budgets for large pictures, from the plan and counted on meta tensors
counts   counted peak over the plan's prediction, for 500 random runs on meta tensors
errors   streamed against whole: relative error in fp32 and bf16
times    streamed over whole, alternating in one process, strips of at most a quarter
sides    the default plan at 1024, 2048 and 4096: seconds for a megapixel (sana's encoder, or --only and --direction)
Random weights, but for the demo model. Results are kept in benchmarks/results.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dcae_core import DCAE, DEMO, VARIANTS, __version__, hub, images, plan
from dcae_core.compare.metrics import psnr
from dcae_core.engine.execute import run_plan
from dcae_core.engine.live_bytes import LiveBytes

GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("budgets", "counts", "errors", "times", "sides"))
    parser.add_argument("--quick", action="store_true", help="smaller and fewer")
    parser.add_argument("--only", default="", help="times and sides: variants whose name contains this")
    parser.add_argument("--direction", choices=plan.DIRECTIONS, help="times and sides: only this one")
    parser.add_argument("--repeats", type=int, default=1, help="times: of runs that take over a minute")
    parser.add_argument("--device", default="cpu", help="for errors and times")
    parser.add_argument("--out", type=Path, help="also append to this file")
    arguments = parser.parse_args()
    lines = [f"## {arguments.what}{' (quick)' if arguments.quick else ''}, {machine(arguments.device)}"]
    for line in globals()[arguments.what](arguments):
        print(line, flush=True)
        lines.append(line)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with arguments.out.open("a") as file:
            file.write("\n".join(lines) + "\n\n")


def machine(device: str) -> str:
    if device == "cpu":
        info = Path("/proc/cpuinfo")
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"
    else:
        name = torch.cuda.get_device_name(device)
    return f"{time.strftime('%Y-%m-%d')}, {name}, torch {torch.__version__}, dcae {__version__}"


def smallest(
    variant, direction: str, height: int, width: int, dtype: torch.dtype, channels: int | None = None
) -> plan.Plan:
    options = {"whole": False, "channels": channels, "strict": False}
    return plan.make(variant.architecture, direction, height, width, 1, 1, dtype, **options)


def counted(ae: DCAE, made: plan.Plan) -> int:
    coder = ae.model.encoder if made.direction == "encode" else ae.model.decoder
    shape = (3, made.height, made.width) if made.direction == "encode" else (ae.latent_channels, *made.latent_size)
    with LiveBytes([*coder.parameters(), *coder.buffers()]) as count, torch.no_grad():
        run_plan(coder, made, torch.empty(1, *shape, device="meta", dtype=ae.dtype))
    return count.peak


def budgets(arguments):
    yield f"{'variant':28} {'direction':9} {'side':>6} {'plan GiB':>9} {'counted':>8} {'whole':>7}"
    names = ("dc-ae-f32c32-mix-1.0", "dc-ae-f32c32-sana-1.0", "dc-ae-lite-f32c32-sana-1.1", "dc-ae-f128c512-mix-1.0")
    sides = (4096,) if arguments.quick else (4096, 8192, 16384)
    for name in names:
        ae = DCAE.empty(name, device="meta", dtype="bf16")
        for direction in plan.DIRECTIONS:
            for side in sides:
                made = smallest(ae.variant, direction, side, side, ae.dtype)
                run = (ae.variant.architecture, direction, side, side, 1, None, ae.dtype)
                whole = plan.make(*run, whole=True).peak_bytes
                # Counting takes minutes at the larger sizes.
                count = f"{counted(ae, made) / GIB:8.3f}" if side == 4096 else f"{'-':>8}"
                yield f"{name:28} {direction:9} {side:6} {made.peak_bytes / GIB:9.3f} {count} {whole / GIB:7.1f}"


def counts(arguments):
    chance, ratios, over = random.Random(0), [], 0
    total = 50 if arguments.quick else 500
    for _ in range(total):
        variant = chance.choice(list(VARIANTS.values()))
        ae = DCAE.empty(variant, device="meta", dtype=chance.choice(["fp32", "bf16", "fp16"]))
        direction, f = chance.choice(plan.DIRECTIONS), variant.spatial_ratio
        height, width = f * chance.randint(1, 1600 // f), f * chance.randint(1, 2400 // f)
        low = smallest(variant, direction, height, width, ae.dtype).peak_bytes
        high = plan.make(variant.architecture, direction, height, width, 1, None, ae.dtype).peak_bytes
        budget = int(low * max(1.0, 1.1 * high / low) ** chance.random())
        made = plan.make(variant.architecture, direction, height, width, 1, budget, ae.dtype)
        count = counted(ae, made)
        ratios.append(count / made.peak_bytes)
        over += count > budget
        if len(ratios) % 50 == 0:
            print(f"{len(ratios)} of {total}", file=sys.stderr)
    inside = sum(0.85 <= r <= 1 for r in ratios)
    yield f"{total} runs: counted / predicted between 0.85 and 1.00 in {inside}; least {min(ratios):.3f}, "
    yield f"median {statistics.median(ratios):.3f}, most {max(ratios):.3f}; over the budget: {over}"


def sides(arguments):
    name = next(n for n in VARIANTS if (arguments.only or "sana-1.1") in n)
    ae, direction = loaded(name, arguments.device, "bf16"), arguments.direction or "encode"
    first = None
    for side in (1024, 2048) if arguments.quick else (1024, 2048, 4096):
        low = side // ae.spatial_ratio
        x = torch.randn(1, ae.latent_channels, low, low) if direction == "decode" else picture(side, side, "cpu")
        run, x = getattr(ae, direction), x.to(ae.device, ae.dtype)
        times = [clock(arguments.device, run, x) for _ in range(3 if side == 1024 else 1)]
        each = min(times) / side**2 * 1e6
        first = first or each
        yield f"{name} {direction} {side}: {min(times):.2f} s, {each:.2f} for a megapixel, {each / first:.3f} of 1024's"


def loaded(name: str, device: str, dtype: str) -> DCAE:
    if name == DEMO:
        return DCAE(DEMO, device, dtype)
    torch.manual_seed(0)
    ae = DCAE.empty(name, device, dtype)
    for key, tensor in ae.model.state_dict().items():
        if tensor.ndim > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        else:
            tensor.fill_(0 if key.endswith(("bias", "running_mean", "num_batches_tracked")) else 1)
    return ae


def picture(height: int, width: int, device: str) -> torch.Tensor:
    x = images.from_host(images.read(hub.bundled().with_name("example.jpg")))
    return torch.nn.functional.interpolate(x, size=(height, width), mode="bicubic").clamp(-1, 1).to(device)


def quarter(variant, direction: str, height: int, width: int, dtype: torch.dtype) -> plan.Plan:
    """A plan whose strips are at most a quarter of the picture."""
    budget = plan.make(variant.architecture, direction, height, width, 1, None, dtype, whole=False).peak_bytes
    while True:
        made = plan.make(variant.architecture, direction, height, width, 1, budget, dtype, whole=False)
        if made.strips >= 4:
            return made
        budget = int(budget * 0.95)


@torch.no_grad()
def halves(ae: DCAE, side: int, device: str):
    x = picture(side, side, device).to(ae.dtype)
    z = ae.model.encoder(x)
    yield "encode", ae.model.encoder, x
    yield "decode", ae.model.decoder, z


@torch.no_grad()
def errors(arguments):
    yield f"{'variant':28} {'dtype':5} {'direction':9} {'side':>5} {'strips':>6} {'relative error':>15} {'PSNR dB':>8}"
    names = (DEMO,) if arguments.quick else VARIANTS
    for name in names:
        for dtype in ("fp32", "bf16"):
            if arguments.device == "cpu" and dtype == "bf16" and name != DEMO:
                continue  # minutes each without bf16 instructions
            ae = loaded(name, arguments.device, dtype)
            side = 1024 if arguments.device != "cpu" else 2 * ae.spatial_ratio if name != DEMO else 160
            for direction, coder, given in halves(ae, side, arguments.device):
                whole = coder(given).float()
                made = smallest(ae.variant, direction, side, side, ae.dtype)
                got = run_plan(coder, made, given).float()
                error = ((got - whole).norm() / whole.norm()).item()
                score = psnr(images.to_host(got), images.to_host(whole)) if direction == "decode" else float("nan")
                yield f"{name:28} {dtype:5} {direction:9} {side:5} {made.strips:6} {error:15.1e} {score:8.1f}"


@torch.no_grad()
def times(arguments):
    yield f"{'variant':28} {'direction':9} {'side':>5} {'strips':>6} {'whole s':>8} {'streamed':>8} ratio  each"
    cases = [(DEMO, 1024), (DEMO, 2048)]
    if not arguments.quick:
        cases += [("dc-ae-f32c32-mix-1.0", 1024), ("dc-ae-f32c32-sana-1.0", 1024)]
    for name, side in cases:
        if arguments.only not in name:
            continue
        ae = loaded(name, arguments.device, "fp32" if arguments.device == "cpu" else "bf16")
        slow = name != DEMO and arguments.device == "cpu"  # over a minute a run
        for direction, coder, given in halves(ae, side, arguments.device):
            if arguments.direction not in (None, direction):
                continue
            made = quarter(ae.variant, direction, side, side, ae.dtype)
            whole, streamed = [], []
            for i in range(arguments.repeats if slow else 6):
                whole.append(clock(arguments.device, coder, given))
                streamed.append(clock(arguments.device, run_plan, coder, made, given))
                if i == 0 and not slow:  # a warm-up
                    whole, streamed = [], []
            each = " ".join(f"{s / w:.2f}" for w, s in zip(whole, streamed, strict=True))
            one, other = statistics.median(whole), statistics.median(streamed)
            yield f"{name:28} {direction:9} {side:5} {made.strips:6} {one:8.2f} {other:8.2f} {other / one:6.2f}  {each}"


def clock(device: str, run, *arguments) -> float:
    """Seconds that one run takes."""
    start = time.perf_counter()
    run(*arguments)
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
