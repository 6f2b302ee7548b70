"""Make docs/architecture.svg from the table below, and web/docs/images/icon.png from icon.svg, which is drawn by hand:
`python tools/drawings.py`. The second needs Playwright and Chromium."""

from __future__ import annotations

import shutil
import sys
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURE = ROOT / "docs" / "architecture.svg"
ICON = ROOT / "web" / "docs" / "images" / "icon.svg"
WHITE, HOST, FACE = "#ffffff", "#fff4dc", "#e4eef8"


class Room(NamedTuple):
    x: int
    y: int
    width: int
    fill: str
    title: str  # files and folders, with ", " between
    lines: tuple[str, ...] = ()

    @property
    def height(self) -> int:
        return 28 + 16 * len(self.lines)

    def svg(self) -> str:
        middle = self.x + self.width // 2
        parts = [
            f'<rect x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="7" '
            f'fill="{self.fill}" stroke="#7a8794"/>',
            text(middle, self.y + 20, self.title, 'font-size="14" text-anchor="middle" fill="#111" font-weight="bold"'),
        ]
        style = 'font-size="11.5" text-anchor="middle" fill="#444"'
        return "\n".join(
            [*parts, *(text(middle, self.y + 37 + 16 * i, line, style) for i, line in enumerate(self.lines))]
        )


ROOMS = (
    Room(60, 14, 300, HOST, "nodes/, web/", ("ComfyUI: thin nodes, a comfy.sd.VAE",)),
    Room(400, 14, 300, HOST, "scripts/dcae_sdnext/", ("SD.Next: a VAE in its list",)),
    Room(24, 158, 166, WHITE, "cli/", ("dcae COMMAND",)),
    Room(206, 158, 166, WHITE, "compare/", ("autoencoders side by side",)),
    Room(388, 158, 166, WHITE, "batch/", ("whole data sets",)),
    Room(570, 158, 166, WHITE, "integrations/", ("diffusers, Sana",)),
    Room(230, 262, 300, FACE, "autoencoder.py, taesana.py", ("DCAE, TAESANA: load, encode, decode, plan",)),
    Room(
        *(24, 366, 340, WHITE, "engine/"),
        ("an Architecture and tensors → a run", "coder, layers/, ops/, sweeps, plan, memory, execute"),
    ),
    Room(
        *(396, 366, 340, WHITE, "weights/"),
        ("a name, file or state dict → Architecture, tensors", "checkpoint, keys, recognise, hub, download"),
    ),
    Room(24, 486, 340, WHITE, "model.py", ("the reference network, built from an Architecture",)),
    Room(396, 486, 340, WHITE, "media/", ("images, latents, sizes, preview, nonfinite",)),
    Room(24, 574, 712, FACE, "architecture.py, variants.py, untrusted.py, files.py, errors.py"),
)
ARROWS = (
    *((210, 58, 210, 116), (550, 58, 550, 116)),
    *((107, 202, 290, 260), (289, 202, 320, 260), (471, 202, 450, 260), (653, 202, 470, 260)),
    *((320, 306, 240, 364), (440, 306, 520, 364)),
    *((194, 426, 194, 484), (566, 426, 566, 484), (320, 426, 440, 484), (440, 426, 320, 484)),
    *((194, 530, 194, 572), (566, 530, 566, 572)),
)


def text(x: int, y: int, words: str, style: str) -> str:
    return f'<text x="{x}" y="{y}" {style}>{escape(words)}</text>'


def architecture() -> str:
    """The drawing of docs/architecture.md."""
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 620" font-family="Helvetica, Arial, sans-serif">'
    arrow = '<path d="M0 0L8 4L0 8z" fill="#555"/>'
    size = 'viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"'
    lines = (
        f'<line x1="{x}" y1="{y}" x2="{to_x}" y2="{to_y}" stroke="#555" stroke-width="1.4" marker-end="url(#a)"/>'
        for x, y, to_x, to_y in ARROWS
    )
    parts = [
        head,
        f'<defs><marker id="a" {size}>{arrow}</marker></defs>',
        '<rect width="760" height="620" fill="#fff"/>',
        '<rect x="8" y="118" width="744" height="494" rx="10" fill="#f4f6f8"/>',
        text(20, 142, "dcae_core", 'font-size="15" fill="#333" font-weight="bold"'),
        text(108, 142, "knows no host", 'font-size="12" fill="#666"'),
    ]
    return "\n".join([*parts, *(room.svg() for room in ROOMS), *lines, "</svg>\n"])


def icon() -> bytes:
    """The PNG of the icon, 400x400, as a browser draws it."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or sys.exit("There is no Chromium (on Debian: apt install chromium).")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 400, "height": 400})
        page.set_content(f"<style>*{{margin:0}}</style>{ICON.read_text(encoding='utf-8')}")
        picture = page.locator("svg").screenshot(omit_background=True)
        browser.close()
    return picture


if __name__ == "__main__":
    ARCHITECTURE.write_text(architecture(), encoding="utf-8")
    ICON.with_suffix(".png").write_bytes(icon())
