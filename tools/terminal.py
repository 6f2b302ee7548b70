"""Make web/docs/images/terminal.webp, what a new user sees in a terminal and then in the browser, from real runs:
`python tools/terminal.py`. Runs where `tools/pictures.py` does."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from html import escape
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "dcae_core" / "assets" / "example.jpg"
TARGET = ROOT / "web" / "docs" / "images" / "terminal.webp"
SIZE = {"width": 1120, "height": 500}
STEPS = (  # commands that one picture shows
    [
        "dcae roundtrip photo.jpg --model dc-ae-f32c32-demo",
        "dcae encode photo.jpg logo.png -o latents/ --keep-alpha --model dc-ae-f32c32-demo",
    ],
    ["dcae info latents/photo.safetensors", "dcae decode latents/"],
    ["dcae plan --variant dc-ae-f32c32-sana-1.1 --size 8192 --machine 'RTX 3060'"],
    ["dcae compare photo.jpg --models dc-ae-f32c32-demo --html report.html"],
)
STYLE = "background:#1c1c1e;color:#eee;font:15px/1.4 monospace;padding:16px;white-space:pre-wrap"


def main() -> None:
    chromium = shutil.which("chromium") or sys.exit("There is no Chromium (on Debian: apt install chromium).")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        first, *others = pictures(Path(folder), browser.new_page(viewport=SIZE))
        browser.close()
    first.save(TARGET, save_all=True, append_images=others, duration=4000, loop=0, quality=80, method=6)
    print(f"{TARGET.relative_to(ROOT)}  {len(others) + 1} pictures  {TARGET.stat().st_size:,} bytes")


def pictures(folder: Path, page: Page) -> Iterator[Image.Image]:
    """Yield what each step shows, then the page that the last wrote."""
    shutil.copy(EXAMPLE, folder / "photo.jpg")
    logo = Image.new("RGBA", (256, 128), (255, 255, 255, 0))
    logo.paste((107, 140, 255, 255), (32, 32, 224, 96))
    logo.save(folder / "logo.png")
    for commands in STEPS:
        page.set_content(f'<body style="{STYLE}">{escape("".join(shown(line, folder) for line in commands))}')
        yield screenshot(page)
    page.goto((folder / "report.html").as_uri())
    yield screenshot(page)
    page.locator("figure").first.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    yield screenshot(page)


def shown(line: str, folder: Path) -> str:
    """Run a command; return it and what it prints, as a terminal shows them."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "TORCH_HOME": "models"}  # whose path is printed
    command = line.replace("dcae ", f"{sys.executable} -m dcae_core ", 1)
    ran = subprocess.run(command, shell=True, cwd=folder, env=environ, capture_output=True, text=True, check=True)
    return f"$ {line}\n{ran.stderr}{ran.stdout}\n"


def screenshot(page: Page) -> Image.Image:
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


if __name__ == "__main__":
    main()
