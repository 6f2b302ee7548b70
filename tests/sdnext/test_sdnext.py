"""In a real SD.Next: every way to choose a DC-AE, and the pictures that result."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcae_core import VARIANTS, hub
from tests.servers import PACK, python_of

from .server import MODEL, RequestFailed, Server

OTHER = "Diffusers/other_sana_diffusers"
TUNED = "Diffusers/tuned_sana_diffusers"  # the other's weights with another scaling factor
FORMS = ("other-folder-1.0", "repository", "other_original.safetensors", "other_diffusers.safetensors")
SANA = f"Diffusers/{MODEL}"
SD = "Diffusers/tiny_sd"
DEEP = "Diffusers/deep_sana_diffusers"


@pytest.fixture(autouse=True)
def default_settings(sdnext: Server):
    sdnext.set(sd_model_checkpoint=SANA)
    sdnext.set(sd_vae="Default", dcae_budget=0, dcae_dtype="fp32")
    yield


@pytest.fixture(scope="module")
def pictures(sdnext: Server) -> dict[str, Image.Image]:
    """Pictures of diffusers' AutoencoderDC in SD.Next, with the weights of each checkpoint."""
    pictures = {}
    for checkpoint in (SANA, OTHER, TUNED):
        sdnext.set(sd_model_checkpoint=checkpoint)
        sdnext.set(sd_vae="Default")
        assert sdnext.status()["class"] == "AutoencoderDC"
        pictures[checkpoint] = sdnext.txt2img()[0][0]
    return pictures


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    return Image.open(hub.bundled().with_name("example.jpg")).convert("RGB").resize((256, 128))


def difference(one: Image.Image, other: Image.Image) -> tuple[int, float]:
    """Return the largest and the mean difference of two pictures, in 1/255."""
    assert one.size == other.size
    differences = np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int))
    return differences.max(), differences.mean()


def vae_in(infotext: str) -> str | None:
    return infotext.split("VAE: ")[1].split(",")[0] if "VAE: " in infotext else None


def check(sdnext: Server, expected: Image.Image, vae: str | None, tolerance: int = 1, **request) -> None:
    """Make a picture. Compare it with the expected one, and the VAE in its infotext with `vae`."""
    result, infotext = sdnext.txt2img(**request)
    assert difference(result[0], expected)[0] <= tolerance and vae_in(infotext) == vae


def test_the_checkpoints_differ(pictures):
    assert difference(pictures[SANA], pictures[OTHER])[1] > 2
    assert difference(pictures[TUNED], pictures[OTHER])[1] > 2


def test_the_list(sdnext):
    listed = sdnext.vaes()
    assert set(FORMS) <= set(listed)
    assert "model.safetensors" not in listed and "diffusion_pytorch_model.safetensors" not in listed
    assert not any(name.endswith("(download)") for name in listed), "in offline mode"
    sdnext.set(offline_mode=False)
    try:
        listed = sdnext.vaes()
        assert {f"{v.name} (download)" for v in VARIANTS.values() if v.repos} <= set(listed)
        sdnext.set(dcae_downloads=False)
        assert not any(name.endswith("(download)") for name in sdnext.vaes())
    finally:
        sdnext.set(offline_mode=True, dcae_downloads=True)


@pytest.mark.parametrize("form", FORMS)
def test_a_chosen_dcae_gives_diffusers_picture(sdnext, pictures, form):
    assert sdnext.set(sd_vae=form) == {"sd_vae": True}
    check(sdnext, pictures[OTHER], form.removesuffix(".safetensors"))
    status = sdnext.status()
    assert (status["active"], status["name"], status["variant"]) == (True, form, "dc-ae-f32c32-demo")
    assert status["layout"] == ("original" if form in ("repository", "other_original.safetensors") else "diffusers")
    assert status["scaling_factor"] == 1.322 and status["last_plan"].startswith("decode 256x128")
    assert status["last_peak_bytes"] > 256 * 128 * 4
    assert sdnext.set(sd_vae="Default") == {"sd_vae": True}
    check(sdnext, pictures[SANA], None, tolerance=0)
    assert not sdnext.status()["active"]


def test_a_network_that_is_not_published(sdnext, pictures):
    """A folder whose config has another factor, and whose file has a precision in its name."""
    assert "tuned" in sdnext.vaes() and not any("fp16" in name for name in sdnext.vaes())
    assert sdnext.set(sd_vae="tuned") == {"sd_vae": True}
    check(sdnext, pictures[TUNED], "tuned")
    status = sdnext.status()
    assert (status["variant"], status["scaling_factor"]) == ("tuned", 0.77)


def test_for_one_request(sdnext, pictures):
    check(sdnext, pictures[OTHER], "other_original", override_settings={"sd_vae": "other_original"})
    check(sdnext, pictures[SANA], None, tolerance=0)
    sdnext.set(sd_vae="other-folder-1.0")
    check(sdnext, pictures[SANA], None, tolerance=0, override_settings={"sd_vae": "Default"})
    check(sdnext, pictures[OTHER], "other-folder-1.0")


def test_at_a_checkpoint_change(sdnext, pictures):
    sdnext.set(sd_vae="other_original.safetensors")
    sdnext.set(sd_model_checkpoint=SD)
    assert not sdnext.status()["active"]
    sdnext.set(sd_model_checkpoint=SANA)
    assert sdnext.status()["name"] == "other_original.safetensors"
    assert difference(sdnext.txt2img()[0][0], pictures[OTHER])[0] <= 1


def test_a_broken_file_leaves_what_was(sdnext, pictures):
    sdnext.set(sd_vae="other_original.safetensors")
    assert sdnext.set(sd_vae="broken.safetensors") == {"sd_vae": False}
    assert "broken.safetensors" in sdnext.status()["problem"] and "cut short" in sdnext.status()["problem"]
    assert sdnext.get("/sdapi/v1/options")["sd_vae"] == "other_original.safetensors"
    with pytest.raises(RequestFailed, match="cut short"):
        sdnext.txt2img(override_settings={"sd_vae": "broken.safetensors"})
    assert sdnext.set(sd_vae="nothing of the kind") == {"sd_vae": False}
    check(sdnext, pictures[OTHER], "other_original")


def test_a_model_of_another_latent_space_refuses(sdnext):
    sdnext.set(sd_model_checkpoint=SD)
    before = sdnext.txt2img()[0][0]
    assert sdnext.set(sd_vae="other_original.safetensors") == {"sd_vae": False}
    assert "latent space" in sdnext.status()["problem"]
    assert sdnext.status()["class"] == "AutoencoderKL"
    with pytest.raises(RequestFailed, match="latent space"):
        sdnext.txt2img(override_settings={"sd_vae": "other_original.safetensors"})
    assert difference(sdnext.txt2img()[0][0], before)[0] == 0


def test_a_setting_from_another_model_is_tolerated(sdnext):
    """A model that the chosen DC-AE does not fit loads with its VAE, and requests can override the setting."""
    sdnext.set(sd_vae="other_original.safetensors")
    sdnext.set(sd_model_checkpoint=SD)
    result, infotext = sdnext.txt2img(override_settings={"sd_vae": "Default"})
    assert len(result) == 1 and vae_in(infotext) is None


def test_picture_to_picture(sdnext, photograph):
    sdnext.set(sd_vae="other_original.safetensors")

    def variation(strength, image=photograph):
        return sdnext.img2img(image, denoising_strength=strength, steps=10)[0][0]

    distances = [difference(variation(strength), photograph)[1] for strength in (0.1, 0.4, 0.9)]
    assert distances == sorted(distances) and distances[2] > 1.5 * distances[0]
    turned = photograph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert difference(variation(0.1, turned), turned)[1] < difference(variation(0.1, turned), photograph)[1]
    sdnext.set(sd_vae="Default")
    assert difference(variation(0.1), photograph)[1] < difference(variation(0.9), photograph)[1]


def test_default_after_picture_to_picture(sdnext, pictures, photograph):
    """SD.Next changes the pipeline's class for picture to picture, and loses track of the first VAE."""
    sdnext.set(sd_vae="other_original.safetensors")
    sdnext.img2img(photograph, denoising_strength=0.3)
    sdnext.set(sd_vae="Default")
    assert difference(sdnext.txt2img()[0][0], pictures[SANA])[0] == 0


@pytest.mark.parametrize("vae", ["Default", "other_original.safetensors"])
@pytest.mark.parametrize("size", [(128, 256), (64, 64), (32, 96), (96, 32)])
def test_small_pictures_have_their_size(sdnext, vae, size):
    sdnext.set(sd_vae=vae)
    assert sdnext.txt2img(width=size[0], height=size[1])[0][0].size == size


def test_budget(sdnext, pictures):
    sdnext.set(sd_vae="other_original.safetensors", dcae_budget=0.0001)
    with pytest.raises(RequestFailed, match=r"needs at least [\d.]+ GiB") as error:
        sdnext.txt2img(width=512, height=512)
    needed = float(str(error.value).split("needs at least ")[1].split(" GiB")[0])
    sdnext.set(dcae_budget=needed)
    assert sdnext.txt2img(width=512, height=512)[0][0].size == (512, 512)
    assert "strips" in sdnext.status()["last_plan"]
    assert sdnext.status()["last_peak_bytes"] <= needed * 2**30


def test_small_pictures_at_ratio_128(sdnext):
    sdnext.set(sd_model_checkpoint=DEEP)
    for size in ((512, 512), (128, 384), (256, 128)):
        assert sdnext.txt2img(width=size[0], height=size[1])[0][0].size == size


def test_a_request_leaves_nothing_behind(sdnext, pictures):
    """Even if the setting that SD.Next restores does not fit this model, but was left by another."""
    sdnext.set(sd_model_checkpoint=SD)
    assert sdnext.set(sd_vae="not_dcae") == {"sd_vae": True}
    try:
        sdnext.set(sd_model_checkpoint=SANA)
        check(sdnext, pictures[OTHER], "other_original", override_settings={"sd_vae": "other_original"})
        assert not sdnext.status()["active"]
        check(sdnext, pictures[SANA], None, tolerance=0)
        sdnext.set(sd_vae="Default")
        assert sdnext.set(sd_vae="not_dcae") == {"sd_vae": False}, "chosen for this model, not left"
        assert "has to be a DC-AE" in sdnext.status()["problem"]
        request = {"sd_model_checkpoint": SD, "sd_vae": "not_dcae"}
        assert len(sdnext.txt2img(override_settings=request)[0]) == 1
        assert sdnext.status()["pipeline"] == "SanaPipeline"
    finally:
        sdnext.set(sd_vae="Default")


def test_picture_to_picture_in_too_small_a_budget(sdnext, photograph):
    sdnext.set(sd_vae="other_original.safetensors", dcae_budget=0.0001)
    with pytest.raises(RequestFailed, match=r"encode of 256x128 .* needs at least [\d.]+ GiB"):
        sdnext.img2img(photograph, denoising_strength=0.3)


@pytest.mark.parametrize("upscaler", ["Latent Nearest", "Resize Lanczos"])
def test_hires(sdnext, upscaler):
    sdnext.set(sd_vae="other_original.safetensors")
    second = {"enable_hr": True, "hr_scale": 2.0, "hr_resize_mode": 1, "hr_upscaler": upscaler, "hr_force": True}
    result = sdnext.txt2img(**second, hr_second_pass_steps=4, denoising_strength=0.4)[0][0]
    assert result.size == (512, 256)


def test_several_at_once(sdnext, pictures):
    sdnext.set(sd_vae="other_original.safetensors")
    result, _ = sdnext.txt2img(batch_size=2)
    assert [picture.size for picture in result] == [(256, 128)] * 2 and difference(*result)[1] > 1
    assert difference(result[0], pictures[OTHER])[0] <= 1


def test_precision(sdnext):
    sdnext.set(sd_vae="other_original.safetensors")
    for dtype, name in (("bf16", "bfloat16"), ("fp32", "float32")):
        sdnext.set(dcae_dtype=dtype)
        assert sdnext.status()["dtype"] == name
        assert sdnext.txt2img(width=64, height=64)[0][0].size == (64, 64)


@pytest.mark.parametrize("mode", ["model", "balanced"])
def test_offload(needs_sdnext, mode):
    """A DC-AE chosen at start-up, in SD.Next's offload modes. On a CPU the hooks exist but move nothing.

    Not "sequential": a stock SD.Next on a CPU can't run its text encoder in it. tests/core/test_integrations.py covers
    what it does to a VAE."""
    with Server(options={"sd_vae": "other_original.safetensors", "diffusers_offload_mode": mode}) as server:
        assert server.status()["name"] == "other_original.safetensors"
        chosen = server.txt2img()[0][0]
        server.set(sd_model_checkpoint=OTHER)
        server.set(sd_vae="Default")
        assert not server.status()["active"]
        assert difference(server.txt2img()[0][0], chosen)[0] <= 1
        server.set(sd_vae="other_diffusers.safetensors")
        assert difference(server.txt2img()[0][0], chosen)[0] <= 1


def test_recognisable_names(needs_sdnext):
    """The VAE in a pipeline's folder has the pipeline's name. A file at the top keeps its name."""
    server = Server()
    (server.vae_folder / "pipeline").mkdir()
    shutil.copytree(server.vae_folder / "other-folder-1.0", server.vae_folder / "pipeline" / "vae")
    shutil.copy(server.vae_folder / "other_diffusers.safetensors", server.vae_folder / "model.safetensors")
    with server:
        listed = [name for name in server.vaes() if not name.endswith("(download)")]
        assert sorted(listed) == sorted(
            [*FORMS, "tuned", "broken.safetensors", "not_dcae", "model.safetensors", "pipeline"]
        )
        assert server.set(sd_vae="pipeline") == {"sd_vae": True}
        assert server.status()["active"]


def test_a_version_that_lacks_a_symbol(needs_sdnext, tmp_path):
    """The extension turns itself off and logs why. SD.Next works as without it."""
    scripts = tmp_path / "old" / "scripts"
    scripts.mkdir(parents=True)
    entry = (PACK / "scripts" / "dcae.py").read_text()
    entry = entry.replace("Path(__file__).resolve().parent", f"Path({str(PACK / 'scripts')!r})")
    change = "from dcae_sdnext import host\nhost.SYMBOLS['modules.sd_vae'] += ('renamed_since',)\n"
    (scripts / "dcae.py").write_text(entry.replace("\ndcae_sdnext.install()", f"\n{change}dcae_sdnext.install()"))
    with Server(pack=scripts.parent) as server:
        assert "has no modules.sd_vae.renamed_since" in " ".join(server.log().split())
        assert server.txt2img()[0][0].size == (256, 128)
        with pytest.raises(RequestFailed, match="404"):
            server.status()


PROBE = """
import sys
from modules import processing_vae, script_callbacks, sd_vae, shared


def add(demo, app):
    def undo():
        sys.modules["dcae_sdnext.hooks"].uninstall()
        replaced = (sd_vae.refresh_vae_list, sd_vae.load_vae, sd_vae.reload_vae_weights, processing_vae.vae_decode)
        return [f.__name__ for f in replaced if hasattr(f, "dcae_original")]

    shared.api.add_api_route("/probe", undo, methods=["GET"])


script_callbacks.on_app_started(add)
"""


def test_all_can_be_undone(needs_sdnext):
    server = Server(options={"sd_vae": "other_original.safetensors"})
    probe = server.data / "extensions" / "probe" / "scripts" / "probe.py"
    probe.parent.mkdir(parents=True)
    probe.write_text(PROBE)
    with server:
        assert server.status()["active"]
        assert server.get("/probe") == []
        assert not server.status()["active"] and server.status()["class"] == "AutoencoderDC"
        assert "repository" not in server.vaes()
        assert server.txt2img()[0][0].size == (256, 128)


def test_install_has_nothing_to_do(needs_sdnext):
    """SD.Next runs it at every start, with its own Python."""
    start = time.monotonic()
    process = subprocess.run([python_of(Path(os.environ["DCAE_SDNEXT_ENV"])), PACK / "install.py"], capture_output=True)
    assert (process.returncode, process.stdout) == (0, b"")
    assert time.monotonic() - start < 20
