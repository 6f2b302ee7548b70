"""In a real browser: the pack's scripts in ComfyUI's page, its nodes in the search, a latent dropped on the graph."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import torch

from dcae_core import DEMO, latents, variants
from tests.servers import PACK

from .page import appears, canvas_only, dismiss, drop, load


@canvas_only
def test_a_dropped_latent_becomes_nodes(round_trip, page, tmp_path):
    file = latents.write(tmp_path / "a.safetensors", torch.zeros(1, 32, 3, 2), variants.find(DEMO), (90, 60))
    before = page.evaluate("app.graph._nodes.length")
    drop(page, file)
    page.wait_for_function(f"app.graph._nodes.length === {before} + 3")
    made = page.evaluate("app.graphToPrompt().then(made => made.output)")
    (load,) = [one for one in made.values() if one["class_type"] == "DCAE_LoadLatent"]
    assert load["inputs"]["latent"].startswith("a")
    assert sum(one["class_type"] == "DCAE_Loader" for one in made.values()) == 1, "the one that was there"
    result = page.server.run(made)
    assert result.error is None
    assert len([Path(image).stat().st_size for image in result.images]) == 2


@canvas_only
def test_scripts_are_small(page):
    """Under 50 kB together, and under 50 ms of the time that the page takes to load."""
    scripts = [path for path in page.server.get("/extensions").json() if page.server.pack_name in path]
    assert len(scripts) == len(set(scripts)) == len(list((PACK / "web").glob("*.js")))
    assert sum(len(page.server.get(path).content) for path in scripts) < 50_000
    costs = [page.cost, load(page), load(page)]
    assert statistics.median(costs) < 50, costs


def found(page, query: str) -> list[tuple[str, bool]]:
    """(What the page's node search finds, whether it can be seen without scrolling), in the page's order."""
    page.evaluate("app.graph.clear()")
    box = page.locator("input[role=combobox]:visible").first
    for _ in range(10):  # the first may come before the graph is drawn without nodes
        page.mouse.dblclick(750, 500)
        if appears(box, 1):
            break
    box.fill(query)
    options = page.locator("[role=option]:not(:empty), [data-testid=result-item]")
    options.filter(has_text=re.compile(query, re.I)).first.wait_for()
    page.wait_for_timeout(1000)
    return page.evaluate(
        """() => [...document.querySelectorAll('[role=option], [data-testid=result-item]')].map(one => {
            const {x, y, width, height} = one.getBoundingClientRect();
            const top = document.elementFromPoint(x + width / 2, y + height / 2);
            return [one.innerText.split("\\n")[0].trim(), Boolean(top) && one.contains(top)];
        })"""
    )


@canvas_only
def test_a_search_for_sana_and_for_vae(page):
    """Of "vae" the first page is ComfyUI's own: nodes whose names begin with it, and of these the most used."""
    seen = [name for name, visible in found(page, "sana") if visible]
    assert {"DC-AE Loader (Sana VAE)", "DC-AE Empty Latent (Sana)"} <= set(seen)
    dismiss(page)
    assert "DC-AE Loader (Sana VAE)" in [name for name, _ in found(page, "vae")]
    dismiss(page)
