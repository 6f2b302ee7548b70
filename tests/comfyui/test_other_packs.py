"""docs/other-nodes.md, its part on other packs: every node of theirs with a VAE or LATENT has a row, and does what its
row says. $DCAE_PACKS_PATH names a folder with the packs, and with what they need of Python in its `site-packages`; the
command is in CONTRIBUTING.md. They are not part of this pack, and none of them is changed: copies run."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from .other_nodes import rows, types
from .other_packs import (
    BRIDGE,
    CONDS,
    GIVEN,
    HEIGHT,
    INJECT,
    LATENT,
    NO_VIDEO_TILES,
    OURS,
    REFUSED,
    SAME,
    SAMPLED,
    SEEDED,
    SIZED,
    VAE,
    WIDTH,
    WORKS,
    base,
    iterate,
    save_video,
    with_any_vae,
)
from .prompts import message, node, photograph, save
from .server import FP32, Server, default_env

PACKS = (
    "ComfyUI-KJNodes",
    "ComfyUI-Impact-Pack",
    "ComfyUI_essentials",
    "ComfyUI-TiledDiffusion",
    "comfyui-tooling-nodes",
)
ROWS = {pack: rows(pack) for pack in PACKS}
FOLDER = os.environ.get("DCAE_PACKS_PATH") and Path(os.environ["DCAE_PACKS_PATH"]).resolve()


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory):
    """A ComfyUI with copies of those packs that are there."""
    if not FOLDER:
        pytest.skip("$DCAE_PACKS_PATH names no folder with other packs")
    there = [FOLDER / pack for pack in PACKS if (FOLDER / pack).is_dir()]
    copies = tmp_path_factory.mktemp("packs")
    for pack in there:
        shutil.copytree(pack, copies / pack.name, ignore=shutil.ignore_patterns(".git"))
    stub = copies / "python" / "impact"  # Impact Pack imports this from a pack beside it
    stub.mkdir(parents=True)
    (stub / "subpack_nodes.py").write_text("NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS = {}, {}\n")
    with Server(
        env=default_env(),
        others=[*(copies / pack.name for pack in there), Path(__file__).parent / "standin_sana"],
        args=["--preview-method", "latent2rgb", *FP32],
        environ={"PYTHONPATH": os.pathsep.join([str(stub.parent), str(FOLDER / "site-packages")])},
    ) as server:
        yield server


@pytest.fixture(scope="module")
def nodes(comfyui):
    return comfyui.get("/object_info").json()


@pytest.fixture(scope="module")
def name(comfyui, tmp_path_factory):
    return photograph(comfyui, tmp_path_factory.mktemp("photograph"), WIDTH, HEIGHT, "packs.png")[0]


@pytest.fixture(scope="module")
def plain_vae(comfyui):
    """A VAE of Stable Diffusion's shape, with random weights."""
    from diffusers import AutoencoderKL
    from safetensors.torch import save_file

    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    vae = AutoencoderKL(block_out_channels=[128, 256, 512, 512], layers_per_block=2, **blocks).half()
    save_file(vae.state_dict(), comfyui.base / "models" / "vae" / "plain.safetensors")
    return node("VAELoader", vae_name="plain.safetensors")


def needed(prompt, last):
    """The part of a prompt that its last nodes need."""
    kept, todo = {}, list(last)
    while todo:
        one = todo.pop()
        if one not in kept:
            kept[one] = prompt[one]
            todo += [value[0] for value in prompt[one]["inputs"].values() if isinstance(value, list)]
    return kept


def run(comfyui, name, case, *outputs, **more):
    """Run a case's node "x" and nodes beside it, up to `outputs` of {"id": node}: pictures by the id of SaveImage."""
    prompt = base(name) | {"x": case} | more
    ends = [one for one in prompt if one in outputs or prompt[one]["class_type"] == "SaveImage"]
    result = comfyui.run(needed(prompt, ends))
    assert result.error is None, result.error.message
    of = {one: shown["images"][0] for one, shown in result.outputs.items() if "images" in shown}
    at = {one: comfyui.base / i["type"] / i["subfolder"] / i["filename"] for one, i in of.items()}
    return {one: np.array(Image.open(file)) for one, file in at.items() if file.suffix == ".png"}


TRIED_BELOW = {
    "PixelKSampleUpscalerProvider",
    "TwoSamplersForMaskUpscalerProvider",
    "ToBasicPipe",
    "DecodeAndSaveVideo",
}
TRIED_BELOW |= {"PreviewLatentNoiseMask", "ImpactLatentInfo", "EditBasicPipe"}


def needs(nodes, case, *more):
    """Skip where a node is not in the server, and say which pack has it."""
    for kind in (case["class_type"], *more):
        if kind not in nodes:
            pack = next((pack for pack, found in ROWS.items() if kind in found), "ComfyUI-Impact-Pack")
            pytest.skip(f"no {kind}: {pack} is not in $DCAE_PACKS_PATH, or did not load (see its log)")


def case_id(value):
    value = value[0] if isinstance(value, list) else value
    return value["class_type"] if isinstance(value, dict) else None


@pytest.mark.parametrize("pack", PACKS)
def test_every_node_has_a_row(nodes, pack):
    of = {kind: one for kind, one in nodes.items() if one["python_module"] == f"custom_nodes.{pack}"}
    if not of:
        pytest.skip(f"{pack} is not in $DCAE_PACKS_PATH, or did not load")
    takes = {kind for kind, one in of.items() if {"VAE", "LATENT"} & set(map(str, types(one).values()))}
    assert not takes - ROWS[pack].keys()


def test_every_row_is_tried():
    tried = {}
    for result, case, _ in SIZED:
        tried.setdefault(case["class_type"], set()).add(result)
    tried |= {case["class_type"]: {"kept"} for case in SAMPLED}
    tried |= {case[0]["class_type"]: {"same"} for _, case in SAME}
    tried |= {case["class_type"]: {"works"} for case, _ in WORKS}
    tried |= {case["class_type"]: {"no"} for case, _ in REFUSED}
    tried |= {kind: {"works"} for kind in TRIED_BELOW}
    claimed = {kind: set(result.split(" or ")) for found in ROWS.values() for kind, result in found.items()}
    assert {kind: of for kind, of in claimed.items() if of != {"not tried"}} == tried


def decoded(link):
    """DC-AE Decode and VAE Decode of a LATENT."""
    return {
        "true": node("DCAE_Decode", samples=link, vae=VAE),
        "whole": node("VAEDecode", samples=link, vae=VAE),
        "true-s": save(["true", 0], "packs/true"),
        "whole-s": save(["whole", 0], "packs/whole"),
    }


@pytest.mark.parametrize(("result", "case", "slot"), SIZED, ids=case_id)
def test_what_becomes_of_the_size(comfyui, nodes, name, result, case, slot):
    needs(nodes, case)
    pictures = run(comfyui, name, case, **decoded(["x", slot]))
    whole = pictures["whole-s"]
    assert whole.shape == (160, 160, 3)
    assert np.array_equal(pictures["true-s"], whole[:HEIGHT, :WIDTH] if result == "kept" else whole)


@pytest.mark.parametrize("case", SAMPLED, ids=case_id)
def test_the_size_is_kept_by_a_sampler_with_a_model_of_theirs(comfyui, nodes, name, case):
    needs(nodes, case)
    sampler = node("KSampler", model=OURS, latent_image=LATENT, **CONDS, **SEEDED)
    pictures = run(comfyui, name, case, sampler=sampler, **decoded(["sampler", 0]))
    assert np.array_equal(pictures["true-s"], pictures["whole-s"][:HEIGHT, :WIDTH])


def test_a_size_that_was_lost_can_be_given(comfyui, nodes, name):
    case = node("InjectNoiseToLatent", latents=LATENT, **INJECT)
    needs(nodes, case)
    more = decoded(OURS)
    more["true"]["inputs"] |= {"width": WIDTH, "height": HEIGHT}
    pictures = run(comfyui, name, case, **more)
    assert np.array_equal(pictures["true-s"], pictures["whole-s"][:HEIGHT, :WIDTH])


@pytest.mark.parametrize(("direction", "chain"), SAME, ids=case_id)
def test_the_result_is_that_of_comfyui_s_own_node(comfyui, nodes, name, direction, chain):
    needs(nodes, chain[0])
    log = len(comfyui.log())
    last = ["y" if chain[1:] else "x", 0]
    more = {"y": chain[1]} if chain[1:] else {}
    more |= {
        "our latent": node("VAEEncode", pixels=GIVEN, vae=VAE),
        "ours": node("VAEDecode", samples=LATENT, vae=VAE),
        "theirs": node("VAEDecode", samples=last, vae=VAE),
        "ours-s": save(["ours", 0], "packs/ours"),
        "theirs-s": save(last if direction == "decode" else ["theirs", 0], "packs/theirs"),
    }
    pictures = run(comfyui, name, chain[0], **more)
    assert np.array_equal(pictures["theirs-s"], pictures["ours-s"])
    said = comfyui.log()[log:]
    assert ("It is not used, and changes nothing" in said) == ("Preview" not in chain[0]["class_type"])
    after = run(comfyui, name, node("VAEDecode", samples=LATENT, vae=VAE), out=save(OURS, "packs/after"))
    assert np.array_equal(after["out"], pictures["ours-s"])


@pytest.mark.parametrize(("case", "size"), WORKS, ids=case_id)
def test_a_picture_of_the_right_size_comes_out(comfyui, nodes, name, case, size):
    needs(nodes, case, "ImpactDummyInput")
    picture = run(comfyui, name, case, out=save(OURS, "packs/out"))["out"]
    assert picture.shape == (*size, 3)
    if size == (HEIGHT, WIDTH):  # a part of it was painted
        given = run(comfyui, name, node("ImageInvert", image=GIVEN), out=save(GIVEN, "packs/given"))["out"]
        difference = np.abs(picture.astype(int) - given)
        assert difference[:8].max() <= 1 and difference[48:80, 48:80].mean() > 8


def test_upscaling_counts_8_pixels_for_a_latent_pixel(comfyui, nodes, name):
    case = iterate("IterativeLatentUpscale", "pixels", 8.0, samples=LATENT)
    needs(nodes, case)
    pictures = run(comfyui, name, case, **decoded(OURS))
    assert pictures["true-s"].shape == (320, 320, 3)


def test_a_basic_pipe_carries_the_vae(comfyui, nodes, name):
    case = node("EditBasicPipe", basic_pipe=["pipe", 0], vae=VAE)
    needs(nodes, case, "FromBasicPipe")
    out = {
        "from": node("FromBasicPipe", basic_pipe=OURS),
        "d": node("DCAE_Decode", samples=LATENT, vae=["from", 2]),
        "out": save(["d", 0], "packs/pipe"),
    }
    assert run(comfyui, name, case, **out)["out"].shape == (HEIGHT, WIDTH, 3)


def test_latent_info_counts_8_pixels_for_a_latent_pixel(comfyui, nodes, name):
    case = node("ImpactLatentInfo", value=LATENT)
    needs(nodes, case)
    prompt = base(name) | {"x": case, "out": node("PreviewAny", source=["x", 1])}
    assert comfyui.run(needed(prompt, ["out"])).outputs["out"]["text"] == ["40"]


def test_a_mask_is_shown(comfyui, nodes, name):
    case = node("PreviewLatentNoiseMask", latent=["masked", 0])
    needs(nodes, case)
    shown = run(comfyui, name, case, y=node("MaskToImage", mask=OURS), out=save(["y", 0], "packs/mask"))["out"]
    assert shown[40, 40, 0] == 255 and shown[100, 100, 0] == 0


def test_a_video_is_saved(comfyui, nodes, name):
    case = save_video(VAE, LATENT, NO_VIDEO_TILES)
    needs(nodes, case)
    run(comfyui, name, case, "x")
    (file,) = (comfyui.base / "output" / "packs").glob("video_*")
    assert file.stat().st_size > 1000


@pytest.mark.parametrize(("case", "part"), REFUSED, ids=case_id)
def test_what_does_not_work_says_so(comfyui, nodes, name, case, part):
    needs(nodes, case)
    outputs = nodes[case["class_type"]]["output"]
    prompt = base(name) | {"x": case}
    if "LATENT" in outputs:
        prompt |= decoded(OURS)
    else:
        prompt |= {"d": node("VAEDecode", samples=LATENT, vae=OURS), "true-s": save(["d", 0], "never")}
    assert part in message(comfyui, needed(prompt, ["true-s" if outputs else "x"]))


def test_a_bridge_without_vae_needs_other_channels(comfyui, nodes, name):
    case = node("PreviewBridgeLatent", latent=LATENT, **BRIDGE)
    needs(nodes, case)
    assert "not compatible with preview_method" in message(comfyui, needed(base(name) | {"x": case}, ["x"]))


@pytest.mark.parametrize("i", range(4), ids=lambda i: with_any_vae(VAE, LATENT)[i][0]["class_type"])
@pytest.mark.parametrize("of", ["dc-ae", "stable diffusion"])
def test_what_fails_fails_with_every_vae(comfyui, nodes, name, plain_vae, i, of):
    plain = {"plain": plain_vae, "encoded": node("VAEEncode", pixels=GIVEN, vae=["plain", 0])}
    case, part = with_any_vae(*((VAE, LATENT) if of == "dc-ae" else (["plain", 0], ["encoded", 0])))[i]
    needs(nodes, case)
    out = {} if nodes[case["class_type"]]["output_node"] else {"out": node("PreviewAny", source=OURS)}
    assert part in message(comfyui, needed(base(name) | plain | {"x": case} | out, ["out" if out else "x"]))


def test_other_vaes_can_be_merged(comfyui, nodes, name, plain_vae):
    case = node("VAEMergeKJ", vae_1=["plain", 0], vae_2=["plain", 0], ratio=0.5)
    needs(nodes, case)
    more = {
        "plain": plain_vae,
        "z": node("VAEEncode", pixels=GIVEN, vae=OURS),
        "d": node("VAEDecode", samples=["z", 0], vae=OURS),
        "out": save(["d", 0], "packs/merged"),
    }
    assert run(comfyui, name, case, **more)["out"].shape[2] == 3


def test_the_copies_that_were_tried_are_named():
    text = (Path(__file__).parents[2] / "docs" / "other-nodes.md").read_text(encoding="utf-8")
    assert len(re.findall(r"The copy of \d+ \w+ \d{4} \(`[0-9a-f]{7}`\)", text)) == len(PACKS)
