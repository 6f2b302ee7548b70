"""These run in a process of their own, which `tests/core/engine/test_gpu_path.py` starts: a device that stands in for a
GPU is there for the whole process, and torch would choose it everywhere."""

import os

collect_ignore_glob = [] if os.environ.get("DCAE_GPU_PATH") else ["test_*.py"]
