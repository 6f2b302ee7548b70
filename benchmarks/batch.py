"""Measure the cost of encoding a data set beyond the encoder itself: rates, memory, kills, and the steps of the work.

    python benchmarks/batch.py rate      images/s of the local engine and of a bare loop over tensors in memory
    python benchmarks/batch.py ray       rows of Ray and of the local engine, and the overhead of Ray
    python benchmarks/batch.py kills     SIGKILL at a random moment, ten times; then a run to the end
    python benchmarks/batch.py memory    peak memory of 200 and of 2,000 pictures
    python benchmarks/batch.py parts     reading, decoding, resizing and writing, each alone on one core
    python benchmarks/batch.py full      images/s of f32c32 at full width, and of a bare loop of diffusers' in the dtype

The data set: 2,000 crops of real photographs (256 to 340 pixels a side, JPEG) and 40 broken files, written to
--data. The model is the bundled one, and pictures are resized to 256x256. The two rates are measured in turn, and the
ratio of each pair is printed, since other load on the machine slows both.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dcae_core import DCAE, DEMO, VARIANTS
from dcae_core.batch import decode, run, shards
from dcae_core.batch.encode import Encoder, Options
from dcae_core.batch.prepare import Geometry, PreparedImage, prepare
from dcae_core.batch.sources import Item
from dcae_core.engine.devices import parse_dtype
from tests import datasets

REPO = Path(__file__).resolve().parents[1]
SIDE, PICTURES, BAD = 256, 2000, 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {command.__name__: command for command in (rate, ray, kills, memory, parts, full)}
    parser.add_argument("what", choices=commands)
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "dcae-batch-data")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    if not (arguments.data / "bad").is_dir():
        shutil.rmtree(arguments.data, ignore_errors=True)
        datasets.pieces(arguments.data, PICTURES, (SIDE, 340))
        datasets.broken_files(arguments.data / "bad", BAD // 4)
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {cores}, torch {torch.__version__}, {arguments.dtype}")
    with tempfile.TemporaryDirectory() as out:
        commands[arguments.what](arguments, Path(out))


def options(arguments: argparse.Namespace, out: Path, source: Path | None = None) -> Options:
    run_on = {"device": arguments.device, "dtype": arguments.dtype}
    return Options(str(source or arguments.data), str(out), DEMO, size=(SIDE, SIDE), part_size=256, **run_on)


def rate(arguments: argparse.Namespace, out: Path) -> None:
    ratios = []
    for i in range(arguments.pairs):
        bare = bare_loop(arguments)
        outcome = run.encode(options(arguments, out / str(i)), workers=arguments.workers)
        engine = outcome.images / outcome.seconds
        again = bare_loop(arguments)
        ratios.append(engine / ((bare + again) / 2))
        busy = outcome.device_seconds / outcome.seconds
        print(f"bare {bare:.1f} and {again:.1f} images/s, local engine {engine:.1f}: {ratios[-1]:.3f}; ", end="")
        print(f"the device was busy {busy:.1%} of its {outcome.seconds:.1f} s", flush=True)
    print(f"median {statistics.median(ratios):.3f}")


def bare_loop(arguments: argparse.Namespace, pictures: int = 800, batch: int = 8) -> float:
    """Return images/s of the encoder alone."""
    ae = DCAE(DEMO, arguments.device, arguments.dtype)
    x = torch.randint(0, 256, (batch, 3, SIDE, SIDE), dtype=torch.uint8).to(ae.device)
    for _ in range(3):
        ae.encode(x)
    start = time.perf_counter()
    for _ in range(pictures // batch):
        ae.encode(x).cpu()
    return pictures / (time.perf_counter() - start)


def full(arguments: argparse.Namespace, out: Path) -> None:
    """Random weights, one file for both."""
    from diffusers import AutoencoderDC

    theirs = AutoencoderDC.from_config(VARIANTS["dc-ae-f32c32-mix-1.0"].diffusers_config())
    theirs.save_pretrained(out / "model")
    theirs.to(parse_dtype(arguments.dtype))
    for side, pictures in ((256, 32), (512, 8)):
        source = out / f"pictures-{side}"
        source.mkdir()
        good = sorted(path for path in arguments.data.rglob("*.jpg") if path.parent.name != "bad")
        for path in good[:pictures]:
            Image.open(path).resize((side, side)).save(source / path.name)
        x = torch.rand(8, 3, side, side).to(theirs.dtype) * 2 - 1
        for i in range(arguments.pairs):
            run_on = {"device": arguments.device, "dtype": arguments.dtype, "size": (side, side)}
            outcome = run.encode(Options(str(source), str(out / f"{side}-{i}"), str(out / "model"), **run_on))
            ours, start = outcome.images / outcome.seconds, time.perf_counter()
            with torch.no_grad():
                for _ in range(pictures // len(x)):
                    theirs.encode(x)
            bare = pictures / (time.perf_counter() - start)
            whole = f"dcae batch encode {ours:.2f} images/s of {pictures}, loading and files included"
            print(f"{side}: {whole}; a loop of diffusers' {bare:.2f}: {ours / bare:.2f}", flush=True)


def ray(arguments: argparse.Namespace, out: Path) -> None:
    local = run.encode(options(arguments, out / "local"), workers=arguments.workers)
    start = time.perf_counter()
    import ray

    ray.init(log_to_driver=False)
    ready = time.perf_counter() - start
    remote = run.encode(options(arguments, out / "ray"), "ray", actors=2)
    a, b = (rows(out / name) for name in ("local", "ray"))
    assert a.keys() == b.keys() and len(a) == PICTURES, (len(a), len(b))
    assert skipped(out / "local") == skipped(out / "ray")
    difference = max(float((a[k] - b[k]).abs().max() / a[k].abs().max()) for k in a)
    print(f"the same {len(a)} keys, and {len(skipped(out / 'ray').splitlines())} skipped for the same reasons")
    print(f"latents differ by at most {difference:.1e} of their largest (stored in bf16: half a step is 3.9e-3)")
    rates = [f"{outcome.images / outcome.seconds:.1f}" for outcome in (local, remote)]
    extra = f"{remote.seconds - local.seconds:.1f} s more of {local.seconds:.1f} s"
    print(f"local {rates[0]} images/s; Ray, 2 actors, {rates[1]}, {extra}; starting Ray took {ready:.1f} s besides")


def rows(target: Path) -> dict[str, torch.Tensor]:
    entries = [(row.key, row.latents.float()) for row, _ in decode.read_rows(str(target))]
    assert len(dict(entries)) == len(entries), "a source was encoded twice"
    return dict(entries)


def skipped(target: Path) -> str:
    return "".join(sorted((target / "skipped.jsonl").read_text().splitlines(keepends=True)))


def kills(arguments: argparse.Namespace, out: Path) -> None:
    rng = random.Random(time.time_ns())
    command = [sys.executable, "-m", "dcae_core", "batch", "encode", arguments.data, out / "killed"]
    command += ["--size", str(SIDE), "--part-size", "50", "--device", arguments.device, "--dtype", arguments.dtype]
    first = 0.0  # seconds until the first part is done
    for i in range(10):
        start = time.monotonic()
        process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not first and process.poll() is None:
            first = time.monotonic() - start if parts_done(out / "killed") else 0.0
            time.sleep(0.02)
        time.sleep(max(0.0, rng.uniform(0.3, first + 6) - (time.monotonic() - start)))
        after, alive = time.monotonic() - start, process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = parts_done(out / "killed")
        print(f"kill {i + 1} after {after:.2f} s{'' if alive else ' (it had ended)'}: {done} of 41 parts", flush=True)
    subprocess.run(command, cwd=REPO, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    latents, reasons = rows(out / "killed"), skipped(out / "killed").splitlines()
    assert len(latents) == PICTURES and len(reasons) == BAD and not list((out / "killed").rglob("*.part"))
    print(f"then to its end: {len(latents)} rows, each source once; {len(reasons)} skipped; no unfinished files")


def parts_done(target: Path) -> int:
    return len(list((target / "done").glob("*.json")))


def memory(arguments: argparse.Namespace, out: Path) -> None:
    """Print the peak resident memory of a separate process for each size. That process holds the model."""
    few = out / "few"
    for path in sorted(arguments.data.glob("[eo]*/*.jpg"))[: PICTURES // 10]:
        (few / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, few / path.parent.name)
    peaks = {}
    for source, name in ((few, "200"), (arguments.data, "2000")):
        command = ["batch", "encode", str(source), str(out / name), "--size", str(SIDE), "--part-size", "100"]
        command += ["--device", arguments.device, "--dtype", arguments.dtype]
        script = (
            "import resource, sys; from dcae_core.cli import main\n"
            "if __name__ == '__main__':\n"
            "    main(sys.argv[1:])\n"
            "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)\n"
        )
        (file := out / "measured.py").write_text(script)
        reported = subprocess.run(
            [sys.executable, file, *command],
            cwd=REPO,
            env={**os.environ, "PYTHONPATH": str(REPO)},
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ).stdout
        peaks[name] = float(reported.splitlines()[-1])
        print(f"{name} pictures: peak {peaks[name]:.0f} MiB", flush=True)
    print(f"2,000 over 200: {peaks['2000'] / peaks['200']:.3f}")


def parts(arguments: argparse.Namespace, out: Path) -> None:
    """Time each step for a typical 1000x667 picture and for one of this data set."""
    torch.set_num_threads(1)
    large = datasets.EXAMPLE.read_bytes()
    small = sorted(arguments.data.glob("even/*.jpg"))[0].read_bytes()
    for name, data in (("1000x667", large), ("here", small)):
        with Image.open(io.BytesIO(data)) as opened:
            picture = opened.convert("RGB")
        print(f"{name}: {picture.width}x{picture.height}, {len(data) / 1024:.0f} KiB")
        (path := out / "one.jpg").write_bytes(data)
        each("  reading the file (cached)", path.read_bytes)
        each("  decoding JPEG", lambda data=data: Image.open(io.BytesIO(data)).convert("RGB"))
        for side in (256, 512):
            each(f"  resizing to {side}", lambda p=picture, s=side: p.resize((s, s), Image.Resampling.LANCZOS))
            shape = Geometry("crop", side, side, 32)
            each(f"  all of it, to {side}", lambda d=data, s=shape: prepare(Item("a", d), s, ""))
    ready = prepare(Item("a", large), Geometry("crop", SIDE, SIDE, 32), "")
    assert isinstance(ready, PreparedImage)
    encoder = Encoder(options(arguments, out))
    encoded = encoder([ready] * 8)
    common = {"variant": DEMO, "dtype": "bf16", "scale": "raw", "scaling_factor": "1"}
    each("writing Parquet, for each row", lambda: shards.write(out / "p", "parquet", encoded * 32, common), 256)


def each(name: str, work: Callable[[], object], pictures: int = 1, seconds: float = 1.5) -> None:
    work()
    start, n = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        work()
        n += 1
    print(f"{name}: {(time.perf_counter() - start) / n / pictures * 1e3:.3f} ms", flush=True)


if __name__ == "__main__":
    main()
