"""Make the documentation's pictures from real runs: `python tools/pictures.py [NAME...]`.

    workflow    the template Round trip after a run, in ComfyUI's newest page
    nodes       each node alone, as it looks after a run
    compare     DC-AE Compare with its slider
    thumbnails  what the template browser shows: each with its template's sentence, for which the browser has no other
                place (its cards are square; a badge covers their top left)
    round_trip  photograph and reconstruction, from `dcae demo`
    seams       tiles against strips at 4096x2752; its table goes to benchmarks/results/seams.txt
    terminal    what a new user sees in a terminal, then in the browser
    icon        icon.png of icon.svg, which is drawn by hand, as is docs/architecture.svg
    sdnext      SD.Next's page with a DC-AE as its VAE, after a run of a tiny random Sana

Without a name it makes all, in about ten minutes on two cores. The numbers in them are those of bf16 if the CPU has
instructions for it. Runs where the tests run: with the ComfyUI that `nox -s tests` makes, Playwright and
Chromium; sdnext with $SDNEXT_PATH and $DCAE_SDNEXT_ENV, as the tests in it. What the pictures are of:
web/docs/images/SOURCES.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cached_property
from html import escape
from pathlib import Path

import requests
from PIL import Image, ImageDraw, ImageFont, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import seams as benchmark
from dcae_core import DCAE, DEMO, cli, hub, images, latents
from tests.comfyui.server import Server, default_env

ROOT = Path(__file__).resolve().parents[1]
DOCS, TEMPLATES = ROOT / "web" / "docs" / "images", ROOT / "example_workflows"
EXAMPLE = hub.bundled().with_name("example.jpg")
SETTINGS = {"TutorialCompleted": True, "VueNodes.Enabled": True, "Minimap.Visible": False}
SETTINGS |= {f"NodeBadge.Node{kind}BadgeMode": "None" for kind in ("Source", "Id", "LifeCycle")}
VIEW = {"width": 1800, "height": 1200}
CORNER = 130, 130  # where the page's own bars end
TEMPLATE_OF = {"Loader": "Round trip", "Compare": "Compare autoencoders"}
TEMPLATE_OF |= dict.fromkeys(("Encode", "Decode"), "4K in half a GiB")
NODE_WIDTH, MARGIN = 334, 8
CARD, PICTURE = 560, 464  # a card is square: a picture so high, and a sentence
DEMO_MODEL = "--model dc-ae-f32c32-demo"
TERMINAL = (  # commands that one picture shows
    [f"dcae roundtrip photo.jpg {DEMO_MODEL}", f"dcae encode photo.jpg logo.png -o latents/ --keep-alpha {DEMO_MODEL}"],
    ["dcae info latents/photo.safetensors", "dcae decode latents/"],
    ["dcae plan --variant dc-ae-f32c32-sana-1.1 --size 8192 --machine 'RTX 3060'"],
    ["dcae compare photo.jpg --models dc-ae-f32c32-demo --html report.html"],
)
STYLE = "background:#1c1c1e;color:#eee;font:15px/1.4 monospace;padding:16px;white-space:pre-wrap"
INK, PAPER, ACCENT = "#ffffff", "#1c1c1e", "#6b8cff"


class Studio(contextlib.ExitStack):
    """A ComfyUI with this pack and its page, started when they are first needed."""

    def __init__(self):
        super().__init__()
        self._ran, self.lines = {}, {}

    @cached_property
    def server(self) -> Server:
        server = Server(args=["--front-end-root", str(default_env() / "frontend")], pack_name="DC-AE")
        self.enter_context(server)
        for name, value in SETTINGS.items():
            requests.post(f"{server.url}/settings/Comfy.{name}", json=value, timeout=30).raise_for_status()
        ae, x = DCAE(DEMO, "cpu"), images.from_host(images.read(EXAMPLE))
        file = server.base / "input" / "budgie.safetensors"
        latents.write(file, ae.encode(x).float(), ae.variant, tuple(x.shape[2:]))
        return server

    @cached_property
    def browser(self):
        from playwright.sync_api import sync_playwright

        chromium = shutil.which("chromium") or sys.exit("There is no Chromium (on Debian: apt install chromium).")
        play = self.enter_context(sync_playwright())
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        self.callback(browser.close)
        return browser

    @cached_property
    def page(self):
        page = self.browser.new_page(viewport=VIEW, device_scale_factor=2)
        page.goto(self.server.url)
        page.wait_for_function("window.app?.extensions?.some(e => e.name === 'dcae')", timeout=120_000)
        page.wait_for_function("window.app.graph && document.querySelector('canvas')")
        time.sleep(3)
        return page

    def run(self, name: str) -> dict[str, dict]:
        """Open a template in the page and run it; return what its nodes showed, by their ids."""
        graph = self.server.get(f"/api/workflow_templates/{self.server.pack_name}/{name}.json").json()
        self.page.evaluate("workflow => app.loadGraphData(workflow)", graph)
        time.sleep(2)
        before = set(self.server.get("/history").json())
        self.page.evaluate("app.queuePrompt(0, 1)")
        deadline = time.monotonic() + 600
        while not (new := set(self.server.get("/history").json()) - before):
            if time.monotonic() > deadline:
                sys.exit(f"{name} did not run, or not in ten minutes.")
            time.sleep(0.5)
        done = self.server.get("/history").json()[new.pop()]
        if done["status"]["status_str"] != "success":
            sys.exit(f"{name} did not run: {json.dumps(done['status'], indent=2)}")
        time.sleep(3)  # results are fetched and drawn
        nodes = "app.graph._nodes.filter(n => n.dcae).map(n => [n.comfyClass, n.dcae.element.textContent])"
        self.lines[name] = dict(self.page.evaluate(nodes))
        self._ran[name] = done["outputs"]
        return done["outputs"]

    def outputs(self, name: str) -> dict[str, dict]:
        return self._ran.get(name) or self.run(name)

    def saved(self, name: str) -> list[Image.Image]:
        """Return the pictures that a template's Save Image node saved."""
        files = [file for shown in self.outputs(name).values() for file in shown.get("images", [])]
        return [self.file(f["filename"], "output", f["subfolder"]) for f in files if f["type"] == "output"]

    def file(self, filename: str, kind: str, subfolder: str = "") -> Image.Image:
        return Image.open(self.server.base / kind / subfolder / filename).convert("RGB")

    def shoot(self, kinds: list[str] | None = None, links: bool = True) -> Image.Image:
        """Return a screenshot of the nodes of these types (None: all), at two pixels for each of the page."""
        self.page.evaluate(
            """([kinds, links, [x, y]]) => {
                const nodes = app.graph._nodes.filter(n => !kinds || kinds.includes(n.type));
                const [left, top] = [0, 1].map(i => Math.min(...nodes.map(n => n.pos[i])));
                app.canvas.deselectAll?.();
                app.canvas.links_render_mode = links ? LiteGraph.SPLINE_LINK : LiteGraph.HIDDEN_LINK;
                if (!links) app.canvas.background_image = app.canvas._pattern = null;
                app.canvas.ds.scale = 1;
                app.canvas.ds.offset = [x - left, y - top];
                app.canvas.setDirty(true, true);
            }""",
            [kinds, links, CORNER],
        )
        self.page.mouse.move(VIEW["width"] / 2, VIEW["height"] - 5)
        time.sleep(1.5)
        boxes = self.page.evaluate(
            """kinds => app.graph._nodes.filter(n => !kinds || kinds.includes(n.type)).map(n => {
                const box = document.querySelector(`[data-node-id="${n.id}"]`).getBoundingClientRect();
                return [box.left, box.top, box.right, box.bottom];
            })""",
            kinds,
        )
        left, top, right, bottom = (pick(box[i] for box in boxes) for i, pick in enumerate((min, min, max, max)))
        clip = {"x": left - MARGIN, "y": top - MARGIN}
        clip |= {"width": right - left + 2 * MARGIN, "height": bottom - top + 2 * MARGIN}
        return Image.open(io.BytesIO(self.page.screenshot(clip=clip))).convert("RGB")


def save(picture: Image.Image, path: Path, limit: int, width: int | None = None) -> None:
    """Write a JPG of at most `limit` bytes, scaled down to `width` pixels if it is wider."""
    if width and picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    for quality in range(92, 40, -4):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True, progressive=True, subsampling=0)
        if file.tell() <= limit:
            break
    path.write_bytes(file.getvalue())
    print(f"{path.relative_to(ROOT)}  {picture.size}  {file.tell():,} bytes  quality {quality}", flush=True)


def workflow(studio: Studio) -> None:
    studio.run("Round trip")
    save(studio.shoot(), DOCS / "workflow.jpg", 250_000, 1400)


def compare(studio: Studio) -> None:
    studio.run("Compare autoencoders")
    save(studio.shoot(["DCAE_Compare"], links=False), DOCS / "compare.jpg", 250_000, 1200)


def nodes(studio: Studio) -> None:
    kinds = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    opened = None
    for kind in sorted(kinds, key=lambda kind: TEMPLATE_OF.get(kind.removeprefix("DCAE_"), "")):
        template = TEMPLATE_OF.get(kind.removeprefix("DCAE_"))
        if template is None:
            # A fresh id, else it shows the picture of a template's node.
            add = "kind => { app.graph.clear(); app.graph.add(Object.assign(LiteGraph.createNode(kind), {id: 900})) }"
            studio.page.evaluate(add, kind)
        elif template != opened:
            studio.run(template)
        opened = template
        studio.page.evaluate(
            """([kind, width]) => {
                const node = app.graph._nodes.find(n => n.type === kind);
                node.setSize([width, node.computeSize()[1]]);
            }""",
            [kind, NODE_WIDTH],
        )
        save(studio.shoot([kind], links=False), DOCS / f"{kind}.jpg", 100_000)


def thumbnails(studio: Studio) -> None:
    cards = {"Round trip": card_round_trip, "4K in half a GiB": card_4k, "Several pictures at once": card_batch}
    cards |= {"Encode for inpainting": card_inpaint, "Compare autoencoders": card_compare}
    cards["Sana text to image"] = card_sana
    missing = {path.stem for path in TEMPLATES.glob("*.json")} ^ cards.keys()
    if missing:
        sys.exit(f"Templates without a card here, or cards without a template: {', '.join(sorted(missing))}.")
    for name, draw in cards.items():
        save(captioned(draw(studio), sentence(name)), TEMPLATES / f"{name}.jpg", 80_000)


def sentence(name: str) -> str:
    """Return what a template shows: what its note begins with, in bold."""
    graph = json.loads((TEMPLATES / f"{name}.json").read_text(encoding="utf-8"))
    (note,) = [node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "MarkdownNote"]
    return note.split("**")[1]


def captioned(picture: Image.Image, text: str) -> Image.Image:
    """Return a card of a picture, with a sentence of two lines below."""
    card = Image.new("RGB", (CARD, CARD), PAPER)
    card.paste(picture)
    font, words = ImageFont.load_default(26), text.split()
    lines = [(" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words) + 1)]
    first, second = min(lines, key=lambda pair: max(map(font.getlength, pair)))
    pen = ImageDraw.Draw(card)
    for y, line in ((PICTURE + 32, first), (PICTURE + 66, second)):
        pen.text((CARD // 2, y), line, fill=INK, font=font, anchor="mm")
    return card


def original() -> Image.Image:
    return Image.open(EXAMPLE).convert("RGB")


def part_of(picture: Image.Image, left: float = 0.5) -> Image.Image:
    """Return the largest part of a picture that fits a card, at `left` (0: left, 1: right)."""
    return ImageOps.fit(picture, (CARD, PICTURE), Image.Resampling.LANCZOS, centering=(left, 0.5))


def label(card: Image.Image, text: str, at: tuple[float, float], anchor: str, size: int = 30) -> None:
    """Draw white text on a dark pill; `anchor` is Pillow's."""
    pen, font = ImageDraw.Draw(card, "RGBA"), ImageFont.load_default(size)
    left, top, right, bottom = pen.textbbox(at, text, font=font, anchor=anchor)
    pen.rounded_rectangle((left - 12, top - 9, right + 12, bottom + 9), 10, fill=(0, 0, 0, 190))
    pen.text(at, text, fill=INK, font=font, anchor=anchor)


def split(left: Image.Image, right: Image.Image) -> Image.Image:
    card = left.copy()
    card.paste(right.crop((CARD // 2, 0, CARD, PICTURE)), (CARD // 2, 0))
    ImageDraw.Draw(card).line((CARD // 2, 0, CARD // 2, PICTURE), INK, 3)
    return card


def bird_head(picture: Image.Image) -> Image.Image:
    """Return the bird's head, enlarged to a card."""
    width, height = round(picture.height * 0.6), round(picture.height * 0.6 * PICTURE / CARD)
    left, top = round(picture.width * 0.29), round(picture.height * 0.1)
    return picture.crop((left, top, left + width, top + height)).resize((CARD, PICTURE), Image.Resampling.LANCZOS)


def card_round_trip(studio: Studio) -> Image.Image:
    (result,) = studio.saved("Round trip")
    card = split(bird_head(original()), bird_head(result))
    label(card, "original", (CARD // 4, PICTURE - 36), "mm")
    label(card, "result", (CARD * 3 // 4, PICTURE - 36), "mm")
    return card


def card_4k(studio: Studio) -> Image.Image:
    """Return the result with lines where the decoder's strips meet, and the node's size, strips and peak."""
    (result,) = studio.saved("4K in half a GiB")
    size, strips, peak = studio.lines["4K in half a GiB"]["DCAE_Decode"].split(" · ")[:3]
    card = part_of(result, 0.4)
    pen, count = ImageDraw.Draw(card, "RGBA"), int(strips.split()[0])
    for y in (round(PICTURE * number / count) for number in range(1, count)):
        pen.line((0, y, CARD, y), (255, 255, 255, 190), 2)
    label(card, size, (CARD // 2, PICTURE - 88), "mm", 44)
    label(card, f"{strips} · {peak}", (CARD // 2, PICTURE - 34), "mm", 28)
    return card


def card_batch(studio: Studio) -> Image.Image:
    card = Image.new("RGB", (CARD, PICTURE), PAPER)
    results = studio.saved("Several pictures at once")
    width = 350
    for number, result in enumerate(results):
        small = result.resize((width, round(width * result.height / result.width)), Image.Resampling.LANCZOS)
        framed = ImageOps.expand(small, 4, INK)
        step = (CARD - 40 - framed.width) * number // (len(results) - 1)
        card.paste(framed, (20 + step, 60 + number * (PICTURE - 80 - framed.height) // (len(results) - 1)))
    return card


def card_inpaint(studio: Studio) -> Image.Image:
    """Return the masked photograph above, the node's result below."""
    graph = json.loads((TEMPLATES / "api" / "Encode for inpainting.json").read_text(encoding="utf-8"))
    (mask,) = [node["inputs"] for node in graph.values() if node["class_type"] == "MaskComposite"]
    patch = graph[mask["source"][0]]["inputs"]
    (result,) = studio.saved("Encode for inpainting")
    box = mask["x"], mask["y"], mask["x"] + patch["width"], mask["y"] + patch["height"]
    masked = hatched(original(), box)
    # ComfyUI's node cuts the picture to multiples of the ratio, around its centre.
    cut = (masked.width - result.width) // 2, (masked.height - result.height) // 2
    left, top, width, height = 20, 132, 960, 392
    card = Image.new("RGB", (CARD, PICTURE), INK)
    for number, (picture, (x, y)) in enumerate(((masked, (0, 0)), (result, cut))):
        part = picture.crop((left - x, top - y, left - x + width, top - y + height))
        card.paste(part.resize((CARD, PICTURE // 2 - 2), Image.Resampling.LANCZOS), (0, number * (PICTURE // 2 + 2)))
    label(card, "mask", (CARD - 24, PICTURE // 2 - 30), "rm", 28)
    label(card, "for the sampler", (CARD - 24, PICTURE - 30), "rm", 28)
    return card


def hatched(picture: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """Return a copy with diagonal stripes inside `box`."""
    stripes = picture.copy()
    pen = ImageDraw.Draw(stripes)
    left, top, right, bottom = box
    pen.rectangle(box, fill="#30303a")
    for x in range(left - (bottom - top), right, 24):
        pen.line((x, bottom, x + bottom - top, top), fill=ACCENT, width=8)
    hatched_picture = picture.copy()
    hatched_picture.paste(stripes.crop(box), box[:2])
    ImageDraw.Draw(hatched_picture).rectangle(box, outline=INK, width=4)
    return hatched_picture


def card_compare(studio: Studio) -> Image.Image:
    """Return the result on the left of a slider, the difference on its right."""
    outputs = studio.outputs("Compare autoencoders").values()
    (shown,) = [one["dcae_compare"][0] for one in outputs if "dcae_compare" in one]
    result = shown["pictures"][0]["results"][0]
    card = split(*(part_of(studio.file(result[kind], "temp"), 0.46) for kind in ("result", "difference")))
    pen, middle, y0 = ImageDraw.Draw(card), CARD // 2, PICTURE // 2
    pen.ellipse((middle - 24, y0 - 24, middle + 24, y0 + 24), fill=INK)
    for side in (-1, 1):
        pen.polygon([(middle + side * x, y0 + y) for x, y in ((17, 0), (7, -9), (7, 9))], fill=PAPER)
    label(card, " · ".join(result["text"].split(" · ")[:2]), (middle, PICTURE - 36), "mm")
    return card


def card_sana(studio: Studio) -> Image.Image:
    """Return the drawing of the card that is there: Sana is not run here."""
    return Image.open(TEMPLATES / "Sana text to image.jpg").crop((0, 0, CARD, PICTURE))


def round_trip(studio: Studio) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "demo.png")
        cli.main(["demo", "-o", str(file)])
        picture = Image.open(file).convert("RGB")
    save(picture, DOCS / "round_trip.jpg", 150_000, 1506)


def seams(studio: Studio) -> None:
    text = benchmark.table(runs := benchmark.decoded())
    print(text, end="")
    (ROOT / "benchmarks" / "results" / "seams.txt").write_text(text, encoding="utf-8")
    save(benchmark.figure(runs), DOCS / "seams.jpg", 350_000)


def terminal(studio: Studio) -> None:
    page, pictures = studio.browser.new_page(viewport={"width": 1120, "height": 500}), []

    def shoot() -> None:
        pictures.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))

    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(EXAMPLE, Path(folder, "photo.jpg"))
        logo = Image.new("RGBA", (256, 128), (255, 255, 255, 0))
        logo.paste((107, 140, 255, 255), (32, 32, 224, 96))
        logo.save(Path(folder, "logo.png"))
        for commands in TERMINAL:
            page.set_content(f'<body style="{STYLE}">{escape("".join(shown(line, folder) for line in commands))}')
            shoot()
        page.goto(Path(folder, "report.html").as_uri())
        shoot()
        page.locator("figure").first.scroll_into_view_if_needed()
        page.wait_for_timeout(500)
        shoot()
    target = DOCS / "terminal.webp"
    pictures[0].save(target, save_all=True, append_images=pictures[1:], duration=4000, loop=0, quality=80, method=6)
    print(f"{target.relative_to(ROOT)}  {len(pictures)} pictures  {target.stat().st_size:,} bytes", flush=True)


def shown(line: str, folder: str) -> str:
    """Run a command; return it and what it prints, as a terminal shows them."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "TORCH_HOME": "models"}  # whose path is printed
    command = line.replace("dcae ", f"{sys.executable} -m dcae_core ", 1)
    ran = subprocess.run(command, shell=True, cwd=folder, env=environ, capture_output=True, text=True, check=True)
    return f"$ {line}\n{ran.stderr}{ran.stdout}\n"


def icon(studio: Studio) -> None:
    page = studio.browser.new_page(viewport={"width": 400, "height": 400})
    page.set_content(f"<style>*{{margin:0}}</style>{(DOCS / 'icon.svg').read_text(encoding='utf-8')}")
    page.locator("svg").screenshot(path=DOCS / "icon.png", omit_background=True)


def sdnext(studio: Studio) -> None:
    from tests.sdnext.server import Server

    server = Server(options={"quicksettings_list": ["sd_model_checkpoint", "sd_vae"]})
    (server.vae_folder / "other-folder-1.0").rename(server.vae_folder / "my-dc-ae")
    with server:
        page = studio.browser.new_page(viewport={"width": 1300, "height": 400})
        page.goto(server.url)
        page.wait_for_selector("#setting_sd_vae input", timeout=120_000)
        page.wait_for_timeout(3000)  # SD.Next rearranges its page after loading
        page.locator("#setting_sd_vae input").first.click()
        page.locator("#setting_sd_vae ul.options li", has_text="my-dc-ae").click()
        page.wait_for_timeout(3000)
        server.txt2img()
        page.get_by_role("tab", name="DC-AE").or_(page.get_by_role("button", name="DC-AE")).first.click()
        page.locator("#dcae_refresh").click()
        page.locator("#dcae_status").last.get_by_text("decode 256x128").wait_for()
        clip = {"x": 0, "y": 0, "width": 1300, "height": 330}  # without a badge at the bottom
        picture = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
    save(picture, DOCS / "sdnext.jpg", 250_000)


PICTURES = [workflow, nodes, compare, thumbnails, round_trip, seams, terminal, icon, sdnext]
PICTURES = {one.__name__: one for one in PICTURES if one is not sdnext or os.environ.get("SDNEXT_PATH")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", help="all, if none is named; sdnext if $SDNEXT_PATH is set")
    names = parser.parse_args().name or list(PICTURES)
    if unknown := set(names) - PICTURES.keys():
        parser.error(f"{', '.join(sorted(unknown))} is none of {', '.join(PICTURES)}")
    with Studio() as studio:
        for name in names:
            PICTURES[name](studio)


if __name__ == "__main__":
    main()
