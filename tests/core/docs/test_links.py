"""Links and pictures of the documentation lead to files of the repository, headings included; README.md's also in the
registry's package. Every picture is made by a script, every message that is quoted is one of the sources."""

import ast
import re
import subprocess

import pytest

from tests.core.docs.pages import PAGES, README, ROOT, SITE, Page

# Which script makes a picture.
MAKERS = {
    **dict.fromkeys(("workflow.jpg", "compare.jpg", "seams.jpg", "terminal.webp", "sdnext.jpg"), "tools/pictures.py"),
    "speed-cpu-fp32-1024.png": "benchmarks/speed.py",
}


@pytest.mark.parametrize("page", SITE, ids=str)
def test_links(page):
    for link in page.links:
        name, _, anchor = link.partition("#")
        target = (page.path.parent / name).resolve() if name else page.path
        assert target.is_file() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in Page(target).anchors, link


def test_the_registry_has_what_the_readme_links_to():
    if not (ROOT / ".git").exists():
        pytest.skip("no git repository: nothing tells which files are packed")
    command = ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--ignored", "--exclude-from=.comfyignore"]
    left_out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    assert README.links and not {link.partition("#")[0] for link in README.links} & set(left_out)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_script_makes_each_picture(page):
    for picture in page.pictures:
        if picture.suffix == ".svg":  # a text that was written by hand, like the page
            continue
        maker = (ROOT / MAKERS[picture.name]).read_text(encoding="utf-8")
        # benchmarks/speed.py gives a picture the name of its --out.
        assert picture.name in maker or (picture.suffix == ".png" and "--out" in maker)


def test_the_drawing_of_the_architecture():
    titles = re.findall(
        r'font-weight="bold">([^<]*/|[^<]*\.py)</text>', (ROOT / "docs" / "architecture.svg").read_text()
    )
    assert len(titles) > 10
    for name in (name for title in titles for name in title.split(", ")):
        assert any((folder / name).exists() for folder in (ROOT, ROOT / "dcae_core")), name


def test_pages_are_in_the_list_of_the_site():
    listed = re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:")[1], re.M)
    assert sorted(listed) == sorted(map(str, SITE))


def test_messages_that_troubleshooting_quotes():
    page = Page(ROOT / "docs" / "troubleshooting.md")
    quoted = re.findall(r"^\| \*([^*]+)\*", page.text, re.MULTILINE)
    sources = [path for folder in ("dcae_core", "nodes", "scripts") for path in (ROOT / folder).rglob("*.py")]
    nodes = [node for path in sources for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert len(quoted) > 3 and not [one for one in quoted if not any(one in text for text in texts)]
