"""tools/host_symbols.py: the list of what we use of the hosts, and the check of it, in the hosts themselves."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "host_symbols.py"
PAGE = "docs/host-symbols.md"
LIBRARIES = Path(diffusers.__file__).parents[1]

sys.path.insert(0, str(TOOL.parent))
from host_uses.sources import Gone, Sources  # noqa: E402
from host_uses.uses import LIST, PYTHON, ROOTS, find  # noqa: E402


def ask(*arguments: object, tool: Path = TOOL) -> tuple[int, str]:
    """Exit status and output of the tool."""
    command = [sys.executable, "-S", str(tool), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def comfyui() -> Path:
    if "DCAE_COMFYUI_ENV" not in os.environ:
        pytest.skip("DCAE_COMFYUI_ENV does not name ComfyUI's environment: nothing was looked up in ComfyUI")
    return Path(os.environ.get("DCAE_COMFYUI_PATH") or Path(os.environ["DCAE_COMFYUI_ENV"]) / "comfyui")


@pytest.fixture(scope="module")
def sdnext() -> Path:
    if not os.environ.get("SDNEXT_PATH"):
        pytest.skip("SDNEXT_PATH does not name SD.Next's sources: nothing was looked up in SD.Next")
    return Path(os.environ["SDNEXT_PATH"])


def changed(target: Path, source: Path, *changes: tuple[str, str, str]) -> Path:
    """A copy of a folder, by links, with (file, pattern, replacement) carried out."""

    def lay(place: Path, origin: Path) -> None:
        if place.is_symlink():
            place.unlink()
        if not place.exists():
            place.mkdir()
            for one in origin.iterdir():
                (place / one.name).symlink_to(one)

    target /= "changed"
    for file, old, new in changes:
        path = Path(file)
        for folder in reversed(path.parents):
            lay(target / folder, source / folder)
        text, count = re.subn(old, new, (target / path).read_text())
        assert count, f"{file} has no {old}"
        (target / path).unlink()
        (target / path).write_text(text)
    return target


def test_the_page_is_what_the_code_uses(tmp_path):
    assert ask("--page", tmp_path / "page.md") == (0, "")
    made, kept = (tmp_path / "page.md").read_text(), (ROOT / PAGE).read_text()
    assert made == kept, f"write it anew: python3 tools/host_symbols.py --page {PAGE}"


def test_it_sees_each_way_of_using_a_host():
    found = find(ROOT)
    for name in (
        "comfy.sd.VAE.memory_used_decode",  # set on self
        "comfy.sd.VAE.spacial_compression_encode",  # of an annotated parameter
        "comfy.utils.ProgressBar.update_absolute",  # of a variable
        "comfy.model_management.args.fp32_vae",
        "comfy_api.v0_0_2.io.Hidden.unique_id",
        "folder_paths.get_filename_list",
        "server.PromptServer.instance.send_sync",
        "modules.shared.opts.sd_vae",
        "diffusers.SanaPipeline.vae_scale_factor",
        "app.canvas.convertEventToCanvasOffset",
        "extension.nodeCreated",
        "message execution_error",
        "route /view",
        "type MaskComposite",
    ):
        assert name in found, name
    assert {s.name for s in found.values() if s.role == "replaced"} == {
        "modules.sd_vae.refresh_vae_list",
        "modules.sd_vae.load_vae",
        "modules.sd_vae.reload_vae_weights",
        "modules.processing_vae.vae_decode",
    }
    assert found["comfy_api.v0_0_2.io.NodeReplace"].optional and not found["comfy.sd.VAE.decode"].optional
    assert found["comfy.model_management.load_models_gpu"].keywords == {"memory_required", "force_full_load"}
    assert not [name for name in found if "dcae" in name.lower()]  # those are ours


def test_no_host_is_overlooked():
    ours = {"dcae_core", "dcae_sdnext"}
    others = {"aiohttp", "gradio", "torch", "PIL", "numpy"}  # of which what is used has been the same for years
    for pattern in PYTHON:
        for file in ROOT.glob(pattern):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    roots = {alias.name.split(".")[0] for alias in node.names}
                else:
                    roots = (
                        {node.module.split(".")[0]} if isinstance(node, ast.ImportFrom) and not node.level else set()
                    )
                assert roots <= {*sys.stdlib_module_names, *ROOTS, *ours, *others}, f"{file}: add it to ROOTS"


def test_sdnext_is_asked_for_all_that_is_used_of_it_and_nothing_else():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from dcae_sdnext.host import SYMBOLS
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    asked = {f"{module}.{name}" for module, names in SYMBOLS.items() for name in names}
    used = [s for s in find(ROOT).values() if s.host == "SD.Next"]
    assert not [s.name for s in used if s.where == {LIST}], "host.py asks for what nothing uses"
    # By the first name in a module; what is in a class or a string is not theirs to ask for.
    needed = {".".join(s.name.split(".")[:3]) for s in used if not s.optional and ": " not in s.name}
    assert needed - asked == {"modules.processing_class.StableDiffusionProcessing"}


def test_the_libraries_have_what_is_used():
    status, reported = ask("--libraries", LIBRARIES)
    assert status == 0 and " 0 gone" in reported, reported


def test_a_renamed_function_of_a_library_is_told(tmp_path):
    file, name = "diffusers/pipelines/auto_pipeline.py", "AUTO_TEXT2IMAGE_PIPELINES_MAPPING"
    folder = changed(tmp_path, LIBRARIES, (file, rf"\b{name}\b", "TEXT_TO_IMAGE"))
    status, reported = ask("--libraries", folder)
    assert status == 1
    assert f"auto_pipeline.{name}: diffusers.pipelines.auto_pipeline has no {name}" in reported
    assert "dcae_core/integrations/sana.py" in reported and " 1 gone" in reported


def test_comfyui_has_what_is_used(comfyui):
    status, reported = ask("--comfyui", comfyui)
    assert status == 0, reported
    assert all(line.startswith("  optional ") for line in reported.splitlines()[1:]), reported


def test_its_page_has_what_is_used(comfyui):
    env = Path(os.environ["DCAE_COMFYUI_ENV"])
    own = {folder.resolve() for folder in env.glob("[Ll]ib*/**/comfyui_frontend_package/static")}
    assert len(own) == 1
    for folder in (*own, env / "frontend"):
        status, reported = ask("--frontend", folder)
        assert status == 0 and " 0 gone" in reported, reported


def test_what_comfyui_no_longer_has_is_told(tmp_path, comfyui):
    changes = {
        "has no vae_offload_device": ("comfy/model_management.py", r"def vae_offload_device\(", "def vae_rest("),
        "VAE has no disable_offload": ("comfy/sd.py", r"self\.disable_offload = ", "self.keep_whole = "),
        "is given mode where ours": (
            "comfy/sd.py",
            r"def decode\(self, samples_in, ",
            "def decode(self, samples_in, mode, ",
        ),
        "has no update_absolute": ("comfy/utils.py", r"def update_absolute\(", "def update_all("),
        "has no fp32_vae": ("comfy/cli_args.py", "--fp32-vae", "--vae-fp32"),
        "takes no is_output_node": ("comfy_api/latest/_io.py", r"\bis_output_node: bool", "is_output: bool"),
        "2 arguments by place, and we give 3": (
            "server.py",
            r"def send_sync\(self, event, data.*?\)",
            "def send_sync(self, event, data)",
        ),
        "nothing says '/view'": ("server.py", '"/view"', '"/look"'),
        "VAEEncode: no node has this type": ("nodes.py", '"VAEEncode":', '"VAEEncoder":'),
    }
    status, reported = ask("--comfyui", changed(tmp_path, comfyui, *changes.values()))
    assert status == 1
    lines = [line for line in reported.splitlines()[1:] if not line.startswith("  optional ")]
    assert len(lines) == len(changes), reported
    assert [text for text in changes if text not in reported] == [], reported


def test_sdnext_has_what_is_used(sdnext):
    status, reported = ask("--sdnext", sdnext)
    assert status == 0 and " 0 gone" in reported, reported


def test_what_sdnext_no_longer_has_is_told(tmp_path, sdnext):
    changes = {
        "sd_vae.resolve_vae: ": ("modules/sd_vae.py", r"def resolve_vae\(", "def find_vae("),
        "sd_vae.load_vae: it is given path where": ("modules/sd_vae.py", r"def load_vae\(", "def load_vae(path, "),
        "shared.opts.vae_dir: ": ("modules/ui_definitions.py", '"vae_dir"', '"vae_folder"'),
        "state.skipped: ": ("modules/shared_state.py", r"\bskipped\b", "passed"),
    }
    status, reported = ask("--sdnext", changed(tmp_path, sdnext, *changes.values()))
    assert status == 1 and len(reported.splitlines()) == 1 + len(changes), reported
    assert [text for text in changes if text not in reported] == [], reported


MODULES = {
    "pack/__init__.py": "from .inner import *\nfrom . import late as early\nfrom gone import lost\n",
    "pack/inner.py": "from .deep import Base\n__all__ = ['shown', 'Thing']\nshown = 1\nhidden = 2\n"
    "class Thing(Base):\n    field: int\n    def __init__(self):\n        self.set, (self.a, self.b) = 1, (2, 3)\n"
    "    @property\n    def other(self) -> 'Other':\n        return Other()\n"
    "class Other:\n    class Inner(Base):\n        pass\n    def register(self):\n        self.later = Thing()\n",
    "pack/deep.py": "import elsewhere\nclass Base:\n    common = 1\nclass Strange(elsewhere.Base):\n    pass\n",
    "pack/late.py": "import sys\nfrom pack.inner import Other\ntry:\n    fast = 1\nexcept ImportError:\n    slow = 2\n"
    "one = Other()\ndef setup():\n    global made\n    made = 1\n",
}


@pytest.mark.parametrize(
    ("name", "reported"),
    [
        ("pack.shown", True),
        ("pack.hidden", False),  # not in __all__
        ("pack.early.fast", True),
        ("pack.late.slow", True),
        ("pack.late.made", True),
        ("pack.late.quick", False),
        ("pack.Thing.common", True),
        ("pack.Thing.b", True),
        ("pack.Thing.c", False),
        ("pack.Thing.other.later.field", True),
        ("pack.Thing.other.never", False),
        ("pack.late.one.later.common", True),
        ("pack.late.one.Inner.common", True),
        ("pack.late.one.Inner.rare", False),
        ("pack.lost.anything", None),  # from elsewhere
        ("pack.deep.Strange.anything", None),
        ("packs.shown", False),
    ],
)
def test_names_are_followed_through_sources(tmp_path, name, reported):
    for file, text in MODULES.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    try:
        found = Sources(tmp_path).look(name).known or None
    except Gone as error:
        found = False
        assert name.split(".")[-1] in str(error) or name.split(".")[0] in str(error)
    assert found == reported


def test_the_scheduled_check_runs_the_tool_on_the_newest_of_each_host():
    """GitHub runs it; here it is read."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/hosts.yml").read_text())
    assert workflow[True]["schedule"] == [{"cron": "23 5 * * 1"}]  # YAML 1.1 reads `on` as true
    assert workflow["permissions"] == {"contents": "read"}  # it opens nothing
    steps = workflow["jobs"]["symbols"]["steps"]
    places = {s["with"]["repository"]: s["with"]["path"] for s in steps if "repository" in s.get("with", {})}
    assert places == {"Comfy-Org/ComfyUI": "hosts/comfyui", "vladmandic/sdnext": "hosts/sdnext"}
    assert not any("ref" in step.get("with", {}) for step in steps)
    command = shlex.split(steps[-1]["run"])
    assert command[:2] == ["python3", "tools/host_symbols.py"]
    given = dict(zip(command[2::2], command[3::2], strict=True))
    assert {"--comfyui": "hosts/comfyui", "--sdnext": "hosts/sdnext"}.items() <= given.items()
    status, reported = ask(*(f"{name}={ROOT}" for name in given if name == "--libraries"))
    assert status == 1 and "there is no module diffusers" in reported  # an argument that it takes


def test_pushes_are_tested_as_by_hand():
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    assert "push" in workflow[True]
    assert workflow["jobs"]["test"]["steps"][-1] == {"run": "nox"}
