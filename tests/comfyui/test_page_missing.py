"""In a real browser: nodes of this pack in place of those of ComfyUI_ExtraModels, which is not here."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import requests
from PIL import Image

from .page import appears, canvas_only, dismiss, load, press, wait


def of_another_pack(*loaders: tuple[str, str]) -> dict:
    """A workflow with nodes of ComfyUI_ExtraModels: an ExtraVAELoader for each (vae_name, vae_type), the first of which
    decodes an EmptySanaLatentImage."""
    nodes = [
        {"type": "VAEDecode", "inputs": [("samples", "LATENT", 1), ("vae", "VAE", 2)], "outputs": [("IMAGE", [3])]},
        {"type": "SaveImage", "inputs": [("images", "IMAGE", 3)], "widgets_values": ["replaced"]},
        {"type": "EmptySanaLatentImage", "outputs": [("LATENT", [1])], "widgets_values": [96, 64, 2]},
    ]
    for i, (name, kind) in enumerate(loaders):
        links = [2] if i == 0 else []
        nodes.append({"type": "ExtraVAELoader", "outputs": [("VAE", links)], "widgets_values": [name, kind, "FP32"]})
    for i, node in enumerate(nodes):
        node |= {"id": i + 1, "pos": [60 + 330 * (i % 4), 60 + 250 * (i // 4)], "size": [310, 130], "order": i}
        node |= {"mode": 0, "flags": {}, "properties": {"Node name for S&R": node["type"]}}
        node["inputs"] = [{"name": a, "type": b, "link": c} for a, b, c in node.get("inputs", [])]
        node["outputs"] = [{"name": a, "type": a, "links": b} for a, b in node.get("outputs", [])]
    links = [[1, 3, 0, 1, 0, "LATENT"], [2, 4, 0, 1, 1, "VAE"], [3, 1, 0, 2, 0, "IMAGE"]]
    return {"version": 0.4, "last_node_id": len(nodes), "last_link_id": 3, "nodes": nodes, "links": links}


def suggestions(page) -> list[str]:
    """What the pack's note to the user says, which comes soon after a graph."""
    appears(page.get_by_text(NOTE).first, 1.5)
    said = re.findall(rf"(\w+){NOTE}(DC-AE [\w ]+) in its place", page.locator("body").inner_text())
    return sorted({" → ".join(one) for one in said})


def replaceable(page) -> list[str]:
    """What the page offers in the place of nodes that are not here."""
    press(page, "View details")
    page.get_by_text("missing", exact=False).or_(page.get_by_text("Swap Nodes")).first.wait_for()
    return sorted(re.findall(r"\bDCAE_\w+", page.locator("body").inner_text()))


@pytest.fixture
def replacing(page) -> Iterator[bool]:
    """Whether the page replaces nodes: ComfyUI 0.14 and newer. Notes of earlier tests are gone, and in the end the list
    of missing nodes is."""
    page.evaluate("const {toast} = app.extensionManager; toast.dismissAll ? toast.dismissAll() : toast.removeAll()")
    page.get_by_text(NOTE).first.wait_for(state="hidden")
    yield requests.get(f"{page.server.url}/node_replacements", timeout=30).ok
    dismiss(page)


NOTE = " is not installed: use "
DCAE, KL = "dcae-f32c32-sana-1.1-diffusers", "kl-f8"
LATENT, LOADER = "EmptySanaLatentImage → DC-AE Empty Latent", "ExtraVAELoader → DC-AE Loader"


def test_nodes_of_another_pack_are_replaced(page, replacing):
    """By the page's own button, and the graph runs; a page without it gets a note that names the nodes."""
    page.evaluate("workflow => app.loadGraphData(workflow)", of_another_pack(("mine.safetensors", DCAE)))
    if not replacing:
        assert suggestions(page) == [LATENT, LOADER]
        return
    assert suggestions(page) == []
    assert replaceable(page) == ["DCAE_EmptyLatent", "DCAE_Loader"]
    press(page, "Replace All")
    page.wait_for_function("app.graph._nodes.filter(n => n.comfyClass?.startsWith('DCAE_')).length === 2")
    assert "32 channels" in wait(page, "Loader", bool)
    made = page.evaluate("app.graphToPrompt().then(made => made.output)")
    model = {"model": "mine.safetensors", "variant": "auto", "dtype": "fp32", "allow_download": False}
    assert made["4"]["inputs"] == model
    result = page.server.run(made)
    assert result.error is None
    assert [Image.open(image).size for image in result.images] == [(96, 64)] * 2
    load(page)  # 1.58.1 draws no canvas any more after a replacement, of ComfyUI's own nodes too


@canvas_only
@pytest.mark.parametrize(
    ("loaders", "suggested", "offered"),
    [
        ([("mine.safetensors", KL)], [], []),
        ([("mit-han-lab/dc-ae-f32c32-sana-1.0-diffusers", KL)], [LOADER], ["DCAE_Loader"]),
        ([("mine.safetensors", DCAE), ("other.safetensors", KL)], [LOADER], []),
    ],
    ids=["another kind", "a repository", "both kinds"],
)
def test_a_loader_of_another_kind_of_vae_is_left_alone(page, replacing, loaders, suggested, offered):
    """The page replaces all nodes of a type or none: of both kinds none, and a note names the node."""
    page.evaluate("workflow => app.loadGraphData(workflow)", of_another_pack(*loaders))
    if not replacing:
        assert suggestions(page) == [LATENT, *suggested]
        return
    assert suggestions(page) == ([] if offered else suggested)
    assert replaceable(page) == ["DCAE_EmptyLatent", *offered]
