"""`benchmarks/gpu.py`, which a user with a GPU is asked to run, on the CPU: so that it does not rot."""

import json
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def test_it_runs_and_reports(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--quick", "--out", str(tmp_path / "gpu")]
    ran = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-2000:]
    report = json.loads((tmp_path / "gpu.json").read_text())
    states = {check["check"]: check["state"] for check in report["checks"]}
    assert set(states.values()) == {"holds", "skipped"}
    assert [name for name, state in states.items() if state == "skipped"] == [
        "kernels, float32", "kernels, float16", "kernels, bfloat16", "memory that runs out",
    ]  # fmt: skip
    assert {row["way"] for row in report["rows"]} >= {"ours", "diffusers"} and report["rates"]["GB/s"] > 0
    assert all(row["difference"] < 0.05 for row in report["rows"])
