"""In a real browser: what the pack adds to ComfyUI's page, in its old frontend and a new one, canvas and Nodes 2.0."""

from __future__ import annotations

import base64
import json
import shutil
import time
from pathlib import Path

import pytest
import requests
import torch

from dcae_core import DEMO, latents, variants

from .server import Server, default_env

PAGES = {
    "1.32.9, canvas": ([], False),
    "1.32.9, Nodes 2.0": ([], True),
    "1.58.1, canvas": (["--front-end-root", str(default_env() / "frontend")], False),
    "1.58.1, Nodes 2.0": (["--front-end-root", str(default_env() / "frontend")], True),
}


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser to test in")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no Chromium (on Debian: apt install chromium): no browser to test in")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=PAGES)
def page(request, browser):
    """ComfyUI's page; `page.server` is its server, `page.complaints` what its console said of ours."""
    arguments, vue = PAGES[request.param]
    with Server(args=arguments) as server:
        for name, value in {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": vue}.items():
            requests.post(f"{server.url}/settings/{name}", json=value, timeout=30).raise_for_status()
        page = browser.new_page(viewport={"width": 1500, "height": 900})
        page.server, page.complaints, page.vue = server, [], vue
        page.on("pageerror", lambda error: page.complaints.append(str(error.stack or error)))
        page.on("console", lambda one: page.complaints.append(f"{one.type} {one.text} {one.location['url']}"))
        page.goto(server.url)
        page.wait_for_function("window.app?.extensions?.some(e => e.name === 'dcae')", timeout=120_000)
        page.wait_for_function("window.app.graph && document.querySelector('canvas')")
        time.sleep(2)
        yield page
        assert not [one for one in page.complaints if f"extensions/{server.pack_name}/" in one or "/dcae/" in one]
        page.close()


@pytest.fixture(autouse=True)
def template(page):
    """The round trip, as opened from the template browser."""
    listed = page.server.get("/workflow_templates").json()
    assert "round_trip" in listed[page.server.pack_name]
    workflow = page.server.get(f"/api/workflow_templates/{page.server.pack_name}/round_trip.json").json()
    page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
    wait(page, "Loader", lambda text: "factor" in text)


def line(page, kind: str) -> str:
    """What a node's line says; it must be on the page, and in Nodes 2.0 within the node."""
    return page.evaluate(
        """kind => {
            const node = app.graph._nodes.find(n => n.comfyClass === `DCAE_${kind}`);
            return node.dcae.element.isConnected ? node.dcae.element.textContent : '';
        }""",
        kind,
    )


def wait(page, kind: str, condition, seconds: float = 60) -> str:
    deadline = time.monotonic() + seconds
    while not condition(text := line(page, kind)):
        assert time.monotonic() < deadline, f"{kind} says {text!r}"
        time.sleep(0.2)
    return text


def change(page, kind: str, widget: str, value) -> None:
    page.evaluate(
        """([kind, name, value]) => {
            const node = app.graph._nodes.find(n => n.comfyClass === `DCAE_${kind}`);
            const widget = node.widgets.find(w => w.name === name);
            widget.value = value;
            widget.callback?.(value);
        }""",
        [kind, widget, value],
    )


def test_lines_before_and_after(page, tmp_path):
    assert line(page, "Loader") == f"{DEMO} · 32x · 32 channels · factor 1.322 · 9.2 MB · diffusers keys"
    for kind in ("Encode", "Decode"):
        text = wait(page, kind, lambda text: "1024x672" in text)
        assert "whole · peak" in text and not text.endswith(" s")
    page.evaluate("app.queuePrompt(0, 1)")
    for kind in ("Encode", "Decode"):
        assert wait(page, kind, lambda text: text.endswith(" s")).startswith("1024x672 · ")
    change(page, "Decode", "budget_gib", 0.04)
    assert "strips" in wait(page, "Decode", lambda text: not text.endswith(" s"))
    page.evaluate("app.queuePrompt(0, 1)")
    assert "strips" in wait(page, "Decode", lambda text: text.endswith(" s"))
    if page.vue:
        assert (
            page.locator(".lg-node .dcae-line").count() == 3 or page.locator("[data-node-id] .dcae-line").count() == 3
        )
    page.screenshot(path=tmp_path / "page.png")


def test_three_errors(page):
    change(page, "Decode", "budget_gib", 0.01)
    page.evaluate("app.queuePrompt(0, 1)")
    wait(page, "Decode", lambda text: "budget" in text and "includes the weights" in text)
    dismiss(page)
    change(page, "Decode", "budget_gib", 0)
    change(page, "Loader", "model", "gone.safetensors")
    wait(page, "Loader", lambda text: "There is no 'gone.safetensors' in models/vae" in text)
    page.evaluate("app.queuePrompt(0, 1).catch(() => {})")
    wait(page, "Loader", lambda text: "gone.safetensors" in text)
    dismiss(page)
    change(page, "Loader", "model", "dc-ae-f32c32-sana-1.1 (download)")
    wait(page, "Loader", lambda text: "not here: about 1.3" in text)
    page.evaluate("app.queuePrompt(0, 1)")
    wait(page, "Loader", lambda text: "Turn on allow_download" in text)
    dismiss(page)


def dismiss(page) -> None:
    for _ in range(3):
        page.keyboard.press("Escape")
        time.sleep(0.2)


def test_a_dropped_latent_becomes_nodes(page, tmp_path):
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
    sizes = [Path(image).stat().st_size for image in result.images]
    assert len(sizes) == 2


def drop(page, file: Path) -> None:
    page.evaluate(
        """([name, text]) => {
            const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], name));
            const at = {clientX: 700, clientY: 700, bubbles: true, cancelable: true, dataTransfer: data};
            app.canvas.canvas.dispatchEvent(new DragEvent('drop', at));
        }""",
        [file.name, base64.b64encode(file.read_bytes()).decode()],
    )


def test_scripts_are_small(page):
    """Under 50 kB together, and under 50 ms to fetch and to run."""
    scripts = [path for path in page.server.get("/extensions").json() if page.server.pack_name in path]
    assert len(scripts) == len(set(scripts)) == 5
    assert sum(len(page.server.get(path).content) for path in scripts) < 50_000


def test_the_routes_take_no_paths(page):
    for choice in ("../../secret.safetensors", "/etc/passwd", ""):
        assert "problem" in page.server.get(f"/dcae/model?choice={choice}").json()
    assert "numbers" in page.server.get("/dcae/plan?choice=x&width=a").json()["problem"]
    huge = page.server.get("/dcae/plan?choice=x&width=999999999&height=1&batch=1").json()
    assert "can't be planned" in json.dumps(huge)
