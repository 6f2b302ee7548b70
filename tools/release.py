"""A release without publishing it: what the registry and a package index would get is made, installed and run.

    pip install build comfy-cli
    python tools/release.py FOLDER [--tag v1.2.3] [--torch torch==2.13.0] [--pythons PYTHON...]

FOLDER gets `dist`, a wheel and an sdist, and `node`, the registry's package unpacked. Each of `dist` is installed into
a clean environment of each PYTHON (default: this one), where `dcae demo` runs. The node pack in a real ComfyUI is left:

    DCAE_PACK=FOLDER/node pytest tests/comfyui/test_workflows.py
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
COMFY = Path(sys.executable).with_name("comfy" + (".exe" if os.name == "nt" else ""))


def run(*command: str | Path, cwd: Path = REPO) -> str:
    """Run a command to its end and return what it printed; end the program if it fails."""
    print("$", *command, flush=True)
    start = time.monotonic()
    done = subprocess.run(list(map(str, command)), cwd=cwd, stdin=subprocess.DEVNULL, text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\nThat failed with exit code {done.returncode}. Nothing was published.")
    print(f"  {time.monotonic() - start:.0f} s", flush=True)
    return done.stdout


def check_tag(tag: str, version: str) -> None:
    """End the program unless this tag may name this version."""
    heading = next(
        line for line in (REPO / "CHANGELOG.md").read_text(encoding="utf-8").splitlines() if line[:3] == "## "
    )
    if tag != f"v{version}":
        sys.exit(f"The tag is {tag}, but pyproject.toml says {version}: change one of them.")
    if not heading.startswith(f"## {version} (20"):
        sys.exit(f"CHANGELOG.md begins with {heading!r}: for a tag it must be '## {version} (YYYY-MM-DD)'.")


def try_package(package: Path, python: str, torch: str, version: str) -> None:
    """Install a package into a clean environment, and run the demo where nothing of this repository is."""
    with tempfile.TemporaryDirectory() as folder:
        run(python, "-m", "venv", "env", cwd=Path(folder))
        scripts = Path(folder, "env", "Scripts" if os.name == "nt" else "bin")
        run(scripts / "python", "-m", "pip", "install", "-q", torch, package, cwd=Path(folder))
        printed = run(scripts / "dcae", "--version", cwd=Path(folder)) + run(scripts / "dcae", "demo", cwd=Path(folder))
        print(printed)
        if f"dcae {version}\n" not in printed or not Path(folder, "demo-output", "demo.png").is_file():
            sys.exit(f"{package.name} is not version {version}, or its demo wrote no picture.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tag", help="the release's; must be the version")
    parser.add_argument("--torch", default="torch", help="what pip installs first")
    parser.add_argument("--pythons", nargs="+", metavar="PYTHON", default=[sys.executable])
    arguments = parser.parse_args()
    shutil.rmtree(dist := arguments.folder.resolve() / "dist", ignore_errors=True)
    shutil.rmtree(node := arguments.folder.resolve() / "node", ignore_errors=True)

    run(sys.executable, "-m", "build", "--outdir", dist)
    wheel, sdist = sorted(dist.iterdir(), key=lambda path: path.suffix != ".whl")
    version = wheel.name.split("-")[1]
    if arguments.tag:
        check_tag(arguments.tag, version)
    for step in ("validate", "pack"):
        run(COMFY, "--skip-prompt", "--no-enable-telemetry", "node", step)
    with zipfile.ZipFile(REPO / "node.zip") as archive:
        archive.extractall(node)
    for python in arguments.pythons:
        for package in (wheel, sdist):
            try_package(package, python, arguments.torch, version)
    print(f"Whole: {wheel.name}, {sdist.name} and {node}.")


if __name__ == "__main__":
    main()
