"""In a real browser: the lines on the nodes, before, during and after a run."""

from __future__ import annotations

import re

import pytest
import requests

from dcae_core import DEMO

from .page import (
    SIZES,
    canvas_only,
    change,
    dismiss,
    line,
    load,
    make_4k_small,
    newest_only,
    open_template,
    press,
    wait,
    wait_for_idle,
)

pytestmark = pytest.mark.usefixtures("round_trip")
RUN = re.escape(SIZES) + r" · (whole|\d+ strips) · peak [\d.]+ [GM]iB"


@canvas_only
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
    make_4k_small(page)
    press(page, "Run")
    for kind in ("Encode", "Decode"):
        assert "strips" in wait(page, kind, lambda text: text.endswith(" s"))


@canvas_only
@newest_only
def test_a_result_stays(page):
    """Also when the server plans slowly, or the page was hidden: the run is over before the node has its plan."""
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
    change(page, "Decode", "budget_gib", 0.04)
    page.evaluate("app.queuePrompt(0, 1)")
    before = result.split(" · ")[:-1]
    result = wait(page, "Decode", lambda text: text.endswith(" s") and text.split(" · ")[:-1] != before)
    page.evaluate("delete document.hidden")
    page.wait_for_timeout(1500)
    assert line(page, "Decode") == result


@canvas_only
@newest_only
def test_a_change_that_is_taken_back_while_it_is_planned(page):
    before = wait(page, "Decode", lambda text: SIZES in text)
    held, plans = [], "**/dcae/plan?*"
    page.route(plans, lambda route: held.append(route))
    with page.expect_request(plans):
        change(page, "Decode", "budget_gib", 0.04)
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")  # it looks no more
    change(page, "Decode", "budget_gib", 0.5)
    with page.expect_response(plans):
        for route in held:
            route.continue_()
    page.unroute(plans)
    page.wait_for_timeout(300)
    change(page, "Decode", "budget_gib", 0.04)
    page.evaluate("delete document.hidden")
    assert "strips" in wait(page, "Decode", lambda text: text != before, 20)


@canvas_only
def test_a_node_that_is_removed_while_it_is_planned(page):
    """The page's console has no error of it, as `page` asserts."""
    held, plans = [], "**/dcae/plan?*"
    page.route(plans, lambda route: held.append(route))
    with page.expect_request(plans):
        change(page, "Decode", "budget_gib", 0.5)
    page.evaluate("app.graph.clear()")
    with page.expect_response(plans):
        for route in held:
            route.continue_()
    page.unroute(plans)
    page.wait_for_timeout(300)


@canvas_only
def test_an_answer_counts_for_what_was_queued(page):
    """A refusal or a result that comes after the next change is not shown for that."""
    bundled = page.evaluate("nodeOf('Loader').widgets[0].value")
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


@canvas_only
def test_a_run_that_the_page_did_not_queue(page):
    """As after it was loaded anew while one ran: it has the client's name still."""
    name, made = page.evaluate("app.graphToPrompt().then(made => [app.api.clientId, made.output])")
    load(page)
    assert page.evaluate("app.api.clientId") == name
    requests.post(f"{page.server.url}/prompt", json={"prompt": made, "client_id": name}, timeout=30).raise_for_status()
    for kind in ("Encode", "Decode"):
        assert re.match(f"{RUN} · .* s$", wait(page, kind, lambda text: text.endswith(" s")))
    page.wait_for_timeout(1500)
    assert line(page, "Decode").endswith(" s")


@canvas_only
@newest_only
def test_sizes_before_a_run(page):
    """What is encoded with crop, or by a node that does not remember the size, is decoded at another size."""
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


@canvas_only
def test_in_a_subgraph(page):
    """Where nodes have other ids in a run's messages."""
    page.evaluate("void app.graph.convertToSubgraph(new Set(['Loader', 'Encode', 'Decode'].map(nodeOf)))")
    assert page.evaluate("nodeOf('Decode').graph !== app.graph")
    page.evaluate("app.queuePrompt(0, 1)")
    for kind in ("Encode", "Decode"):
        assert re.match(f"{RUN} · .* s$", wait(page, kind, lambda text: text.endswith(" s")))
    change(page, "Decode", "budget_gib", 0.01)
    page.evaluate("app.queuePrompt(0, 1)")
    wait(page, "Decode", lambda text: "includes the weights" in text)
    dismiss(page)


@canvas_only
def test_the_loaders_line_after_a_run(page):
    """What a download said goes when it has ended, and an error when it has been put right."""
    detail = "{node: nodeOf('Loader').id, text: '9 of 9 MB', state: 'busy'}"
    page.evaluate(f"app.api.dispatchEvent(new CustomEvent('dcae.line', {{detail: {detail}}}))")
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
    assert line(page, "Loader") == f"{DEMO} · 32x · 32 channels · factor 1.322 · 9.2 MB · diffusers keys"
    for kind in ("Encode", "Decode"):
        text = wait(page, kind, lambda text: SIZES in text)
        assert re.match(RUN, text) and not text.endswith(" s")
    press(page, "Run")
    for kind in ("Encode", "Decode"):
        assert re.match(f"{RUN} · .* s$", wait(page, kind, lambda text: text.endswith(" s")))
    before = line(page, "Decode").split(" · ")[1]
    change(page, "Decode", "budget_gib", 0.04)
    after = wait(page, "Decode", lambda text: not text.endswith(" s")).split(" · ")[1]
    assert "strips" in after and after != before
    press(page, "Run")
    assert "strips" in wait(page, "Decode", lambda text: text.endswith(" s"))
    assert page.locator("[data-node-id] .dcae-line").count() == 3 * page.vue
    page.screenshot(path=tmp_path / "page.png")


@canvas_only
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
