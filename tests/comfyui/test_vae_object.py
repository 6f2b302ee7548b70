"""The Loader's VAE among nodes that do more with a VAE than to encode and decode."""

import shutil

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from dcae_core import DEMO
from dcae_core.weights import hub

from .prompts import loader, message, node, photograph, save


def prompt(name, **nodes):
    common = {
        "1": node("LoadImage", image=name),
        "2": loader(),
        "3": node("VAEEncode", pixels=["1", 0], vae=["2", 0]),
        "4": node("VAEDecode", samples=["3", 0], vae=["2", 0]),
        "5": save(["4", 0], "object"),
    }
    return common | nodes


def pictures(result):
    assert result.error is None
    return [np.array(Image.open(file)) for file in result.images]


def test_what_other_nodes_put_into_the_model_changes_nothing_and_is_said(comfyui, tmp_path):
    name, _ = photograph(comfyui, tmp_path, 96, 64, "object.png")
    before, log = pictures(comfyui.run(prompt(name)))[0], len(comfyui.log())
    reach = {
        "6": node("ReachesIntoVAE", vae=["2", 0], layer=""),
        "7": node("VAEEncode", pixels=["1", 0], vae=["6", 0]),
        "8": node("VAEDecode", samples=["7", 0], vae=["6", 0]),
        "9": save(["8", 0], "object"),
    }
    for picture in pictures(comfyui.run(prompt(name, **reach))):
        assert np.array_equal(picture, before)
    said = comfyui.log()[log:]
    for what in ("encoder", "decoder", "forward"):
        assert f"another node has set {what} of this VAE" in said
    assert "VAE Decode (Tiled)" in said


def test_a_node_for_another_vae_says_what_to_use_instead_and_ours_works_afterwards(comfyui, tmp_path):
    name, _ = photograph(comfyui, tmp_path, 96, 64, "object.png")
    before = pictures(comfyui.run(prompt(name)))[0]
    said = message(
        comfyui,
        prompt(name)
        | {
            "6": node("ReachesIntoVAE", vae=["2", 0], layer="conv_in"),
            "7": node("VAEDecode", samples=["3", 0], vae=["6", 0]),
            "8": save(["7", 0], "object"),
        },
    )
    assert "'conv_in'" in said
    assert "VAE Decode (Tiled)" in said and "budget_gib" in said
    assert np.array_equal(pictures(comfyui.run(prompt(name)))[0], before)


def test_what_newer_versions_of_comfyui_give_to_encode(comfyui, tmp_path):
    name, _ = photograph(comfyui, tmp_path, 96, 64, "object.png")
    more = {"6": node("EncodesAsNewerComfyUI", vae=["2", 0], pixels=["1", 0])}
    more |= {"7": node("VAEDecode", samples=["6", 0], vae=["2", 0]), "8": save(["7", 0], "object")}
    assert np.array_equal(*pictures(comfyui.run(prompt(name, **more))))


def test_the_model_itself_decodes_and_encodes(comfyui, tmp_path):
    name, _ = photograph(comfyui, tmp_path, 96, 64, "object.png")
    more = {
        "6": node("DecodesByFirstStage", vae=["2", 0], samples=["3", 0]),
        "7": save(["6", 0], "object"),
        "8": node("VAEEncode", pixels=["4", 0], vae=["2", 0]),
        "9": node("LatentSubtract", samples1=["8", 0], samples2=["6", 1]),
        "10": node("SaveLatent", samples=["9", 0], filename_prefix="object/difference"),
    }
    result = comfyui.run(prompt(name, **more))
    ours, directly = pictures(result)
    assert np.array_equal(ours, directly)
    (file,) = (comfyui.base / "output" / "object").glob("difference_*.latent")
    assert load_file(file)["latent_tensor"].abs().max() < 1e-4
    file.unlink()


def test_save_vae_writes_the_tensors_of_the_file_and_the_loader_reads_them(comfyui, tmp_path):
    name, _ = photograph(comfyui, tmp_path, 96, 64, "object.png")
    result = comfyui.run(prompt(name, **{"6": node("VAESave", vae=["2", 0], filename_prefix="vae/saved")}))
    before = pictures(result)[0]
    (file,) = (comfyui.base / "output" / "vae").glob("saved_*.safetensors")
    saved, original = load_file(file), load_file(hub.locate(DEMO)[0])
    assert saved.keys() == original.keys()
    assert all(torch.equal(saved[key], original[key]) for key in saved)
    models = comfyui.base / "models" / "vae"
    models.mkdir(parents=True, exist_ok=True)
    shutil.move(file, models / "saved_by_comfyui.safetensors")
    again = comfyui.run(prompt(name, **{"2": loader("saved_by_comfyui.safetensors")}))
    assert np.array_equal(pictures(again)[0], before)
    (models / "saved_by_comfyui.safetensors").unlink()


def mask_row(comfyui, name, size_mode, mask=("1", 1), **more):
    """The sampler's mask along the bottom row of latent pixels, as 0 and 1."""
    encode = node("DCAE_Encode", pixels=["1", 0], vae=["2", 0], size_mode=size_mode, mask=list(mask))
    result = comfyui.run(
        {
            "1": node("LoadImage", image=name),
            "2": loader(),
            "3": encode,
            "4": node("SamplerMask", samples=["3", 0]),
            "5": node("MaskToImage", mask=["4", 0]),
            "6": save(["5", 0], "mask"),
            **more,
        }
    )
    return (pictures(result)[0][-1, :, 0] > 127).astype(int).tolist()


def test_a_mask_is_padded_and_cropped_with_its_picture(comfyui, tmp_path):
    file = tmp_path / "masked.png"
    picture = Image.new("RGBA", (130, 130), (90, 120, 150, 255))
    picture.paste((90, 120, 150, 0), (96, 0, 130, 130))  # LoadImage's mask is white where alpha is 0
    picture.save(file)
    name = comfyui.upload_image(file)
    assert mask_row(comfyui, name, "pad") == [0, 0, 0, 1, 1]
    assert mask_row(comfyui, name, "crop") == [0, 0, 0, 1]
    half = {
        "7": node("MaskToImage", mask=["1", 1]),
        "8": node("ImageScale", image=["7", 0], width=65, height=65, upscale_method="area", crop="disabled"),
        "9": node("ImageToMask", image=["8", 0], channel="red"),
    }
    assert mask_row(comfyui, name, "pad", ("9", 0), **half) == [0, 0, 0, 1, 1]
