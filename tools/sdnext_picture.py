"""Make web/docs/images/sdnext.jpg, SD.Next's page with a DC-AE as its VAE, from a real run with a tiny random Sana:
`python tools/sdnext_picture.py`. Runs where the tests in SD.Next run: with $SDNEXT_PATH and $DCAE_SDNEXT_ENV."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.sdnext.server import Server

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "web" / "docs" / "images" / "sdnext.jpg"
CLIP = {"x": 0, "y": 0, "width": 1300, "height": 330}  # without a badge at the bottom
VAE = "my-dc-ae"


def main() -> None:
    chromium = shutil.which("chromium") or sys.exit("There is no Chromium (on Debian: apt install chromium).")
    options = {"quicksettings_list": ["sd_model_checkpoint", "sd_vae"]}
    server = Server(options=options)
    (server.vae_folder / "other-folder-1.0").rename(server.vae_folder / VAE)
    with server, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1300, "height": 400})
        page.goto(server.url)
        page.wait_for_selector("#setting_sd_vae input", timeout=120_000)
        page.wait_for_timeout(3000)  # SD.Next rearranges its page after loading
        page.locator("#setting_sd_vae input").first.click()
        page.locator("#setting_sd_vae ul.options li", has_text=VAE).click()
        page.wait_for_timeout(3000)
        server.txt2img()
        page.get_by_role("tab", name="DC-AE").or_(page.get_by_role("button", name="DC-AE")).first.click()
        page.locator("#dcae_refresh").click()
        page.locator("#dcae_status").last.get_by_text("decode 256x128").wait_for()
        picture = Image.open(io.BytesIO(page.screenshot(clip=CLIP))).convert("RGB")
        browser.close()
    picture.save(TARGET, quality=92, optimize=True, progressive=True, subsampling=0)
    print(f"{TARGET.relative_to(ROOT)}  {picture.width}x{picture.height}  {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
