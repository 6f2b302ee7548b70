"""What goes wrong while a real ComfyUI runs: cancelled downloads, two users at once, models that come and go."""

import subprocess
import threading
import time

import pytest
from safetensors.torch import load_file

from benchmarks.faults import changes
from dcae_core import DCAE, DEMO, VARIANTS, checkpoint, images
from dcae_core.weights.hub import bundled
from tests.servers import PACK, python_of

from .prompts import BUNDLED, loaded, loader, message, node, photograph, pixels, save
from .server import comfyui_of, default_env

NAME = "dc-ae-f64c128-mix-1.0"
DOWNLOAD = f"{NAME} (download)"


@pytest.fixture
def folder(comfyui, hub):
    """A file on the stand-in for the hub, which is no DC-AE; what came of it is taken away again."""
    hub.files[f"{VARIANTS[NAME].repos[0]}/diffusion_pytorch_model.safetensors"] = bytes(3_000_000)
    folder = comfyui.base / "models" / "vae"
    yield folder
    hub.files.clear()
    hub.drip = hub.status = None
    for file in folder.glob(f"{NAME}*"):
        file.unlink()


def offered(comfyui) -> list[str]:
    return comfyui.object_info("DCAE_Loader")["input"]["required"]["model"][1]["options"]


def test_a_download_can_be_cancelled_and_what_came_is_no_choice(comfyui, hub, folder):
    hub.drip = (20_000, 0.05)
    before = offered(comfyui)

    def reported(kind: str, data: dict) -> None:
        if kind == "progress" and data.get("node") == "1" and data["value"] > 100_000:
            comfyui.interrupt()

    result = comfyui.run(loaded(DOWNLOAD, allow_download=True), reported=reported)
    assert result.interrupted
    (part,) = folder.glob("*.part")
    kept = part.stat().st_size
    assert 100_000 < kept < 3_000_000
    assert offered(comfyui) == before
    assert f"There is no '{part.name}' in models/vae" in message(comfyui, loaded(part.name))

    hub.drip = None
    reported = message(comfyui, loaded(DOWNLOAD, allow_download=True))
    assert f"{NAME}.safetensors is not a readable safetensors file" in reported
    assert hub.gets()[-1]["Range"] == f"bytes={kept}-"
    assert (folder / f"{NAME}.safetensors").stat().st_size == 3_000_000
    assert offered(comfyui) == before


def test_a_download_that_fails_says_why(comfyui, hub, folder):
    for status, says in ((503, "the server has a fault (503): try again later"), (403, "accept the terms")):
        hub.status = status
        reported = message(comfyui, loaded(DOWNLOAD, allow_download=True))
        assert says in reported and f"put it at {folder / NAME}.safetensors" in reported


def test_two_workflows_at_once(comfyui, tmp_path):
    """From two clients, with two models, while a third asks what a run would take."""
    state = load_file(bundled())
    state["decoder.conv_out.conv.bias"] += 0.2
    other = checkpoint.save(comfyui.base / "models" / "vae" / "brighter.safetensors", state, VARIANTS[DEMO])
    wanted, found, failed, prompts = [], {}, [], []
    for width, choice, path in ((320, BUNDLED, bundled()), (256, other.name, other)):
        name, original = photograph(comfyui, tmp_path, width, 192, f"at-once-{width}.png")
        prompts.append(
            {
                "1": node("LoadImage", image=name),
                "2": loader(choice),
                "3": node("DCAE_Encode", pixels=["1", 0], vae=["2", 0], size_mode="pad"),
                "4": node("DCAE_Decode", samples=["3", 0], vae=["2", 0]),
                "5": save(["4", 0], f"at-once-{width}"),
            }
        )
        ae = DCAE.from_file(path, None, "cpu", "fp32")
        wanted.append(images.to_host(ae.decode(ae.encode(images.from_host(original)))))

    def work(i: int) -> None:
        try:
            found[i] = pixels(comfyui.run(prompts[i]).images[0])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    asked = f"/dcae/plan?choice={BUNDLED}&direction=decode&width=4096&height=4096&batch=1&dtype=fp32"
    while any(thread.is_alive() for thread in threads):
        assert "4096x4096" in comfyui.get(asked).json()["text"]
        time.sleep(0.05)
    other.unlink()
    assert not failed
    for i in (0, 1):
        assert (found[i] - wanted[i]).abs().max() <= 1.01 / 255


@pytest.mark.parametrize("free", [False, True])
def test_models_that_come_and_go_leave_nothing(comfyui, free):
    """Eight times here; a hundred times, with what was seen: benchmarks/faults.py."""
    seen = list(changes(comfyui, 8, free))
    assert seen[-1] - seen[1] < 64, seen  # MiB; the weights of six are 79 or 105


def test_a_container_that_may_have_less_than_the_machine(tmp_path):
    """ComfyUI's own figure for a CPU is the machine's. Stand-ins for cgroups' files: a test can't set those."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (tmp_path / "cgroup").write_text("0::/mine\n")
    for name, text in {"memory.max": 40 << 20, "memory.current": 0, "memory.stat": "inactive_file 0"}.items():
        (mine / name).write_text(f"{text}\n")
    program = f"""
import importlib.util, sys
sys.path.insert(0, {str(comfyui_of(default_env()))!r})
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import utils.install_util
spec = importlib.util.spec_from_file_location("pack", {str(PACK / "__init__.py")!r})
sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["pack"])
from pathlib import Path
import torch
from pack.dcae_core import DCAE, hub
from pack.dcae_core.engine import memory
from pack.nodes.vae import DCAEVAE
vae = DCAEVAE(DCAE.from_file(hub.bundled(), device="cpu", dtype="fp32"))
for folder in (Path("nothing"), Path({str(tmp_path)!r})):
    memory.CGROUPS = folder / "cgroup", folder
    vae.encode(torch.rand(1, 1024, 1024, 3))
    print(vae.dcae.last_plan.strips, vae.dcae.last_plan.peak_bytes)
"""
    done = subprocess.run([python_of(default_env()), "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (few, wide), (many, peak) = (map(int, line.split()) for line in done.stdout.splitlines()[-2:])
    assert few < many
    assert peak <= 40 << 20 < wide
