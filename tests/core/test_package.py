"""What a registry or a package index is told of the pack agrees with what is in it."""

import ast
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from PIL import Image

import dcae_core

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, COMFY = PYPROJECT["project"], PYPROJECT["tool"]["comfy"]
PACKED_FILES = {"__init__.py", "install.py", "pyproject.toml", "requirements.txt"}
PACKED_FILES |= {"CHANGELOG.md", "LICENSE", "README.md", "SECURITY.md"}
PACKED_FOLDERS = {"dcae_core", "docs", "example_workflows", "locales", "nodes", "scripts", "web"}
SYSTEMS = {"OS Independent", "Microsoft :: Windows", "POSIX :: Linux", "MacOS"}
ACCELERATORS = {"GPU :: NVIDIA CUDA", "GPU :: AMD ROCm", "GPU :: Intel Arc", "GPU :: Apple Metal"}
ACCELERATORS |= {"NPU :: Huawei Ascend"}
OPTIONAL = itertools.chain(*PROJECT["optional-dependencies"].values())
DECLARED = [Requirement(one) for one in (*PROJECT["dependencies"], *OPTIONAL)]
# Modules that are called otherwise than their packages.
MODULES = {"pillow": "PIL", "opencv-python-headless": "cv2", "pillow-jxl-plugin": "pillow_jxl"}
# What each folder may take for granted beside the standard library: its host's modules, and what comes with torch.
GIVEN = {
    "dcae": {"typing_extensions"},
    "dcae_core": {"triton", "typing_extensions"},
    "nodes": {"comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview", "nodes", "server", "aiohttp"},
    "scripts": {"modules", "gradio", "accelerate"},
}
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


def listed(name: str) -> dict[str, SpecifierSet]:
    """What a file of requirements names."""
    lines = (line.split("#")[0].strip() for line in read(name).splitlines())
    return bounds([line for line in lines if line])


def test_the_name_is_one_the_registry_takes():
    assert re.fullmatch(r"[a-z]+([._-]?[a-z0-9]+)*", PROJECT["name"]) and len(PROJECT["name"]) < 100
    assert "comfy" not in PROJECT["name"]


def test_both_import_names_are_installed():
    assert set(PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == {"dcae", "dcae_core"}


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
    declared = bounds(PROJECT["dependencies"])
    assert declared.pop("torch")
    assert listed("requirements.txt") == declared


def imported(folder: str) -> set[str]:
    """Top-level modules that the sources of a folder import, ours and the standard library's left out."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names - {"dcae_core", "dcae_sdnext"}


def test_all_that_is_imported_is_declared_and_the_reverse():
    modules = {MODULES.get(one.name, one.name.replace("-", "_")) for one in DECLARED}
    used = {folder: imported(folder) for folder in GIVEN}
    for folder, names in used.items():
        assert names - modules == GIVEN[folder], folder
    by_name = modules - set().union(*used.values()) - {PROJECT["name"]}
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "dcae_core").rglob("*.py"))
    assert all(f'"{name}' in sources for name in by_name), by_name


def test_a_package_has_one_floor_in_one_place():
    names = [canonicalize_name(one.name) for one in DECLARED if one.name != PROJECT["name"]]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r">=[\d.]+", str(one.specifier)) for one in DECLARED if one.name != PROJECT["name"])


def test_the_oldest_versions_are_the_floors():
    tried = listed("tests/oldest.txt")
    for one in DECLARED:
        if one.name in ("ray", "huggingface_hub", PROJECT["name"]):  # Ray is not tried at its floor, the hub elsewhere
            continue
        (exact,), (floor,) = tried[canonicalize_name(one.name)], one.specifier
        assert exact.operator == "==" and f"{exact.version}.".startswith(f"{floor.version}."), one.name


def test_the_tests_try_a_version_of_each_that_is_promised():
    tried = listed("requirements-test.txt")
    for one in DECLARED:
        if one.name in ("torch", "torchvision", "torch-fidelity", PROJECT["name"]):  # installed otherwise
            continue
        (exact,) = tried[canonicalize_name(one.name)]
        assert exact.operator == "==" and exact.version in one.specifier, one.name


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
