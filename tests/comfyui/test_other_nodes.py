"""docs/other-nodes.md, its part on ComfyUI's own nodes: every one has a row, and does what its row says. What
becomes of the true size is tried in test_true_size.py, whose chains are held to the rows here."""

import numpy as np
import pytest
from PIL import Image

from .other_nodes import filled, rows, types
from .prompts import loader, message, node, photograph, save
from .test_true_size import CHAINS, STRAIGHT, WHOLE

OF_LATENTS, OF_VAES = rows("LATENT in ComfyUI"), rows("VAE in ComfyUI")
PINNED = "0.3.75"
SIZES = {  # result in the table: where the picture lies after the node, in the chains that end with it
    "kept": [{"kept"}],
    "follows": [{"follows"}, {"follows", "kept"}],
    "whole": [{"whole"}],
    "kept or whole": [{"kept", "whole"}],
    "follows or whole": [{"follows", "whole"}],
}
ENCODERS = {
    "VAEEncode": {},
    "VAEEncodeTiled": {"tile_size": 512, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8},
    "InpaintModelConditioning": {"noise_mask": True},
    "InstructPixToPixConditioning": {},
    "VAEEncodeForInpaint": {"grow_mask_by": 6},
}
DECODERS = {
    "VAEDecode": {},
    "VAEDecodeTiled": {"tile_size": 512, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8},
}


def core(comfyui):
    info = comfyui.get("/object_info").json()
    return {kind: of for kind, of in info.items() if not of["python_module"].startswith("custom_nodes")}


@pytest.mark.parametrize("of", ["LATENT", "VAE"])
def test_every_node_has_a_row(comfyui, of):
    version = comfyui.get("/system_stats").json()["system"]["comfyui_version"]
    nodes = {kind: one for kind, one in core(comfyui).items() if of in types(one).values()}
    if of == "LATENT":
        nodes = {kind: one for kind, one in nodes.items() if "LATENT" in one["output"]}
    lacking = sorted(nodes.keys() - (OF_LATENTS if of == "LATENT" else OF_VAES).keys())
    if lacking and version != PINNED:
        pytest.skip(f"docs/other-nodes.md has no row for these nodes of ComfyUI {version}: {', '.join(lacking)}")
    assert not lacking


def test_every_row_is_of_a_node(comfyui):
    later = {"LatentCutToBatch", "BatchLatentsNode", "ResolutionBucket"}
    assert not (OF_LATENTS.keys() | OF_VAES.keys()) - core(comfyui).keys() - later


@pytest.mark.parametrize("kind", [kind for kind, result in OF_LATENTS.items() if result in SIZES])
def test_the_size_is_tried_as_the_row_says(kind):
    areas = [area for nodes, area in CHAINS.values() if nodes and nodes[-1]["class_type"] == kind]
    found = {"kept" if area == STRAIGHT else "whole" if area == WHOLE else "follows" for area in areas}
    assert found in SIZES[OF_LATENTS[kind]]


@pytest.mark.parametrize("kind", sorted(kind for kind, result in {**OF_LATENTS, **OF_VAES}.items() if result == "no"))
def test_nodes_of_other_models_give_no_latent_for_dc_ae(comfyui, tmp_path, kind):
    name, _ = photograph(comfyui, tmp_path, 150, 140, "other.png")
    description = core(comfyui)[kind]
    links = {"VAE": ["2", 0], "IMAGE": ["1", 0], "LATENT": ["3", 0], "MASK": ["1", 1], "CONDITIONING": ["4", 1]}
    slot = description["output"].index("LATENT")
    prompt = {
        "1": node("LoadImage", image=name),
        "2": loader(),
        "3": node("DCAE_Encode", pixels=["1", 0], vae=["2", 0], size_mode="pad"),
        "4": node("StandInSana", outcome=["3", 0], channels=32, colours=False),
        "5": filled(kind, description, links),
        "6": node("DCAE_Decode", samples=["5", slot], vae=["2", 0]),
        "7": save(["6", 0], "never"),
    }
    said = message(comfyui, prompt)
    assert any(part in said for part in ("needs [batch, 32", "to unpack", "size", "Sizes", "number of dimensions")), (
        said
    )


@pytest.fixture(scope="module")
def coded(comfyui, tmp_path_factory):
    """The sizes of pictures that went through each of ENCODERS and DECODERS."""
    name, _ = photograph(comfyui, tmp_path_factory.mktemp("coded"), 150, 140, "coded.png")
    prompt = {
        "1": node("LoadImage", image=name),
        "2": loader(),
        "3": node("DCAE_Encode", pixels=["1", 0], vae=["2", 0], size_mode="pad"),
        "4": node("StandInSana", outcome=["3", 0], channels=32, colours=False),
    }
    info = core(comfyui)
    for kind, options in ENCODERS.items():
        links = {"IMAGE": ["1", 0], "VAE": ["2", 0], "MASK": ["1", 1], "CONDITIONING": ["4", 1]}
        prompt[kind] = filled(kind, info[kind], links)
        prompt[kind]["inputs"] |= options
        prompt[f"{kind}-d"] = node("DCAE_Decode", samples=[kind, info[kind]["output"].index("LATENT")], vae=["2", 0])
        prompt[f"{kind}-s"] = save([f"{kind}-d", 0], f"coded/{kind}")
    for kind, options in DECODERS.items():
        prompt[kind] = node(kind, samples=["3", 0], vae=["2", 0], **options)
        prompt[f"{kind}-s"] = save([kind, 0], f"coded/{kind}")
    assert comfyui.run(prompt).error is None
    folder = comfyui.base / "output" / "coded"
    return {kind: np.array(Image.open(folder / f"{kind}_00001_.png")) for kind in (*ENCODERS, *DECODERS)}


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_size_is_not_remembered_by_other_encoders(coded, kind):
    assert OF_VAES[kind] == "whole"
    side = 128 if kind == "VAEEncodeForInpaint" else 160
    assert coded[kind].shape == (side, side, 3)


def test_encoders_give_one_latent_and_decoders_one_picture(coded):
    assert OF_VAES["VAEDecode"] == OF_VAES["VAEDecodeTiled"] == "works"
    for kind in ("VAEDecodeTiled", "VAEEncode", "VAEEncodeTiled", "InpaintModelConditioning"):
        assert np.array_equal(coded[kind], coded["VAEDecode"]), kind
