"""What a registry or a package index is told of the pack agrees with what is in it."""

import ast
import json
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from PIL import Image

import dcae_core

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, COMFY = PYPROJECT["project"], PYPROJECT["tool"]["comfy"]
PACKED_FILES = {"__init__.py", "install.py", "pyproject.toml", "requirements.txt"}
PACKED_FILES |= {"CHANGELOG.md", "LICENSE", "README.md", "SECURITY.md"}
PACKED_FOLDERS = {"dcae_core", "docs", "example_workflows", "locales", "nodes", "scripts", "web"}
SYSTEMS = {"OS Independent", "Microsoft :: Windows", "POSIX :: Linux", "MacOS"}
ACCELERATORS = {"GPU :: NVIDIA CUDA", "GPU :: AMD ROCm", "GPU :: Intel Arc", "GPU :: Apple Metal"}
ACCELERATORS |= {"NPU :: Huawei Ascend"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "web" / "docs").rglob("*.md"))]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def tracked(*options: str) -> set[str]:
    """Files that git has; with an ignore pattern or file among `options`, those that it matches."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git repository: nothing tells which files are packed")
    # The owner of a checkout is often another user in a container, and git then refuses to read it.
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", *options]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, encoding="utf-8")
    return set(done.stdout.split("\0")) - {""}


def bounds(requirements: list[str]) -> dict[str, SpecifierSet]:
    return {canonicalize_name(one.name): one.specifier for one in map(Requirement, requirements)}


def test_the_name_is_one_the_registry_takes():
    assert re.fullmatch(r"[a-z]+([._-]?[a-z0-9]+)*", PROJECT["name"]) and len(PROJECT["name"]) < 100
    assert "comfy" not in PROJECT["name"]


def test_versions_agree():
    headings = re.findall(r"^## (\S+)", read("CHANGELOG.md"), re.MULTILINE)
    assert PROJECT["version"] == dcae_core.__version__ == headings[0]
    assert re.fullmatch(r"\d+\.\d+\.\d+", PROJECT["version"]), "the registry wants three numbers"


def test_the_licence_is_apache():
    text = read(PROJECT["license"]["file"])
    assert re.match(r"\s*Apache License\s+Version 2\.0, January 2004\s", text)
    assert "9. Accepting Warranty or Additional Liability" in text and "END OF TERMS AND CONDITIONS" in text
    licences = [name for name in PROJECT["classifiers"] if name.startswith("License ::")]
    assert licences == ["License :: OSI Approved :: Apache Software License"]


@pytest.mark.parametrize(("prefix", "known"), [("Operating System", SYSTEMS), ("Environment", ACCELERATORS)])
def test_the_registry_knows_the_classifiers(prefix, known):
    named = {name.removeprefix(f"{prefix} :: ") for name in PROJECT["classifiers"] if name.startswith(prefix)}
    assert named <= known
    assert named or prefix != "Operating System"


def test_the_web_folder_is_named_once():
    assigned = {
        node.targets[0].id: node.value for node in ast.parse(read("__init__.py")).body if isinstance(node, ast.Assign)
    }
    folder = ROOT / ast.literal_eval(assigned["WEB_DIRECTORY"])
    assert list(folder.glob("*.js")) and list(folder.glob("docs/*.md"))
    assert "web" not in COMFY, "ComfyUI would serve this folder beside the one of WEB_DIRECTORY"


def test_the_pages_comfyui_is_the_one_required():
    required = COMFY["requires-comfyui"]
    assert re.fullmatch(r"((^|,)(==|>=|<=|!=|~=|>|<)\d+\.\d+\.\d+)+", required), "the registry's form"
    for page in ("README.md", "docs/comfyui.md"):
        named = re.findall(r"ComfyUI v?(\d+(?:\.\d+)+)", read(page))
        assert named and all(version in SpecifierSet(required) for version in named)


def test_requirements_are_the_dependencies_without_torch():
    lines = (line.split("#")[0].strip() for line in read("requirements.txt").splitlines())
    declared = bounds(PROJECT["dependencies"])
    assert declared.pop("torch")
    assert bounds([line for line in lines if line]) == declared


def test_the_package_has_what_its_users_need_and_no_more():
    packed = tracked() - tracked("--ignored", "--exclude-from=.comfyignore")
    assert {name.split("/")[0] for name in packed} == PACKED_FILES | PACKED_FOLDERS
    assert packed == {name for name in tracked() if name.split("/")[0] in PACKED_FILES | PACKED_FOLDERS}


def test_the_wheel_says_that_it_has_types():
    packages = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert packages == ["dcae_core", "dcae"]
    assert {f"{package}/py.typed" for package in packages} <= tracked()


def test_every_pattern_of_comfyignore_matches_something():
    patterns = [line for line in read(".comfyignore").splitlines() if line and not line.startswith("#")]
    assert patterns and not [one for one in patterns if not tracked("--ignored", f"--exclude={one}")]


def test_every_example_workflow_has_a_picture_and_an_api_form():
    folder = ROOT / "example_workflows"
    names = {path.stem for path in folder.glob("*.json")}
    assert names and names == {path.stem for path in folder.glob("*.jpg")}
    assert names == {path.stem for path in folder.glob("api/*.json")}


def test_every_node_has_a_help_page():
    nodes = json.loads(read("locales/en/nodeDefs.json"))
    assert {path.stem for path in (ROOT / "web" / "docs").glob("*.md")} == set(nodes)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_of_a_page_are_there_and_small(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"!\[[^\]]*\]\(([^)\s]+)", text) + re.findall(r"<img[^>]*\ssrc=[\"']([^\"']+)", text)
    # ComfyUI looks for the pictures of a translated page where those of the English one are.
    docs = ROOT / "web" / "docs"
    base = docs if docs in page.parents else page.parent
    local = [base / name for name in named if not name.startswith("https://")]
    assert not [path for path in local if not path.is_file()]
    assert not [path for path in local if path.stat().st_size >= 400_000]
    assert local or page.name != "README.md"


def test_the_icon_has_a_size_the_registry_takes():
    folder = ROOT / "web" / "docs" / "images"
    with Image.open(folder / "icon.png") as icon:
        assert icon.width == icon.height <= 400
    left, top, width, height = ElementTree.parse(folder / "icon.svg").getroot().attrib["viewBox"].split()
    assert (left, top, width) == ("0", "0", height)
    assert not list(folder.rglob("*.js")), "ComfyUI would run it in its page"
