"""The help pages of the nodes: they are served, name what the schema has, and quote errors that the sources have.

A page's first section lists the inputs, its second the outputs: items that start in **bold**, with the name, after
" · " the values and the default, and the meaning in the next line. One that starts in *italics* quotes an error, with
"..." for what differs from one time to the next. ComfyUI's panel is narrow: there are no tables.
"""

from __future__ import annotations

import ast
import functools
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from PIL import Image

from .server import Server, default_env

PACK = Path(__file__).resolve().parents[2]
FILES = {"en": "{}.md", "zh": "{}/zh.md", "ja": "{}/ja.md"}
ERRORS = {"en": "Errors", "zh": "错误", "ja": "エラー"}


@dataclass(frozen=True)
class Page:
    text: str

    @property
    def pictures(self) -> list[str]:
        return re.findall(r"!\[[^\]]+\]\(([^)]+)\)", self.text)

    @property
    def entries(self) -> list[list[tuple[str, list[str], str]]]:
        """The name, the facts and the meaning of each item in bold, by section."""
        item = re.compile(r"^- \*\*(.+)\*\*(.*)<br>(.+)$", re.MULTILINE)
        found = [item.findall(part) for part in self.text.split("\n## ")[1:]]
        return [[(name, facts.split(" · ")[1:], meaning) for name, facts, meaning in part] for part in found]

    @property
    def errors(self) -> list[str]:
        return re.findall(r"^- \*([^*\n]+)\*", self.text, re.MULTILINE)

    def section(self, title: str) -> str:
        return self.text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def words(cell: str) -> list[str]:
    """What is written as code."""
    return re.findall(r"`([^`]+)`", cell)


def labels(language: str, name: str) -> dict:
    texts = json.loads((PACK / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    return texts[name]


@pytest.fixture(scope="module")
def nodes(comfyui) -> dict[str, dict]:
    return {name: info for name, info in comfyui.get("/object_info").json().items() if name.startswith("DCAE_")}


@pytest.fixture(scope="module")
def pages(comfyui, nodes) -> dict[tuple[str, str], Page]:
    """Each page, from the address that ComfyUI's frontend asks for."""
    root = f"/extensions/{comfyui.pack_name}/docs"
    return {
        (name, language): Page(comfyui.get(f"{root}/{file.format(name)}").content.decode())
        for name in nodes
        for language, file in FILES.items()
    }


def test_each_page_is_of_a_node(nodes):
    folder = PACK / "web" / "docs"
    assert nodes
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("DCAE_*.md")} | {
        path.relative_to(folder).as_posix() for path in folder.rglob("DCAE_*/*.md")
    } == {file.format(name) for name in nodes for file in FILES.values()}


def test_titles(pages):
    for (name, language), page in pages.items():
        assert page.text.splitlines()[0] == f"# {labels(language, name)['display_name']}"


def test_inputs(nodes, pages):
    for (name, language), page in pages.items():
        schema = {**nodes[name]["input"].get("required", {}), **nodes[name]["input"].get("optional", {})}
        rows = [(one, row) for row in page.entries[0] for one in words(row[0])]
        assert len(rows) == len(schema) and {one for one, _ in rows} == set(schema), (name, language)
        for one, (cell, (values, *default), meaning) in rows:
            kind, options = schema[one]
            where = f"{name} {language} {one}: {values} {default} {meaning}"
            assert labels(language, name)["inputs"][one]["name"] in cell, where
            assert list(map(words, default)) == ([[reported(options["default"])]] if "default" in options else []), (
                where
            )
            if "min" in options:
                assert re.findall(r"[\d.]+", values)[:2] == [reported(options["min"]), reported(options["max"])], where
            elif kind == "COMBO" and "default" in options and len(options["options"]) <= 4:
                assert words(values) == options["options"], where
            elif kind in ("IMAGE", "LATENT", "MODEL", "VAE"):
                assert words(values) == [kind], where


def reported(value) -> str:
    """A schema's value as the pages write it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_outputs(nodes, pages):
    for (name, language), page in pages.items():
        cells = [cell for cell, _, _ in page.entries[1]]
        assert [words(cell) for cell in cells] == [[one] for one in nodes[name]["output_name"]], (name, language)
        for i, cell in enumerate(cells):
            assert labels(language, name)["outputs"][str(i)]["name"] in cell


def test_pictures(comfyui, pages):
    """The frontend looks for relative paths in docs/, for pages in a folder of their own as well."""
    for (name, language), page in pages.items():
        assert page.text.splitlines()[2].startswith("!["), f"{name} {language} does not begin with a picture"
        for picture in page.pictures:
            answer = comfyui.get(f"/extensions/{comfyui.pack_name}/docs/{picture}")
            assert answer.headers["Content-Type"] in ("image/jpeg", "image/png"), picture
            with Image.open(io.BytesIO(answer.content)) as opened:
                assert opened.width >= 300, picture


def test_errors_are_those_of_the_sources(pages):
    for (name, language), page in pages.items():
        if language != "en":
            continue
        assert page.errors, name
        for error in page.errors:
            pieces = error.split("...")
            assert max(map(len, pieces)) >= 10, f"{name}: {error!r} could be anything"
            pattern = re.compile(".*".join(map(re.escape, pieces)), re.DOTALL)
            assert any(map(pattern.search, messages())), f"{name} quotes {error!r}, which nothing says"


@functools.cache
def messages() -> list[str]:
    """Every text in the sources but docstrings; NUL stands for what an f-string fills in."""
    found = []
    for path in [*(PACK / "nodes").rglob("*.py"), *(PACK / "dcae_core").rglob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else "\0" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                found.append(node.value)
    for path in (PACK / "web").glob("*.js"):
        found += path.read_text(encoding="utf-8").splitlines()
    return found


def test_translations_say_the_same(pages):
    for (name, language), page in pages.items():
        english = pages[name, "en"]
        assert page.errors == english.errors, (name, language)
        assert page.errors == re.findall(r"^- \*([^*\n]+)\*", page.section(ERRORS[language]), re.MULTILINE)
        assert page.pictures == english.pictures, (name, language)
        for mine, theirs in zip(page.entries, english.entries, strict=True):
            assert [words(row[0]) for row in mine] == [words(row[0]) for row in theirs], (name, language)
            assert [len(row[1]) for row in mine] == [len(row[1]) for row in theirs], (name, language)
        for start in ("## ", "- "):
            count = [sum(line.startswith(start) for line in one.text.splitlines()) for one in (page, english)]
            assert count[0] == count[1], (name, language, start)


# The width that the help needs and has: in the panel as it is, and as narrow as it can be made.
NARROW = """help => [null, "400px", "300px"].map(width => {
    help.style.width = width ?? "";
    const sizes = [help.scrollWidth, help.clientWidth];
    help.style.width = "";
    return sizes;
})"""


@pytest.mark.parametrize("language", FILES)
def test_a_browser_shows_the_pages(nodes, pages, newest, language):
    page = newest(language)
    for name in nodes:
        page.evaluate(
            """name => {
                app.graph.clear();
                const node = LiteGraph.createNode(name);
                node.pos = [300, 300];
                app.graph.add(node);
                app.canvas.selectNode(node);
            }""",
            name,
        )
        title = labels(language, name)["display_name"]
        page.get_by_test_id("info-button").click()
        page.wait_for_function(
            """title => {
                const help = document.querySelector(".node-help-content");
                const pictures = [...(help?.querySelectorAll("img") ?? [])];
                return help?.querySelector("h1")?.textContent === title && pictures.length
                    && pictures.every(one => one.complete);
            }""",
            arg=title,
        )
        help_ = page.locator(".node-help-content")
        assert all(help_.locator("img").evaluate_all("all => all.map(one => one.naturalWidth)")), f"{name} {language}"
        entries = [name for part in pages[name, language].entries for name, _, _ in part]
        assert help_.locator("li > strong").all_inner_texts() == [name.replace("`", "") for name in entries]
        quoted = [text.strip() for text in help_.locator("li > em").all_inner_texts()]
        assert quoted == pages[name, language].errors
        widths = help_.evaluate(NARROW)
        assert min(shown for _, shown in widths) < 320 and all(needed <= shown for needed, shown in widths), widths
        assert "*" not in help_.inner_text() and "|" not in help_.inner_text(), "markdown that was not understood"


@pytest.fixture(scope="module")
def newest(browser):
    """Opens ComfyUI's page in its newest frontend, in a language."""
    with Server(args=["--front-end-root", str(default_env() / "frontend")]) as server:

        def opened(language: str):
            for name, value in {"Comfy.TutorialCompleted": True, "Comfy.Locale": language}.items():
                requests.post(f"{server.url}/settings/{name}", json=value, timeout=30).raise_for_status()
            page = browser.new_page(viewport={"width": 1500, "height": 900})
            page.goto(server.url)
            page.wait_for_function("window.app?.extensions?.some(e => e.name === 'dcae')", timeout=120_000)
            page.wait_for_function("window.app.graph && document.querySelector('canvas')")
            page.wait_for_timeout(2000)
            return page

        yield opened
