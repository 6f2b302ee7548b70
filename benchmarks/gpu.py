"""Check this project on a GPU and measure it there, in ten minutes and without a network: `python benchmarks/gpu.py`.

Writes gpu.json and, if matplotlib is there, gpu.png, to attach to an issue. First what must hold: the Triton kernels
against torch, variants against diffusers (where it is installed), strips against whole runs, bytes that were promised
against those that torch counts, memory that really runs out. Then speed beside diffusers, and how near it is to what
the card has. `--device cpu --quick` does the same with the bundled model at small sizes, in a minute; what only a GPU
can show is skipped, and says so. `--predict` needs no GPU: what cards should take, by their data sheets.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.streaming import clock, counted, machine, picture, quarter
from dcae_core import DCAE, DEMO, VARIANTS, plan
from dcae_core.engine.devices import best_dtype
from dcae_core.engine.execute import run_plan
from dcae_core.engine.machine import GPUS
from dcae_core.engine.memory import free_bytes, release
from dcae_core.engine.ops import fused

BOUNDS = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # relative to the largest
MIB = 1 << 20


class Skipped(Exception):
    """What can't be shown here, and why."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="the bundled model at small sizes")
    parser.add_argument("--seconds", type=float, default=500, help="start no further measurement after so many")
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="BASE of the names of the results")
    parser.add_argument("--predict", action="store_true", help="only what cards should take")
    arguments = parser.parse_args()
    if arguments.predict:
        for line in predictions():
            print(line, flush=True)
        return 0
    device = torch.device(arguments.device)
    report = {"head": machine(arguments.device), "checks": [], "rates": {}, "rows": []}
    print(report["head"], flush=True)
    for name, check in checks(device, arguments.quick):
        start = time.perf_counter()
        report["checks"].append({"check": name, **carried_out(check), "seconds": round(time.perf_counter() - start, 2)})
        print("{check:44} {state:8} {text}".format(**report["checks"][-1]), flush=True)
        release(device)
    report["rates"] = rates(arguments.device, best_dtype(device))
    print(", ".join(f"{what} {value:.3g}" for what, value in report["rates"].items()), flush=True)
    save(arguments.out, report)
    measured(arguments, report)
    print(f"Attach {arguments.out.with_suffix('.json')} to an issue, and the picture beside it.")
    return int(any(check["state"] == "FAILED" for check in report["checks"]))


def save(base: Path, report: dict) -> None:
    base.parent.mkdir(parents=True, exist_ok=True)
    base.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")


def carried_out(check: Callable[[], str]) -> dict[str, str]:
    """Return {state, text} of a check: whatever goes wrong, the next ones are still of use."""
    try:
        return {"state": "holds", "text": check()}
    except Skipped as reason:
        return {"state": "skipped", "text": str(reason)}
    except Exception as error:
        return {"state": "FAILED", "text": f"{type(error).__name__}: {str(error).strip()[:500]}"}


def checks(device: torch.device, quick: bool) -> Iterator[tuple[str, Callable[[], str]]]:
    names = [DEMO] if quick else [name for name in VARIANTS if name.endswith(("mix-1.0", "1.1", "1.5"))]
    for dtype in BOUNDS:
        yield f"kernels, {str(dtype)[6:]}", lambda dtype=dtype: kernels(device, dtype)
    for name in names:
        yield f"diffusers, {name}", lambda name=name: against_diffusers(device, name)
    side = 256 if quick else 2048
    for direction in plan.DIRECTIONS:
        yield f"strips, {direction} {side}", lambda direction=direction: strips(device, names[0], direction, side)
        for whole in (True, False):
            how = "whole" if whole else "in strips"
            yield (
                f"promised bytes, {direction} {side} {how}",
                lambda direction=direction, whole=whole: promised(device, names[0], direction, side, whole),
            )
    yield "memory that runs out", lambda: runs_out(device, names[0], side)
    yield "uint8 in and out", lambda: in_uint8(device, names[0], side)


def model(name: str, device: torch.device, dtype: torch.dtype) -> DCAE:
    """The bundled one, or one with random weights."""
    if name == DEMO:
        return DCAE(name, device, dtype)
    ae, generator = DCAE.empty(name, device, dtype), torch.Generator(device).manual_seed(0)
    for weight in ae.model.parameters():
        scale = weight[0].numel() ** -0.5 if weight.ndim == 4 else 0.02
        weight.data.copy_(torch.randn(weight.shape, generator=generator, device=device) * scale)
    return ae


def given(ae: DCAE, direction: str, side: int) -> torch.Tensor:
    if direction == "encode":
        return picture(side, side, ae.device).to(ae.dtype)
    low, generator = side // ae.spatial_ratio, torch.Generator(ae.device).manual_seed(1)
    return torch.randn(1, ae.latent_channels, low, low, generator=generator, device=ae.device).to(ae.dtype)


def error_of(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found.float() - wanted.float()).abs().max() / wanted.float().abs().max()).item()


def within(error: float, bound: float) -> str:
    if not error <= bound:
        raise AssertionError(f"differs by {error:.1e} of the largest, at most {bound:.0e} is right")
    return f"{error:.1e} of the largest, at most {bound:.0e}"


def kernels(device: torch.device, dtype: torch.dtype) -> str:
    if device.type != "cuda":
        raise Skipped("a GPU runs them")
    from dcae_core.engine.ops import triton_kernels

    fused.try_out(triton_kernels, device, dtype)
    return "what torch gives"


def against_diffusers(device: torch.device, name: str) -> str:
    if importlib.util.find_spec("diffusers") is None:
        raise Skipped("diffusers is not installed")
    from diffusers import AutoencoderDC

    torch.manual_seed(0)
    variant = VARIANTS[name]
    config = {key: value for key, value in variant.diffusers_config().items() if not key.startswith("_")}
    with device:
        theirs = AutoencoderDC(**config).eval().requires_grad_(False)
    x, worst = picture(256, 256, device), []
    with full_precision(), torch.no_grad():
        latent = theirs.encode(x).latent
        wanted = theirs.decode(latent).sample
        for dtype in (torch.float32, best_dtype(device)):
            ae = DCAE.from_state_dict(theirs.state_dict(), variant, device, dtype)
            worst.append(within(error_of(ae.encode(x), latent), BOUNDS[dtype]))
            worst.append(within(error_of(ae.decode(latent), wanted), BOUNDS[dtype]))
    return "; ".join(worst)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """A context without TF32, whose rounding is that of fp16."""
    settings = [(torch.backends.cudnn, "allow_tf32"), (torch.backends.cuda.matmul, "allow_tf32")]
    before = [getattr(place, name) for place, name in settings]
    for place, name in settings:
        setattr(place, name, False)
    try:
        yield
    finally:
        for (place, name), value in zip(settings, before, strict=True):
            setattr(place, name, value)


def coder_of(ae: DCAE, direction: str):
    return ae.model.encoder if direction == "encode" else ae.model.decoder


@torch.no_grad()
def strips(device: torch.device, name: str, direction: str, side: int) -> str:
    ae = model(name, device, torch.float32)
    x, run = given(ae, direction, side), (ae.variant.architecture, direction, side, side)
    options = {"dtype": ae.dtype, "device": device.type}
    with full_precision():
        whole = run_plan(coder_of(ae, direction), plan.make(*run, whole=True, **options), x)
        thin = plan.make(*run, budget=1, whole=False, strict=False, **options)
        return within(error_of(run_plan(coder_of(ae, direction), thin, x), whole), 1e-5) + f", {thin.strips} strips"


@torch.no_grad()
def promised(device: torch.device, name: str, direction: str, side: int, whole: bool) -> str:
    ae = model(name, device, best_dtype(device))
    run = (ae.variant.architecture, direction, side, side, 1, None, ae.dtype)
    made = plan.make(*run, whole=whole, device=device.type)
    made = made if whole else quarter(ae.variant, direction, side, side, ae.dtype)
    if device.type == "cuda":
        x = given(ae, direction, side)
        run_plan(coder_of(ae, direction), made, x)  # what libraries keep from now on is not of a run
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() - x.nbytes
        run_plan(coder_of(ae, direction), made, x)
        held = torch.cuda.max_memory_allocated() - before
    else:
        held = counted(DCAE.empty(ae.variant, "meta", ae.dtype), made)
    share = held / made.peak_bytes
    text = f"{held / MIB:.0f} MiB held, {made.peak_bytes / MIB:.0f} promised: {share:.3f}"
    if share > 1:
        raise AssertionError(text)
    return text


@torch.no_grad()
def runs_out(device: torch.device, name: str, side: int) -> str:
    if device.type != "cuda":
        raise Skipped("a GPU's memory can be filled without harm")
    ae = model(name, device, best_dtype(device))
    x = given(ae, "decode", side)
    wanted = ae.decode(x, output_device="cpu")
    release(device)
    run = (ae.variant.architecture, "decode", side, side, 1)
    least = plan.make(*run, 1, ae.dtype, device="cuda", whole=False, strict=False).peak_bytes
    room = (least + plan.make(*run, None, ae.dtype, device="cuda", whole=True).peak_bytes) // 2
    filled = torch.empty(max(free_bytes(device) - room, 0), dtype=torch.uint8, device=device)
    try:
        found = ae.decode(x, output_device="cpu", budget=1 << 62)  # planned whole, which is not there
    finally:
        del filled
    if ae.last_plan.whole:
        raise AssertionError("it ran whole: the device was not full")
    return within(error_of(found, wanted), BOUNDS[ae.dtype]) + f", {ae.last_plan.strips} strips"


@torch.no_grad()
def in_uint8(device: torch.device, name: str, side: int) -> str:
    ae = model(name, device, best_dtype(device))
    pixels = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)
    latent = ae.encode(pixels)
    back = ae.decode(latent, as_uint8=True, output_device="cpu")
    wanted = ae.decode(latent).float().add(1).mul(127.5).clamp(0, 255).round().byte().cpu()
    different = (back.int() - wanted.int()).abs().max().item()
    if different > 1:
        raise AssertionError(f"pixels differ by {different} of 255")
    return f"pixels differ by at most {different} of 255"


def rates(device: str, dtype: torch.dtype) -> dict[str, float]:
    """Return what the card has: TFLOP/s of the best matrix product and of a 3x3 convolution on maps in either memory
    format, GB/s of a copy (read and written)."""
    block = torch.empty((1 << 28) if device == "cpu" else (1 << 30), dtype=torch.uint8, device=device)
    copied = min(clock(device, torch.clone, block) for _ in range(3))
    from benchmarks.speed import matmul_peak

    found = {"TFLOP/s": matmul_peak(device, dtype), "GB/s": 2 * block.nbytes / copied / 1e9}
    channels, side = 128, 64 if device == "cpu" else 512
    for form in (torch.channels_last, torch.contiguous_format):  # maps are channels-last on every device
        x = torch.randn(1, channels, side, side, device=device).to(dtype, memory_format=form)
        weight = torch.randn(channels, channels, 3, 3, device=device).to(dtype, memory_format=form)
        seconds = min(clock(device, lambda x, w: F.conv2d(x, w, padding=1), x, weight) for _ in range(3))
        found[f"convolution TFLOP/s, {str(form)[6:]}"] = 2 * 9 * channels**2 * side**2 / seconds / 1e12
    return found


class Launches(TorchDispatchMode):
    """Counts operations that each are a kernel at least on a GPU, where Triton's kernels are not used."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view and not func._schema.name.startswith(("aten::empty", "prim::"))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def launches(name: str, made: plan.Plan) -> int:
    """Return how many launches a plan takes, counted on meta tensors."""
    ae = DCAE.empty(name, "meta", "bf16")
    shape = (3, made.height, made.width) if made.direction == "encode" else (ae.latent_channels, *made.latent_size)
    with patch.object(fused, "PIECE", 1 << 62), Launches() as counted:  # on meta tensors it would split as on a CPU
        run_plan(coder_of(ae, made.direction), made, torch.empty(1, *shape, device="meta", dtype=ae.dtype))
    return counted.count


def predictions() -> Iterator[str]:
    """Yield lines of a table: seconds that nobody has measured, and GiB, in bf16."""
    yield "# predictions from data sheets (GPUS in dcae_core/engine/machine.py): seconds, and GiB beside the weights;"
    yield "# launches: counted on meta tensors, of torch's own kernels (Triton's take fewer)"
    budgets = {"whole": None, "8 GiB": 8 << 30, "4 GiB": 4 << 30, "2 GiB": 2 << 30}
    cards = "".join(f"{card.name:>10}" for card in GPUS.values())
    yield f"{'variant':9}{'direction':10}{'side':>5}  {'how':6}{'GiB':>7} {'launches':>8} {cards}"
    for short, name in (("f32c32", "dc-ae-f32c32-mix-1.0"), ("sana", "dc-ae-f32c32-sana-1.1")):
        for direction in plan.DIRECTIONS:
            for side in (1024, 4096, 8192):
                for how, budget in budgets.items():
                    run = (VARIANTS[name].architecture, direction, side, side, 1, budget)
                    made = plan.make(*run, device="cuda", whole=None if budget is None else False)
                    times = "".join(f"{made.predict(card):10.3f}" for card in GPUS.values())
                    held, count = made.peak_bytes / 2**30, launches(name, made) if side < 8192 else "-"  # takes minutes
                    yield f"{short:9}{direction:10}{side:5}  {how:6}{held:7.2f} {count:>8} {times}"


def measured(arguments: argparse.Namespace, report: dict) -> None:
    """Add rows of benchmarks/speed.py to the report, and write its table and picture."""
    if importlib.util.find_spec("diffusers") is None:
        print("no speed beside diffusers: it is not installed")
        return
    from benchmarks import speed

    start, every = time.perf_counter(), speed.WAYS[:-1]
    names = {"demo": DEMO} if arguments.quick else {name: speed.NAMES[name] for name in ("f32c32", "sana")}
    dtype = best_dtype(torch.device(arguments.device))
    for side in (128,) if arguments.quick else (1024, 4096, 2048):
        ways = [way for way in every if way != "diffusers compiled" or side == 1024]  # which takes half a minute each
        for short, name in names.items():
            for tried in (ways, ["ours", "ours in strips", "diffusers tiled"]):  # the second where the first can't be
                if time.perf_counter() - start > arguments.seconds:
                    print(f"{short} {side}: not measured, --seconds are over")
                    break
                options = {"device": arguments.device, "direction": plan.DIRECTIONS, "repeats": 3, "quick": True}
                try:
                    found = list(speed.case(name, side, dtype, argparse.Namespace(**options), tried))
                except torch.OutOfMemoryError:
                    release(torch.device(arguments.device))
                    print(f"{short} {side}: out of memory with {', '.join(tried)}")
                    continue
                for row in found:
                    report["rows"].append({"variant": short, "side": side, **row})
                    print(speed.shown(report["rows"][-1]), flush=True)
                save(arguments.out, report)
                break
    if report["rows"]:
        speed.save(arguments.out, [f"# {report['head']}, {str(dtype)[6:]}"], report["rows"])
        save(arguments.out, report)


if __name__ == "__main__":
    sys.exit(main())
