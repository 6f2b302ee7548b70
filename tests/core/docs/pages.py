"""The pages of the documentation, and what is in them."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Block:
    """Code of a page. needs: what it can't run without, as its first line says ("# Needs a GPU.")."""

    language: str
    code: str

    @property
    def needs(self) -> str:
        found = re.match(r"# Needs (.+)\.\n", self.code)
        return found[1] if found else ""


@dataclass(frozen=True)
class Page:
    path: Path

    def __str__(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def blocks(self) -> list[Block]:
        return [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)]

    @property
    def without_code(self) -> str:
        return re.sub(r"^```.*?^```$", "", self.text, flags=re.MULTILINE | re.DOTALL)

    @property
    def prose(self) -> str:
        """The text without any code, where brackets are no links."""
        return re.sub(r"^    .*$", "", re.sub(r"`[^`\n]*`", "code", self.without_code), flags=re.MULTILINE)

    @property
    def links(self) -> list[str]:
        """Where links and pictures of the repository lead, as they are written."""
        found = re.findall(r"\]\(([^)\s]+)\)", self.prose) + re.findall(r"<img[^>]*\ssrc=[\"']([^\"']+)", self.prose)
        return [link for link in found if not re.match(r"https?://", link)]

    @property
    def pictures(self) -> list[Path]:
        return [(self.path.parent / name).resolve() for name in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", self.prose)]

    @property
    def anchors(self) -> set[str]:
        """Of its headings, as code hosts and the site make them."""
        headings = re.findall(r"^#+ (.+)$", self.without_code, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


README = Page(ROOT / "README.md")
PAGES = [README, *(Page(path) for path in sorted((ROOT / "docs").glob("*.md")))]
# The others of the site.
MORE = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md")), *sorted(ROOT.glob("web/docs/*.md"))]
SITE = [*PAGES, *(Page(path) for path in [*MORE, ROOT / "dcae_core/engine/README.md"] if path != README.path)]
