"""The commands of the README's section "Command line", and the code of "Python", run in order as a new user would: the
pack installed in an environment of its own, an empty folder with photographs, nothing in the cache. The hub is a
stand-in, and its weights are random."""

import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
import torch
from PIL import Image

from dcae_core import VARIANTS, hub, model
from dcae_core.files import ASSETS
from dcae_core.weights import checkpoint
from tests.core.standin_hub import StandinHub

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NAMES = ("dc-ae-f32c32-sana-1.1", "dc-ae-f32c32-mix-1.0")


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def weights(name: str, path: Path) -> bytes:
    """A file of the published shape and keys; random, and small enough that nothing overflows in fp16."""
    generator, made = torch.Generator().manual_seed(0), {}
    with torch.device("meta"):
        tensors = model.Autoencoder(VARIANTS[name].architecture).state_dict()
    for key, tensor in tensors.items():
        if tensor.ndim > 1:
            made[key] = torch.empty(tensor.shape).normal_(0, tensor[0].numel() ** -0.5, generator=generator).half()
        else:
            made[key] = torch.full(tensor.shape, 0.5 if key.endswith(("var", "norm.weight")) else 0.0).half()
    return checkpoint.save(path / f"{name}.safetensors", made, VARIANTS[name], "diffusers").read_bytes()


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """(folder, environment variables) of somebody who has just run `pip install .`, beside torch and the rest."""
    base = tmp_path_factory.mktemp("user")
    source, folder = base / "source", base / "pictures"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if (ROOT / name).is_file() and name.startswith(("dcae", "pyproject", "README", "LICENSE", "requirements")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    venv.create(base / "venv", with_pip=True)
    python = base / "venv" / "bin" / "python"
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    mine = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    (Path(mine) / "the-rest.pth").write_text("\n".join(paths))  # torch and the rest
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", source], check=True)
    (folder / "photos").mkdir(parents=True)
    photograph = Image.open(ASSETS / "example.jpg")
    for i, name in enumerate(("a.jpg", "b.jpg", "photo.jpg", "photos/1.jpg", "photos/2.jpg")):
        photograph.crop((100 * i, 50, 100 * i + 100, 130)).save(folder / name)
    shutil.copy(hub.bundled(), folder / "model.safetensors")
    served = {f"{VARIANTS[name].repos[0]}/diffusion_pytorch_model.safetensors": weights(name, base) for name in NAMES}
    with StandinHub(served) as standin:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "DCAE_", "PYTHON"))}
        path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        yield folder, {**kept, "PATH": path, "HOME": str(base), "HF_ENDPOINT": standin.url}


def test_the_command_line(user):
    folder, environ = user
    lines = [line[4:].partition("  #")[0] for line in section("Command line").splitlines() if line.startswith("    ")]
    installs = [line for line in lines if line.startswith("pip install ")]  # done, or there
    lines = [line for line in lines if line not in installs]
    assert len(installs) == 2 and len(lines) >= 9
    for line in lines:
        command = shlex.split(line)
        ran = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
        print(f"$ {line}\n{ran.stdout}{ran.stderr}")
        assert ran.returncode == 0, (line, ran.stdout, ran.stderr)
        assert "Warning" not in ran.stderr and "Traceback" not in ran.stderr
    assert Image.open(folder / "latents" / "a-dcae.png").size == (100, 80)
    assert (folder / "report.html").stat().st_size > 1000
    assert {path.name for path in (folder / "folder").iterdir()} >= {"config.json"}


def test_python(user):
    folder, environ = user
    (code,) = re.findall(r"```python\n(.*?)```", section("Python"), re.DOTALL)
    ran = subprocess.run(["python", "-c", code], cwd=folder, env=environ, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert Image.open(folder / "back.png").size == (100, 80)
