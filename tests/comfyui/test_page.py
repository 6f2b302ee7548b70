"""In a real browser: what the pack adds to ComfyUI's page, in its old frontend and a new one, canvas and Nodes 2.0."""

from __future__ import annotations

import json
import re
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import torch
from PIL import Image

from dcae_core import DEMO, hub, latents, variants
from tests.chromium import chromium
from tests.servers import PACK

from .page import (
    PAGES,
    SIZES,
    change,
    dismiss,
    drop,
    line,
    load,
    open_round_trip,
    open_template,
    press,
    served_page,
    wait,
    wait_for_idle,
)


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module", params=PAGES)
def page(request, browser):
    """ComfyUI's page, as `served_page` has it; `.cost` is what `load` returned."""
    with served_page(browser, request.param) as page:
        shutil.copy(hub.bundled(), page.server.base / "models" / "vae" / "mine.safetensors")
        page.cost = load(page)  # of the same origin already, for the profiler to start in
        yield page


@pytest.fixture(autouse=True)
def template(page):
    """The round trip is open, with nothing of an earlier run; in the end the console has said nothing of ours."""
    wait_for_idle(page)
    requests.post(f"{page.server.url}/free", json={"free_memory": True}, timeout=30).raise_for_status()
    open_round_trip(page)
    yield
    ours = (f"extensions/{page.server.pack_name}/", "/dcae/", "extension 'dcae'")
    assert not [one for one in page.complaints if any(name in one for name in ours)]


def test_every_template_opens(page):
    """From the template browser, and runs; with nodes that are not here, ComfyUI says so."""
    known = set(page.server.get("/object_info").json()) | {"Note", "MarkdownNote"}
    names = page.server.get("/workflow_templates").json()[page.server.pack_name]
    assert sorted(names) == sorted(path.stem for path in (PACK / "example_workflows").glob("*.json"))
    incomplete = []
    for name in names:
        open_template(page, name)
        template = json.loads((PACK / "example_workflows" / f"{name}.json").read_text())
        page.wait_for_function("nodes => app.graph._nodes.length === nodes", arg=len(template["nodes"]))
        made = page.evaluate("app.graph.serialize()")
        assert graph(made) == graph(template)
        if {node["type"] for node in template["nodes"]} - known:
            incomplete.append(name)
            page.get_by_text(re.compile("missing node", re.IGNORECASE)).first.wait_for()
            dismiss(page)
        elif not name.startswith("4K"):  # which runs in the test of cancelling, made smaller
            with page.expect_response(lambda answer: answer.url.endswith("/prompt")) as asked:
                press(page, "Run")
            wait_for_idle(page, 120)
            history = page.server.get(f"/history/{(prompt := asked.value.json()['prompt_id'])}").json()
            assert history[prompt]["status"]["status_str"] == "success", name
    assert incomplete == ["Sana text to image"]


def graph(workflow: dict) -> tuple[dict, list]:
    """What a workflow is made of; of our nodes also what their widgets hold."""
    nodes = {n["id"]: (n["type"], n["widgets_values"] if "DCAE" in n["type"] else None) for n in workflow["nodes"]}
    return nodes, sorted(workflow["links"])


def test_a_run_is_cancelled(page):
    """A long one: the 4K template in a smaller budget. Made smaller, it runs to its end."""
    open_template(page, "4K in half a GiB")
    for kind in ("Encode", "Decode"):
        change(page, kind, "budget_gib", 0.3)
    wait(page, "Encode", lambda text: "4096x2752" in text and "peak 0.2" in text)
    press(page, "Run")
    page.wait_for_function(r"/\[[1-9]\d?%\] .*DCAE_Encode/.test(document.title)", timeout=120_000)
    press(page, "Cancel current run")
    wait(page, "Encode", lambda text: text == "stopped", 120)
    wait_for_idle(page, 10)
    for widget, value in {"width": 512, "height": 344}.items():
        change(page, "ImageScale", widget, value)
    for kind in ("Encode", "Decode"):
        change(page, kind, "budget_gib", 0.03)
    for kind in ("Encode", "Decode"):
        wait(page, kind, lambda text: "512x352" in text and "strips" in text)  # the size alone comes first, and whole
    press(page, "Run")
    for kind in ("Encode", "Decode"):
        assert "strips" in wait(page, kind, lambda text: text.endswith(" s"))


def test_a_result_stays(page):
    """Also when the server plans slowly, or the page was hidden: the run is over before the node has its plan."""
    if page.vue:
        pytest.skip("what decides is the same as on the canvas")
    wait(page, "Decode", lambda text: SIZES in text)
    held, plans = [], "**/dcae/plan?*"
    page.route(plans, lambda route: held.append(route))
    with page.expect_request(plans):
        change(page, "Decode", "budget_gib", 0.5)
    page.evaluate("app.queuePrompt(0, 1)")
    result = wait(page, "Decode", lambda text: text.endswith(" s"))
    for route in held:
        route.continue_()
    page.unroute(plans)
    page.wait_for_timeout(1000)
    assert line(page, "Decode") == result
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    change(page, "Decode", "budget_gib", 0.1)
    page.evaluate("app.queuePrompt(0, 1)")
    result = wait(page, "Decode", lambda text: "strips" in text and text.endswith(" s"))
    page.evaluate("delete document.hidden")
    page.wait_for_timeout(1500)
    assert line(page, "Decode") == result


def test_an_answer_counts_for_what_was_queued(page):
    """A refusal or a result that comes after the next change is not shown for that."""
    if page.vue:
        pytest.skip("what decides is the same as on the canvas")
    bundled = page.evaluate("app.graph._nodes.find(n => n.comfyClass === 'DCAE_Loader').widgets[0].value")
    held = []
    page.route("**/prompt", lambda route: held.append(route))
    with page.expect_request("**/prompt"):
        change(page, "Loader", "model", "gone.safetensors")
        page.evaluate("void app.queuePrompt(0, 1).catch(() => {})")
    change(page, "Loader", "model", bundled)
    wait(page, "Loader", lambda text: "factor" in text)
    with page.expect_response("**/prompt") as refused:
        held.pop().continue_()
    assert refused.value.status == 400
    page.wait_for_timeout(1500)
    assert "factor" in line(page, "Loader")
    page.unroute("**/prompt")
    dismiss(page)

    wait(page, "Decode", lambda text: SIZES in text)
    page.evaluate("app.queuePrompt(0, 1)")  # one that runs, and one that waits for it, of another budget
    change(page, "Decode", "budget_gib", 0.04)
    page.evaluate("app.queuePrompt(0, 1)")
    change(page, "Decode", "budget_gib", 0.05)
    said = []
    while any(page.server.get("/queue").json().values()):
        said.append(line(page, "Decode"))
        page.wait_for_timeout(100)
    page.wait_for_timeout(1500)
    assert not [text for text in (*said, line(page, "Decode")) if text.endswith(" s")]
    assert "strips" in line(page, "Decode")


def test_a_run_that_the_page_did_not_queue(page):
    """As after it was loaded anew while one ran: it has the client's name still."""
    if page.vue:
        pytest.skip("what decides is the same as on the canvas")
    name, made = page.evaluate("app.graphToPrompt().then(made => [app.api.clientId, made.output])")
    page.reload()
    page.wait_for_function("window.app?.graph?._nodes.length", timeout=120_000)
    open_round_trip(page)
    assert page.evaluate("app.api.clientId") == name
    requests.post(f"{page.server.url}/prompt", json={"prompt": made, "client_id": name}, timeout=30).raise_for_status()
    for kind in ("Encode", "Decode"):
        assert wait(page, kind, lambda text: text.endswith(" s")).startswith(f"{SIZES} · whole · ")
    page.wait_for_timeout(1500)
    assert line(page, "Decode").endswith(" s")


def test_sizes_before_a_run(page):
    """What is encoded with crop, or by a node that does not remember the size, is decoded at another size."""
    if page.vue:
        pytest.skip("what decides is the same as on the canvas")
    change(page, "Encode", "size_mode", "crop")
    wait(page, "Encode", lambda text: text.startswith("1000x667 (cropped to 992x640)"))
    wait(page, "Decode", lambda text: text.startswith("992x640 · "))
    page.evaluate("app.queuePrompt(0, 1)")
    wait(page, "Encode", lambda text: text.startswith("1000x667 (cropped to 992x640)") and text.endswith(" s"))
    wait(page, "Decode", lambda text: text.startswith("992x640 · ") and text.endswith(" s"))
    change(page, "Encode", "size_mode", "pad")
    wait(page, "Decode", lambda text: text.startswith(SIZES))
    change(page, "Decode", "width", 1010)
    wait(page, "Decode", lambda text: text.startswith("1010x667 (padded to 1024x672)"))
    change(page, "Decode", "width", 10)
    wait(page, "Decode", lambda text: "width 10 is not that of a picture with this latent" in text)


def test_in_a_subgraph(page):
    """Where nodes have other ids in a run's messages."""
    page.evaluate(
        """() => {
            const inside = ["DCAE_Loader", "DCAE_Encode", "DCAE_Decode"];
            app.graph.convertToSubgraph(new Set(app.graph._nodes.filter(node => inside.includes(node.comfyClass))));
        }"""
    )
    shown = """kind => {
        const inside = app.graph._nodes.flatMap(node => node.subgraph?._nodes ?? []);
        return inside.find(node => node.comfyClass === kind)?.dcae.element.textContent ?? "";
    }"""
    wait_for = "([kind, end]) => (" + shown + ")(kind).endsWith(end)"
    page.evaluate("app.queuePrompt(0, 1)")
    for kind in ("DCAE_Encode", "DCAE_Decode"):
        page.wait_for_function(wait_for, arg=[kind, " s"])
        assert " · whole · peak " in page.evaluate(shown, kind)
    page.evaluate(
        """() => {
            const inside = app.graph._nodes.flatMap(node => node.subgraph?._nodes ?? []);
            const decode = inside.find(node => node.comfyClass === "DCAE_Decode");
            decode.widgets.find(w => w.name === "budget_gib").value = 0.01;
        }"""
    )
    page.evaluate("app.queuePrompt(0, 1)")
    page.wait_for_function("(" + shown.strip() + ")('DCAE_Decode').includes('includes the weights')")
    dismiss(page)


def test_the_loaders_line_after_a_run(page):
    """What a download said goes when it has ended, and an error when it has been put right."""
    if page.vue:
        pytest.skip("what decides is the same as on the canvas")
    page.evaluate(
        """() => {
            const node = app.graph._nodes.find(n => n.comfyClass === 'DCAE_Loader');
            const detail = {node: node.id, text: '9 of 9 MB', state: 'busy'};
            app.api.dispatchEvent(new CustomEvent('dcae.line', {detail}));
        }"""
    )
    assert line(page, "Loader") == "9 of 9 MB"
    page.evaluate("app.queuePrompt(0, 1)")
    wait(page, "Loader", lambda text: "factor" in text)
    change(page, "Loader", "variant", "dc-ae-f64c128-in-1.0")
    page.evaluate("app.queuePrompt(0, 1)")
    wait(page, "Loader", lambda text: "Leave the variant out" in text)
    dismiss(page)
    change(page, "Loader", "variant", "auto")
    page.evaluate("app.queuePrompt(0, 1)")
    wait(page, "Loader", lambda text: "factor" in text)


def test_lines_before_and_after(page, tmp_path):
    open_template(page, "Round trip")
    wait(page, "Loader", bool)
    assert line(page, "Loader") == f"{DEMO} · 32x · 32 channels · factor 1.322 · 9.2 MB · diffusers keys"
    for kind in ("Encode", "Decode"):
        text = wait(page, kind, lambda text: SIZES in text)
        assert text.startswith(f"{SIZES} · whole · peak") and not text.endswith(" s")
    press(page, "Run")
    for kind in ("Encode", "Decode"):
        assert wait(page, kind, lambda text: text.endswith(" s")).startswith(f"{SIZES} · whole · ")
    change(page, "Decode", "budget_gib", 0.04)
    assert "strips" in wait(page, "Decode", lambda text: not text.endswith(" s"))
    press(page, "Run")
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
    # The server's own answer, which names the input.
    wait(page, "Loader", lambda text: text.startswith("model") and "gone.safetensors" in text)
    dismiss(page)
    change(page, "Loader", "model", "dc-ae-f32c32-sana-1.1 (download)")
    wait(page, "Loader", lambda text: "not here: about 1.3" in text)
    page.evaluate("app.queuePrompt(0, 1)")
    wait(page, "Loader", lambda text: "Turn on allow_download" in text)
    dismiss(page)


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


def test_scripts_are_small(page):
    """Under 50 kB together, and under 50 ms of the time that the page takes to load."""
    scripts = [path for path in page.server.get("/extensions").json() if page.server.pack_name in path]
    assert len(scripts) == len(set(scripts)) == len(list((PACK / "web").glob("*.js")))
    assert sum(len(page.server.get(path).content) for path in scripts) < 50_000
    costs = [page.cost, load(page), load(page)]
    assert statistics.median(costs) < 50, costs


def test_the_routes_take_no_paths(page):
    for choice in ("../../secret.safetensors", "/etc/passwd", ""):
        assert "problem" in page.server.get(f"/dcae/model?choice={choice}").json()
    assert "numbers" in page.server.get("/dcae/plan?choice=x&width=a").json()["problem"]
    for budget in ("inf", "nan", "1e308", "x"):
        asked = f"/dcae/plan?choice=x&width=64&height=64&batch=1&budget_gib={budget}"
        assert "numbers" in page.server.get(asked).json()["problem"]
    huge = page.server.get("/dcae/plan?choice=x&width=999999999&height=1&batch=1").json()
    assert "can't be planned" in json.dumps(huge)


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
    """What the pack's notes to the user say. Waits for what comes with a graph."""
    page.wait_for_timeout(1500)
    said = re.findall(r"(\w+) is not installed: use (DC-AE [\w ]+) in its place", page.locator("body").inner_text())
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
    yield requests.get(f"{page.server.url}/node_replacements", timeout=30).ok
    dismiss(page)


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


def found(page, query: str) -> list[tuple[str, bool]]:
    """(What the page's node search finds, whether it can be seen without scrolling), in the page's order."""
    page.evaluate("app.graph.clear()")
    box = page.locator("input[role=combobox]:visible").first
    for _ in range(10):  # the first may come before the graph is drawn without nodes
        page.mouse.dblclick(750, 500)
        page.wait_for_timeout(1000)
        if box.is_visible():
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


def test_a_search_for_sana_and_for_vae(page):
    """Of "vae" the first page is ComfyUI's own: nodes whose names begin with it, and of these the most used."""
    seen = [name for name, visible in found(page, "sana") if visible]
    assert {"DC-AE Loader (Sana VAE)", "DC-AE Empty Latent (Sana)"} <= set(seen)
    dismiss(page)
    assert "DC-AE Loader (Sana VAE)" in [name for name, _ in found(page, "vae")]
    dismiss(page)


PICTURES = "document.querySelectorAll('.dcae-compare img')"


def test_compare_in_each_theme(page):
    """The selectors can be read, the slider is all of the node's pictures, and the table is one."""
    open_template(page, "Compare autoencoders")
    try:
        for theme in ("light", "dark"):
            page.evaluate("name => app.extensionManager.setting.set('Comfy.ColorPalette', name)", theme)
            press(page, "Run")
            page.wait_for_function(f"() => {PICTURES.replace('All', '')}?.naturalWidth === 1000", timeout=120_000)
            wait_for_idle(page)
            page.wait_for_timeout(1000)
            for label in ("VAE", "view"):
                ink, paper = page.get_by_label(label, exact=True).evaluate(COLOURS)
                assert abs(sum(ink) - sum(paper)) > 3 * 90, (theme, label, ink, paper)
            assert page.evaluate("app.graph._nodes.find(n => n.comfyClass === 'DCAE_Compare').imgs?.length ?? 0") == 0
            inside = page.locator("[data-node-id]").filter(has=page.locator(".dcae-compare"))
            assert inside.count() == page.vue and inside.locator("img").count() == 2 * page.vue
    finally:
        page.evaluate("app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
    table = page.evaluate(
        """() => {
            const cells = [...document.querySelectorAll("td")].map(one => one.textContent.trim());
            const texts = [...document.querySelectorAll("textarea")].map(one => one.value);
            const text = texts.find(one => one.includes("PSNR"));
            return text?.split("\\n").find(one => one.includes("PSNR")).split("|").map(one => one.trim()).slice(1, 3)
                ?? cells.slice(cells.indexOf("PSNR dB"), cells.indexOf("PSNR dB") + 2);
        }"""
    )
    assert table[0] == "PSNR dB" and re.fullmatch(r"2[67]\.\d\d", table[1])


# Of a select: its text, and what is painted beneath it.
COLOURS = """select => {
    const numbers = colour => {
        const context = document.createElement("canvas").getContext("2d");
        context.fillStyle = colour;
        context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data];
    };
    const ink = numbers(getComputedStyle(select).color).slice(0, 3);
    for (let one = select; one; one = one.parentElement) {
        const paper = numbers(getComputedStyle(one).backgroundColor);
        if (paper[3] > 200) return [ink, paper.slice(0, 3)];
    }
}"""


def test_the_slider(page):
    """Moved by mouse, keys and finger, while the node stays where it is; and the difference in its place."""
    open_template(page, "Compare autoencoders")
    press(page, "Run")
    cut = page.get_by_label("original left, result right")
    cut.wait_for(timeout=120_000)
    node = "app.graph._nodes.find(n => n.comfyClass === 'DCAE_Compare')"
    page.wait_for_function(f"() => [...{PICTURES}].every(one => one.complete && one.naturalWidth === 1000)")
    place, box = page.evaluate(f"[...{node}.pos]"), cut.bounding_box()
    assert abs(box["width"] / box["height"] - 1000 / 667) < 0.02
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, middle, steps=5)
    page.mouse.up()
    at = float(cut.input_value())
    assert 20 < at < 30
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert float(cut.input_value()) == at + 1
    assert page.evaluate(f"{PICTURES}[1].style.clipPath") == f"inset(0px 0px 0px {at + 1:g}%)"
    assert page.evaluate(f"[...{node}.pos]") == place
    result = page.evaluate(f"{PICTURES}[1].src")
    page.get_by_label("view", exact=True).select_option("difference")
    page.wait_for_function(f"before => {PICTURES}[1].src !== before && {PICTURES}[1].complete", arg=result)
    assert page.evaluate(f"{PICTURES}[1].style.clipPath") == "none"
    output_text = page.locator(".dcae-compare").inner_text()
    assert re.search(r"\b2[67]\.\d\d dB", output_text) and "SSIM" in output_text
    page.get_by_label("view", exact=True).select_option("slider")
    fingers = page.context.new_cdp_session(page)
    y = box["y"] + box["height"] / 2
    for kind, part in (("touchStart", 0.5), ("touchMove", 0.6), ("touchMove", 0.8), ("touchEnd", None)):
        points = [] if part is None else [{"x": box["x"] + box["width"] * part, "y": y}]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    fingers.detach()
    assert 75 < float(cut.input_value()) < 85
