"""Seconds and peak memory to load a file: `python benchmarks/loading.py [--variant f32c32] [--dtype bf16]`.

Writes random weights of the variant (f32c32: 1.29 GB in fp32) to a temporary file and loads it in a process of its own.
peak: the process's largest resident set beyond what it had with torch imported; pages of the file that are only mapped
are part of it. Linux.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.speed import NAMES
from benchmarks.streaming import machine
from dcae_core import VARIANTS, checkpoint
from dcae_core.model import Autoencoder

LOAD = """
import resource, sys, time
import torch
from dcae_core import DCAE

def resident(word):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 2**20 for line in file if line.startswith(word))

file, name, dtype = sys.argv[1:]
before, start = resident("VmRSS"), time.perf_counter()
ae = DCAE.from_file(file, name, "cpu", dtype)
seconds = time.perf_counter() - start
weights = sum(p.nbytes for p in ae.model.parameters()) / 2**30
print(f"{seconds:.2f} s, {weights:.2f} GiB of weights, peak {resident('VmHWM') - before:.2f} GiB")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", choices=NAMES, default="f32c32")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), nargs="+", default=("fp32", "bf16"))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    variant = VARIANTS[NAMES[arguments.variant]]
    model = Autoencoder(variant.architecture).state_dict()
    with tempfile.TemporaryDirectory() as folder:
        file = checkpoint.save(Path(folder) / "model.safetensors", model, variant)
        del model
        print(f"## loading {file.stat().st_size / 1e9:.2f} GB, {machine('cpu')}")
        for dtype in arguments.dtype:
            for _ in range(arguments.repeats):
                command = [sys.executable, "-c", LOAD, str(file), variant.name, dtype]
                done = subprocess.run(command, cwd=sys.path[0], capture_output=True, text=True, check=True)
                print(f"{dtype}:", done.stdout, end="")


if __name__ == "__main__":
    main()
