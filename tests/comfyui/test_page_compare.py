"""In a real browser: DC-AE Compare's slider, selectors and table."""

from __future__ import annotations

import re

from .page import open_template, press, wait_for_idle

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
            assert page.evaluate("nodeOf('Compare').imgs?.length ?? 0") == 0
            inside = page.locator("[data-node-id]").filter(has=page.locator(".dcae-compare"))
            assert inside.count() == page.vue and inside.locator("img").count() == 2 * page.vue
    finally:
        page.evaluate("app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
    cells = "[...document.querySelectorAll('td, textarea')].map(one => one.value ?? one.textContent)"  # or Markdown's
    assert re.search(r"\| *PSNR dB *\| *2[67]\.\d\d *(\||$)", "|".join(["", *page.evaluate(cells)]), re.MULTILINE)


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
    page.wait_for_function(f"() => [...{PICTURES}].every(one => one.complete && one.naturalWidth === 1000)")
    place, box = page.evaluate("[...nodeOf('Compare').pos]"), cut.bounding_box()
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
    assert page.evaluate("[...nodeOf('Compare').pos]") == place
    result = page.evaluate(f"{PICTURES}[1].src")
    page.get_by_label("view", exact=True).select_option("difference")
    page.wait_for_function(f"before => {PICTURES}[1].src !== before && {PICTURES}[1].complete", arg=result)
    assert page.evaluate(f"{PICTURES}[1].style.clipPath") == "none"
    output_text = page.locator(".dcae-compare").inner_text()
    assert re.search(r"\b2[67]\.\d\d dB", output_text) and "SSIM" in output_text
    page.get_by_label("view", exact=True).select_option("slider")
    page.wait_for_function(f"src => {PICTURES}[1].src === src && {PICTURES}[1].complete", arg=result)
    fingers = page.context.new_cdp_session(page)
    y = box["y"] + box["height"] / 2
    for kind, part in (("touchStart", 0.5), ("touchMove", 0.6), ("touchMove", 0.8), ("touchEnd", None)):
        points = [] if part is None else [{"x": box["x"] + box["width"] * part, "y": y}]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    fingers.detach()
    page.wait_for_function("cut => 75 < cut.value && cut.value < 85", arg=cut.element_handle())
