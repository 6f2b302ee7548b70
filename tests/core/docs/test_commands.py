"""The commands and the code of README.md and docs/, run page by page as a new user would: with the pack installed in
an environment of its own, beside photographs, with nothing in the cache; for README.md it is not installed yet. The hub
is a stand-in, and its weights are random; so is Sana."""

import json
import os
import re
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
from tests.core.docs.pages import PAGES, README, ROOT
from tests.core.standin_hub import COMMIT, StandinHub

NAMES = ("dc-ae-f32c32-sana-1.1", "dc-ae-f32c32-mix-1.0")
SANA = "Efficient-Large-Model/Sana_1600M_4Kpx_BF16_diffusers"
# What a block may need that is not here, and why it is not run.
NEEDS = {
    "a running ComfyUI": "tests/comfyui/test_workflows.py runs it",
    "comfy-cli and a running ComfyUI": "comfy-cli is not among the tests' packages; the block before does the same",
    "a Ray cluster with GPUs, and S3": "tests/core/batch runs the engine ray on one machine, without GPUs and S3",
    "a GPU": "tests/core/test_gpu_benchmark.py runs benchmarks/gpu.py on a stand-in for one",
}
MARKED = [(page, block) for page in PAGES for block in page.blocks if block.needs]
RUN = [page for page in PAGES if any(b.language in ("sh", "python") and not b.needs for b in page.blocks)]


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


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "safe.directory=*", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """(clone of the repository, environment variables) of somebody who has installed the pack beside torch and the
    rest."""
    base = tmp_path_factory.mktemp("user")
    clone = base / "clone"
    for name in git(ROOT, "ls-files").splitlines():
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    git(clone, "init", "-q")
    git(clone, "add", "-A")
    git(clone, "commit", "-qm", "all")
    venv.create(base / "venv", with_pip=True)
    python = base / "venv" / "bin" / "python"
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    mine = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    the_rest = [f"import site; site.addsitedir({path!r})" for path in sorted(paths)]  # torch and more
    (Path(mine) / "the-rest.pth").write_text("\n".join(the_rest))
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", clone], check=True)
    checkpoints = base / "torch" / "hub" / "checkpoints"  # weights of LPIPS and rFID that can't be read: a note says so
    checkpoints.mkdir(parents=True)
    for name in ("alexnet-owt-7be5be79.pth", "weights-inception-2015-12-05-6726825d.pth"):
        (checkpoints / name).write_bytes(b"")
    served = {f"{VARIANTS[name].repos[0]}/diffusion_pytorch_model.safetensors": weights(name, base) for name in NAMES}
    for file in small_vae(base / "taesd").iterdir():
        served[f"madebyollin/taesd/{file.name}"] = file.read_bytes()
    with StandinHub(served) as standin:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "DCAE_", "PYTHON"))}
        path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        more = {"PATH": path, "HF_ENDPOINT": standin.url, "TORCH_HOME": str(base / "torch")}
        yield clone, {**kept, **more}


def small_vae(folder: Path) -> Path:
    """An AutoencoderTiny in random weights."""
    from tests.core.compare.vaes import tiny  # imports diffusers

    torch.manual_seed(0)
    tiny(4).save_pretrained(folder)
    return folder


def with_sana(folder: Path, environ: dict[str, str]) -> dict[str, str]:
    """A tiny random Sana where huggingface_hub keeps the real one, and a DC-AE of it; the hub is not asked."""
    from tests import tiny_models  # imports diffusers

    cached = Path(environ["HOME"], ".cache", "huggingface", "hub", f"models--{SANA.replace('/', '--')}")
    tiny_models.sana().save_pretrained(cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    command = ["python", "-m", "dcae_core", "download", NAMES[0]]
    subprocess.run(command, cwd=folder, env=environ, capture_output=True, check=True)
    return environ | {"HF_HUB_OFFLINE": "1"}


def check_readme(folder: Path) -> None:
    for name in ("ComfyUI/custom_nodes/DC-AE", "sdnext/extensions/dcae"):
        assert (folder / name / "__init__.py").is_file()
    assert (folder / "dcae" / "demo-output" / "demo.png").is_file()
    assert Image.open(folder / "back.png").size == (100, 80)


def check_command_line(folder: Path) -> None:
    assert Image.open(folder / "latents" / "a-dcae.png").size == (100, 80)
    assert (folder / "report.html").stat().st_size > 1000
    assert {path.name for path in (folder / "folder").iterdir()} >= {"config.json"}


def check_comparing(folder: Path) -> None:
    assert (folder / "report.html").is_file() and (folder / "grid.png").is_file()
    models = json.loads((folder / "scores.json").read_text())["models"]
    assert len(models) == 3 and not any(one.get("error") for one in models)


def check_site(folder: Path) -> None:
    index = json.loads((folder / "site" / "search" / "search_index.json").read_text())["docs"]
    assert [one for one in index if "budget" in one["text"]]
    for page in ("index.html", "docs/budgets/index.html"):
        text = (folder / "site" / page).read_text(encoding="utf-8")
        used = [name for name in re.findall(r'(?:src|href)="([^"#?:]+)"', text) if not name.endswith("/")]
        assert len(used) > 5
        for name in used:
            assert (folder / "site" / page).parent.joinpath(name).exists(), name


# What a page makes.
CHECKS = {
    "README": check_readme,
    "command-line": check_command_line,
    "comparing": check_comparing,
    "contributing": check_site,
    "data-sets": lambda folder: [Image.open(folder / "back" / f"{i}.jpg.png") for i in (1, 2)],
    "diffusers": lambda folder: Image.open(folder / "house.png"),
    "python": lambda folder: Image.open(folder / "back.png"),
}


def test_what_is_not_run_is_listed():
    assert {block.needs for _, block in MARKED} == NEEDS.keys()
    assert all(block.language in ("sh", "python", "") for page in PAGES for block in page.blocks)
    # The page of host symbols has commands for sources of the hosts: .github/workflows/hosts.yml runs them.
    indented = {page.path.stem for page in PAGES if re.search(r"\n\n    \S", page.without_code)}
    assert indented <= {"host-symbols"}, "code without a fence is not run"


@pytest.mark.parametrize(("page", "block"), MARKED, ids=lambda one: getattr(one, "needs", str(one)))
def test_marked(page, block):
    pytest.skip(f"{page}: needs {block.needs}, and is not run: {NEEDS[block.needs]}")


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=str)
def test_page(page, user, tmp_path):
    clone, environ = user
    environ = environ | {"HOME": str(tmp_path)}  # where downloads go
    folder = tmp_path / "here"
    if page is README:  # which begins with cloning, and says how to install
        folder.mkdir()
        subprocess.run(["python", "-m", "pip", "uninstall", "-qy", "dcae"], env=environ, check=True)
    else:
        shutil.copytree(clone, folder)
    for name in ("photos", "ComfyUI/custom_nodes", "sdnext/extensions"):
        (folder / name).mkdir(parents=True)
    photograph = Image.open(ASSETS / "example.jpg")
    for i, name in enumerate(("a.jpg", "b.jpg", "photo.jpg", "my.jpg", "photos/1.jpg", "photos/2.jpg")):
        photograph.crop((100 * i, 50, 100 * i + 100, 130)).save(folder / name)
    shutil.copy(hub.bundled(), folder / "model.safetensors")
    small_vae(folder / "my-vae-folder")
    if page.path.stem == "diffusers":
        environ = with_sana(folder, environ)
    for block in page.blocks:
        if block.needs or not block.language:
            continue
        code = block.code.replace("URL-OF-THIS-REPOSITORY", str(clone))
        command = ["python", "-c"] if block.language == "python" else ["bash", "-euxo", "pipefail", "-c"]
        ran = subprocess.run([*command, code], cwd=folder, env=environ, capture_output=True, text=True, check=False)
        print(f"{code}\n{ran.stdout}{ran.stderr}")
        assert ran.returncode == 0
        assert "Warning" not in ran.stderr and "Traceback" not in ran.stderr
    if page.path.stem in CHECKS:
        CHECKS[page.path.stem](folder)
