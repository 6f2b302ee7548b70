"""A host's server that tests start and end: what ComfyUI's and SD.Next's have in common."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import requests

PACK = Path(__file__).resolve().parent.parent
# What a host loads: this checkout, or the package that tools/release.py made.
LOADED = Path(os.environ.get("DCAE_PACK") or PACK)


class HostServer:
    """A process with a folder of its own, `base` (kept; None: a temporary one, which goes with it), on 127.0.0.1."""

    name = "The server"

    def __init__(self, env: Path, base: Path | None, port: int, log_name: str):
        self.env, self.keep = env, base is not None
        self.base = Path(base).resolve() if base else Path(tempfile.mkdtemp(prefix="host-")).resolve()
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_file = self.base / log_name
        self.process: subprocess.Popen | None = None

    def start(self, timeout: float = 300):
        """Start it and wait until it answers; RuntimeError with the end of its log if it does not."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Whether it answers as it should; may raise requests' errors."""
        raise NotImplementedError

    def launch(self, command: Sequence, cwd: Path, environ: Mapping[str, str], timeout: float) -> None:
        """Start the process and wait until `is_ready`."""
        inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                cwd=cwd,
                env={**inherited, "PYTHONUNBUFFERED": "1", **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait(time.monotonic() + timeout)
        except BaseException:
            self.stop()
            raise

    def _wait(self, deadline: float) -> None:
        while True:
            try:
                if self.is_ready() and self.process.poll() is None:
                    return
            except requests.RequestException:
                pass
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended at its start. {self.tail()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not answer in time. {self.tail()}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it, if it runs; a temporary folder goes with it."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if not self.keep:
            shutil.rmtree(self.base, ignore_errors=True)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def log(self) -> str:
        """All that it has printed so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.is_file() else ""

    def tail(self) -> str:
        return "The end of its log:\n" + "\n".join(self.log().splitlines()[-40:])


def python_of(env: Path) -> Path:
    """The Python of a virtual environment."""
    return env / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
