"""What is known of the path on a GPU without one: `tests/gpu`, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).resolve().parents[3]


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < "2.7", reason="fake CUDA tensors of torch 2.6 ask for a driver")
def test_the_path_on_a_gpu(tmp_path):
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests/gpu"]
    variables = {**os.environ, "DCAE_GPU_PATH": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    ran = subprocess.run(command, cwd=REPO, env=variables, capture_output=True, text=True, timeout=900)
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
