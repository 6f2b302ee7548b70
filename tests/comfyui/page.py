"""ComfyUI's page, as Playwright has it, for tests: what people see in it and do to it."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import requests

from .prompts import node
from .server import FP32, Server, default_env

FRONTENDS = {"1.58.1": ["--front-end-root", str(default_env() / "frontend")], "its own": []}  # arguments of the server
RENDERERS = ["canvas", "Nodes 2.0"]

# A test of `page` runs in all four, if no mark says that it is of something that is the same in Nodes 2.0, or in both
# frontends. Both keep the first of a list: pytest groups tests by places in it, so that each server starts once.
canvas_only = pytest.mark.parametrize("renderer", RENDERERS[:1], indirect=True)
newest_only = pytest.mark.parametrize("frontend", [*FRONTENDS][:1], indirect=True)

SIZES = "1000x667 (padded to 1024x672)"  # of the round trip
VIEW = {"width": 1500, "height": 900}
# The first node of a kind, also in a subgraph: nodeOf("Encode"), nodeOf("ImageScale").
NODE_OF = """window.nodeOf = kind => app.graph._nodes.flatMap(node => [node, ...(node.subgraph?._nodes ?? [])])
    .find(node => [kind, `DCAE_${kind}`].includes(node.comfyClass))"""


def page_server(frontend: str, environ: Mapping[str, str] | None = None, **options) -> Server:
    """Return a server with one of FRONTENDS, not yet started."""
    # One thread: the browser draws on the same cores, and threads that wait for each other would stand still.
    return Server(args=[*FRONTENDS[frontend], *FP32], environ={"OMP_NUM_THREADS": "1", **(environ or {})}, **options)


@contextlib.contextmanager
def opened_page(browser, server: Server, renderer: str) -> Iterator:
    """Yield a server's page with nodes drawn by one of RENDERERS, and the round trip open in it.

    `.server` is its server, `.vue` whether it has Nodes 2.0, `.complaints` what its console says, `.cost` what `load`
    returned. Its scripts have `nodeOf`.
    """
    vue = renderer == "Nodes 2.0"
    for name, value in {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": vue}.items():
        requests.post(f"{server.url}/settings/{name}", json=value, timeout=30).raise_for_status()
    with browser.new_page(viewport=VIEW) as page:
        page.server, page.complaints, page.vue = server, [], vue
        page.on("pageerror", lambda error: page.complaints.append(str(error.stack or error)))
        page.on("console", lambda one: page.complaints.append(f"{one.type} {one.text} {one.location['url']}"))
        page.add_init_script(NODE_OF)
        page.goto(f"{server.url}/system_stats")  # of the same origin already, for the profiler to start in
        page.cost = load(page)
        yield page


def wait_for_idle(page, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while any(page.server.get("/queue").json().values()):
        assert time.monotonic() < deadline, "the queue does not get empty"
        time.sleep(0.2)


def forget_runs(page) -> None:
    """Wait for the queue to get empty; the server then keeps no outputs of nodes and no models."""
    wait_for_idle(page)
    requests.post(f"{page.server.url}/free", json={"free_memory": True}, timeout=30).raise_for_status()
    # A server that is not waiting for a prompt just then frees only after its next one.
    blank = node("EmptyImage", width=8, height=8, batch_size=1, color=0)
    page.server.run({"1": blank, "2": node("PreviewImage", images=["1", 0])})


def open_round_trip(page) -> None:
    workflow = page.server.get(f"/api/workflow_templates/{page.server.pack_name}/Round trip.json").json()
    page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
    wait(page, "Loader", lambda text: "factor" in text)


def load(page) -> float:
    """Open the page and the round trip in it; return the milliseconds of the pack's scripts and of what they called.

    Counted as samples of a profile times their interval, so that other load on the machine does not count.
    """
    profiler, between = page.context.new_cdp_session(page), 0.5
    profiler.send("Profiler.enable")
    profiler.send("Profiler.setSamplingInterval", {"interval": int(between * 1000)})
    profiler.send("Profiler.start")
    page.goto(page.server.url)
    page.wait_for_function("window.app?.graph?._nodes.length", timeout=120_000)  # what ComfyUI opens, after all else
    open_round_trip(page)
    wait(page, "Decode", lambda text: SIZES in text)
    profile = profiler.send("Profiler.stop")["profile"]
    profiler.detach()
    nodes = {node["id"]: node for node in profile["nodes"]}
    pending = [one for one, node in nodes.items() if f"/{page.server.pack_name}/" in node["callFrame"]["url"]]
    assert pending, "the profile has seen no function of the pack"
    inside = set()
    while pending:
        inside.add(one := pending.pop())
        pending += nodes[one].get("children", [])
    return sum(one in inside for one in profile["samples"]) * between


def line(page, kind: str) -> str:
    """Return the text of a node's line; nothing if the page does not have it, but has the node's graph open."""
    return page.evaluate(
        """kind => {
            const {graph, dcae: {element}} = nodeOf(kind);
            return element.isConnected || graph !== app.canvas.graph ? element.textContent : '';
        }""",
        kind,
    )


def wait(page, kind: str, condition, seconds: float = 60) -> str:
    deadline = time.monotonic() + seconds
    while not condition(text := line(page, kind)):
        assert time.monotonic() < deadline, f"{kind} says {text!r}"
        time.sleep(0.2)
    return text


def appears(locator, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (seen := locator.is_visible()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return seen


def change(page, kind: str, widget: str, value) -> None:
    page.evaluate(
        """([kind, name, value]) => {
            const widget = nodeOf(kind).widgets.find(w => w.name === name);
            widget.value = value;
            widget.callback?.(value);
        }""",
        [kind, widget, value],
    )


def make_4k_small(page) -> None:
    """Make the picture in the 4K template 512x344, and the budget so small that it streams still."""
    for widget, value in {"width": 512, "height": 344}.items():
        change(page, "ImageScale", widget, value)
    for kind in ("Encode", "Decode"):
        change(page, kind, "budget_gib", 0.03)
    for kind in ("Encode", "Decode"):
        wait(page, kind, lambda text: "512x352" in text and "strips" in text)  # the size alone comes first, and whole


def open_templates(page):
    """Open the dialog of templates at this pack's; return it."""
    page.get_by_role("button", name="Templates", exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name=page.server.pack_name, exact=True).click()
    return dialog


def open_template(page, name: str) -> None:
    """As a user does: the side bar's button, the pack's name in the dialog, the template's picture."""
    choose(open_templates(page), name)


def choose(dialog, name: str) -> None:
    card = dialog.get_by_test_id(f"template-workflow-{name}")
    card.click()
    card.wait_for(state="detached")


def press(page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).first.click()  # newer pages have a menu of that name beside it


def dismiss(page) -> None:
    for _ in range(3):
        page.keyboard.press("Escape")
        time.sleep(0.2)


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
