"""Real faults, and what becomes of a run (FAULTS.md): `python benchmarks/faults.py memory reload comfyui`.

memory   2048x2048 with less and less memory to be had: on Linux's CPUs by RLIMIT_DATA, with --device cuda on a GPU that
         is filled but for so much
reload   a hundred times: load, encode, decode, drop
comfyui  a hundred changes of the model in one ComfyUI (as nox makes it), then a hundred /free, then
         memory as above
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil
import torch

from benchmarks.streaming import machine
from dcae_core import DCAE, DEMO, DCAEError

MIB = 1 << 20
LIMITED = """
import resource, sys, torch
from benchmarks.faults import outcome
from dcae_core import DCAE, DEMO

device, spare = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
ae, x = DCAE(DEMO, device, "fp32"), torch.zeros(1, 3, 2048, 2048)
ae.encode(x[..., :64, :64])
if device == "cpu":
    with open("/proc/self/status") as file:
        held = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (held + (spare << 20),) * 2)
else:
    filler = torch.empty(torch.cuda.mem_get_info()[0] - (spare << 20), dtype=torch.uint8, device=device)
print(outcome(ae, x), flush=True)
"""


def outcome(ae: DCAE, x: torch.Tensor) -> str:
    """What becomes of a run, in a line."""
    try:
        ae.encode(x, output_device="cpu")
        return f"done, {ae.last_plan}"
    except DCAEError as error:
        return f"refused: {error}"


def memory(device: str) -> None:
    for spare in (1200, 600, 300, 150, 75, 10):
        command = [sys.executable, "-c", LIMITED, device, str(spare)]
        done = subprocess.run(command, cwd=sys.path[0], capture_output=True, text=True)
        tries = done.stderr.count("Out of memory in")
        output_text = done.stdout.strip() or f"NOT HANDLED, exit code {done.returncode}: {done.stderr[-300:]}"
        print(f"{spare:5} MiB to be had: {output_text}{f' (after {tries} too large)' if tries else ''}")


def held() -> tuple[int, int, int]:
    """(weights alive, open files, MiB resident) in this process."""
    gc.collect()
    process = psutil.Process()
    weights = sum(type(one) is torch.nn.Parameter and not one.is_meta for one in gc.get_objects())
    return weights, process.num_fds(), process.memory_info().rss // MIB


def reloads(count: int) -> Iterator[tuple[int, int, int]]:
    """`held()` after each of so many loads, runs and drops, in fp32 and bf16 by turns."""
    x = torch.rand(1, 3, 128, 128)
    for i in range(count):
        ae = DCAE(DEMO, "cpu", ("fp32", "bf16")[i % 2])
        ae.decode(ae.encode(x))
        del ae
        yield held()


def changes(server, count: int, free: bool) -> Iterator[int]:
    """MiB resident of a running ComfyUI after each of so many workflows. Each loads another model than the one before;
    or with `free` all load the same, with /free in between."""
    import requests

    process = psutil.Process(server.process.pid)
    for i in range(count):
        dtype = "fp32" if free else ("fp32", "bf16")[i % 2]
        inputs = {"model": f"{DEMO} (bundled)", "variant": "auto", "dtype": dtype, "allow_download": False}
        latent = {"width": 128, "height": 128 + 32 * (i % 3), "batch_size": 1, "variant": "from vae", "vae": ["1", 0]}
        result = server.run(
            {
                "1": {"class_type": "DCAE_Loader", "inputs": inputs},
                "2": {"class_type": "DCAE_EmptyLatent", "inputs": latent},
                "3": {"class_type": "DCAE_Decode", "inputs": {"samples": ["2", 0], "vae": ["1", 0]}},
                "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
            }
        )
        assert result.error is None, result.error
        if free:
            body = {"unload_models": True, "free_memory": True}
            requests.post(f"{server.url}/free", json=body, timeout=60).raise_for_status()
        yield process.memory_info().rss // MIB


def squeezed(server, spare: int | None) -> str:
    """What becomes of 2048x2048 in a running ComfyUI that can have so many MiB more (None: no limit)."""
    process = psutil.Process(server.process.pid)
    hard = process.rlimit(psutil.RLIMIT_DATA)[1]
    status = Path(f"/proc/{process.pid}/status").read_text()
    held = int(status.partition("VmData:")[2].split()[0]) << 10
    inputs = {"model": f"{DEMO} (bundled)", "variant": "auto", "dtype": "fp32", "allow_download": False}
    links = {"pixels": ["2", 0], "vae": ["1", 0]}
    image = {"width": 2048, "height": 2048 + (spare or 0) % 5, "batch_size": 1, "color": 1}
    if spare is not None:
        process.rlimit(psutil.RLIMIT_DATA, (held + (spare << 20), hard))
    try:
        result = server.run(
            {
                "1": {"class_type": "DCAE_Loader", "inputs": inputs},
                "2": {"class_type": "EmptyImage", "inputs": image},
                "3": {
                    "class_type": "DCAE_Encode",
                    "inputs": {**links, "size_mode": "crop"},
                },
                "4": {"class_type": "SaveLatent", "inputs": {"samples": ["3", 0], "filename_prefix": "squeezed"}},
            }
        )
    finally:
        process.rlimit(psutil.RLIMIT_DATA, (hard, hard))
    return f"refused: {result.error.message.strip()}" if result.error else f"done, {result.outputs['3']['dcae'][0]}"


def comfyui(count: int) -> None:
    from tests.comfyui.server import Server

    with tempfile.TemporaryDirectory() as folder, Server(environ={"HF_HOME": folder}) as server:
        for what, free in (("changes of the model", False), ("times /free", True)):
            start, seen = time.monotonic(), list(changes(server, count, free))
            print(f"{count} {what}: MiB resident after each tenth {seen[::10]}, {time.monotonic() - start:.0f} s")
        for spare in (173, 601, 302, None):
            print(f"{f'{spare} MiB' if spare else 'all'} to be had: {squeezed(server, spare)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="+", choices=("memory", "reload", "comfyui"))
    parser.add_argument("--device", default="cpu", help="for memory: cpu or cuda")
    parser.add_argument("--count", type=int, default=100)
    arguments = parser.parse_args()
    print(f"## {machine(arguments.device)}")
    for what in arguments.what:
        print(f"\n# {what}")
        if what == "memory":
            memory(arguments.device)
        elif what == "reload":
            seen = list(reloads(arguments.count))
            print(f"{arguments.count} loads: (weights alive, open files, MiB resident) after each tenth {seen[::10]}")
        else:
            comfyui(arguments.count)


if __name__ == "__main__":
    main()
