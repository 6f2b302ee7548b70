"""In a real browser: the VAE dropdown and the DC-AE tab of a real SD.Next."""

import time

import pytest

from dcae_core.files import ASSETS

from .server import Server

EXAMPLE = ASSETS / "example.jpg"


@pytest.fixture(scope="module")
def page(needs_sdnext, browser):
    """A page of Chromium that shows an SD.Next with the VAE dropdown at the top. `page.server` is that SD.Next."""
    with Server(options={"quicksettings_list": ["sd_model_checkpoint", "sd_vae"]}) as server:
        page = browser.new_page(viewport={"width": 1300, "height": 800})
        page.server = server
        page.goto(server.url)
        page.wait_for_selector("#setting_sd_vae input", timeout=120_000)
        time.sleep(3)  # SD.Next rearranges its page after loading
        yield page
        page.close()


def test_choose_one_in_the_dropdown(page, tmp_path):
    page.locator("#setting_sd_vae input").first.click()
    listed = [text.replace("✓", "").strip() for text in page.locator("#setting_sd_vae ul.options li").all_inner_texts()]
    assert {"Automatic", "Default", "other-folder-1.0", "other_original.safetensors"} <= set(listed)
    page.locator("#setting_sd_vae ul.options li", has_text="other-folder-1.0").click()
    until(lambda: page.server.status()["name"] == "other-folder-1.0")
    page.server.txt2img()
    page.get_by_role("tab", name="DC-AE").or_(page.get_by_role("button", name="DC-AE")).first.click()
    page.locator("#dcae_refresh").click()
    status = page.locator("#dcae_status").last  # gradio gives the id to a frame and to its content
    until(lambda: "decode 256x128" in status.inner_text())
    shown = status.inner_text()
    assert "other-folder-1.0" in shown and "dc-ae-f32c32-demo" in shown and "1.322" in shown
    page.screenshot(path=tmp_path / "sdnext.png")


def test_compare_in_the_tab(page, tmp_path):
    page.get_by_role("tab", name="DC-AE").or_(page.get_by_role("button", name="DC-AE")).first.click()
    page.locator("#dcae_compare").get_by_text("Compare autoencoders").first.click()
    page.locator("#dcae_compare_picture input[type=file]").set_input_files(EXAMPLE)
    page.locator("#dcae_compare_names input").click()
    page.locator("#dcae_compare_names ul.options li", has_text="other_original.safetensors").click()
    page.locator("#dcae_compare_run").click()
    table = page.locator("#dcae_compare_table").last
    until(lambda: "PSNR" in table.inner_text())
    lines = table.inner_text().splitlines()
    assert any(line.split()[:2] == ["dc-ae-f32c32-demo", "26.94"] for line in lines)
    assert any(line.startswith("other_original.safetensors") and "1 of 1" in line for line in lines)
    until(lambda: page.locator("#dcae_compare_grid img").count() > 0)
    page.screenshot(path=tmp_path / "compare.png")


def until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
