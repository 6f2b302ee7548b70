"""Do the hosts still have what this pack uses of them? Read in their sources, without running them.

pyright follows our uses through the sources of ComfyUI and SD.Next: names and arguments that are gone. What it can't
follow is listed below: names in strings, those that our classes replace, those of objects without types, and all that
web/*.js uses.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.comfyui.server import comfyui_of, default_env
from tests.servers import python_of

ROOT = Path(__file__).resolve().parents[2]
RULES = ("MissingImports", "AttributeAccessIssue", "CallIssue", "IncompatibleMethodOverride")
# What means that a name or an argument is gone. ComfyNode's methods are to be overridden with other arguments.
GONE = re.compile(
    r"is unknown|could not be resolved|is not a known attribute|No parameter named|Expected \d+ positional"
    r"|Argument missing|overrides class \"(?!ComfyNode)"
)
# diffusers' decorators hide their types from pyright; functools.wraps has no attribute of ours; nodes/schema.py gives
# search_aliases where ComfyUI has it.
UNTOLD = re.compile(r'for class "(dict\[str, Any\]|_Wrapped)|No parameter named "search_aliases"')

# {file of ComfyUI: texts in it}
COMFYUI = {
    "app/custom_node_manager.py": ('"locales"', '"example_workflows"'),
    "comfy/cli_args.py": ('"--fp32-vae"', '"--preview-method"'),
    "comfy/latent_formats.py": ("def process_out(", "latent_channels", "taesd_decoder_name"),
    "comfy/model_patcher.py": (
        *("def clone(", "def get_model_object(", "self.load_device", "self.offload_device"),
        *("def add_wrapper_with_key(", "def remove_wrappers_with_key("),
    ),
    "comfy/sd.py": ('"pixel_space_vae"', "def spacial_compression_encode("),
    "comfy_api/latest/_io.py": (
        "def define_schema(",
        "def execute(",
        "def fingerprint_inputs(",
        "def validate_inputs(",
    ),
    "comfy_api/latest/__init__.py": ("def get_node_list(",),
    "comfy_execution/graph.py": ("def get_node(", "def get_display_node_id("),
    "execution.py": ('"execution_cached"', '"execution_error"', '"execution_interrupted"', '"executing"'),
    "nodes.py": (
        *("comfy_entrypoint", "WEB_DIRECTORY", '"KSampler":', '"KSamplerAdvanced":', '"SetLatentNoiseMask":'),
        *('"VAEEncode":', '"EmptyImage":', '"ImageScale":', '"LoadImage":', '"PreviewImage":'),
    ),
    "comfy_extras/nodes_custom_sampler.py": ("SamplerCustom",),
    "server.py": ('"/view"', '"/upload/image"', "self.client_id", "def add_on_prompt_handler("),
}
SDNEXT = {
    "modules/processing_args.py": ("preprocess",),
    "modules/processing_class.py": (
        *("override_settings", "override_settings_restore_afterwards", "is_hr_pass"),
        *("hr_upscale_to_x", "hr_upscale_to_y"),
    ),
    "modules/options_handler.py": ("def add_option(", "data_labels"),
    "modules/processing_vae.py": ("def vae_decode(",),
    "modules/sd_models.py": ("sd_checkpoint_info",),
    "modules/sd_vae.py": ("def load_vae(", "def refresh_vae_list(", "def reload_vae_weights("),
    "modules/shared_state.py": ("interrupted", "skipped", "def begin(", "def end("),
    "modules/ui_definitions.py": ('"sd_vae"', '"vae_dir"', '"diffusers_offload_mode"', '"offline_mode"'),
    "modules/cmd_args.py": ("'--vae'",),
}
# What web/*.js uses of ComfyUI's page, which as built keeps the names of attributes and little else.
PAGE = """apiURL addEventListener queuePrompt fetchApi getServerFeature convertEventToCanvasOffset setDirty dragOverNode
onDragDrop extensionManager setting toast handleFile registerExtension afterConfigureGraph nodeCreated setup _nodes
connect pos afterChange beforeChange getNodeById createNode registered_node_types addDOMWidget comfyClass computeSize
expandToFitContent getInputNode link widget inputs mode last_serialization onAdded onExecuted Reroute setDirtyCanvas
setSize size subgraph widgets callback serialize"""


@pytest.fixture(scope="module")
def comfyui() -> Path:
    folder = comfyui_of(default_env())
    if not (folder / "main.py").is_file():
        pytest.skip(f"{folder} is no ComfyUI (`nox -s tests` makes one): nothing was looked up in it")
    return folder


@pytest.fixture(scope="module")
def sdnext() -> Path:
    if not os.environ.get("SDNEXT_PATH"):
        pytest.skip("SDNEXT_PATH does not name SD.Next's sources: nothing was looked up in them")
    return Path(os.environ["SDNEXT_PATH"]).resolve()


def gone(host: Path, folder: str, python: Path | str, place: Path) -> list[str]:
    """What pyright misses in a host that a folder of ours uses."""
    pytest.importorskip("pyright", reason="pyright is not installed: nothing was looked up with it")
    config = {"include": [os.path.relpath(ROOT / folder, place)], "typeCheckingMode": "off"}
    config["extraPaths"] = [str(host), str(ROOT), str(ROOT / "scripts")]
    (place / "pyrightconfig.json").write_text(json.dumps(config | {f"report{rule}": "error" for rule in RULES}))
    command = [sys.executable, "-m", "pyright", "-p", place, "--pythonpath", python, "--outputjson"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600)
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] > 5, done.stdout
    lines = [
        f"{Path(one['file']).name}:{one['range']['start']['line'] + 1}: {one['message']}"
        for one in found["generalDiagnostics"]
    ]
    lines = [line for line in lines if GONE.search(line) and not UNTOLD.search(line)]
    return [line for line in lines if 'Import "gradio' not in line]  # it is in SD.Next's own environment


def without(host: Path, texts: dict[str, tuple[str, ...]]) -> list[str]:
    """The texts that are not in their files."""
    files = {name: (host / name).read_text(encoding="utf-8") for name in texts if (host / name).is_file()}

    def there(name: str, one: str) -> bool:
        whole = re.sub(r"^(?=\w)|(?<=\w)$", r"\\b", re.escape(one))
        return re.search(whole, files.get(name, "")) is not None

    return [f"{name}: {one}" for name, wanted in texts.items() for one in wanted if not there(name, one)]


def test_comfyui_has_what_is_used(comfyui, tmp_path):
    assert without(comfyui, COMFYUI) + gone(comfyui, "nodes", python_of(default_env()), tmp_path) == []


def test_what_our_vae_replaces_is_comfyui_s(comfyui):
    ours, theirs = (ROOT / "nodes/vae.py").read_text(), (comfyui / "comfy/sd.py").read_text(encoding="utf-8")
    ours = ours[ours.index("class DCAEVAE") : ours.index("def node_progress")]
    methods = set(re.findall(r"def ([a-z]\w+)\(", ours)) - {"progress"}
    assert {"encode", "decode", "encode_tiled", "decode_tiled", "get_sd"} <= methods
    attributes = set(re.findall(r"self\.(\w+) = ", ours)) - {"dcae"}
    assert {"memory_used_decode", "downscale_ratio", "disable_offload"} <= attributes
    patterns = [*(rf"def {name}\(self" for name in methods), *(rf"\bself\.{name} = " for name in attributes)]
    assert [pattern for pattern in patterns if not re.search(pattern, theirs)] == []


def test_its_page_has_what_is_used(comfyui):
    scripts = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "web").glob("*.js"))
    assert [name for name in PAGE.split() if not re.search(rf"\b{name}\b", scripts)] == []
    pages = [*default_env().glob("[Ll]ib*/**/comfyui_frontend_package/static"), default_env() / "frontend"]
    assert len(pages) >= 2
    for page in pages:
        text = "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in page.rglob("*.js"))
        words = set(re.findall(r"[\w$]+", text))
        assert [name for name in PAGE.split() if name not in words] == [], page
        assert (page / "scripts/app.js").is_file() and (page / "scripts/api.js").is_file()


def test_sdnext_has_what_is_used(sdnext, tmp_path):
    assert without(sdnext, SDNEXT) + gone(sdnext, "scripts", sys.executable, tmp_path) == []


def test_sdnext_is_asked_for_all_that_is_used_of_it():
    scripts = ROOT / "scripts/dcae_sdnext"
    asked = re.findall(r'"(\w+)"', (scripts / "host.py").read_text())
    for file in scripts.glob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
        modules = {name.name for node in imports if node.module == "modules" for name in node.names}
        used = {name.name for node in imports if node.module.startswith("modules.") for name in node.names}
        attributes = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
        used |= {node.attr for node in attributes if node.value.id in modules}
        assert sorted(used - {*asked, "StableDiffusionProcessing"}) == [], f"{file.name}: list it in host.py"


def test_the_workflows_run_what_is_run_by_hand():
    """GitHub runs them; here they are read."""
    hosts = yaml.safe_load((ROOT / ".github/workflows/hosts.yml").read_text())
    assert hosts[True]["schedule"] and hosts["permissions"] == {"contents": "read"}  # YAML 1.1 reads `on` as true
    steps = hosts["jobs"]["symbols"]["steps"]
    places = {
        step["with"]["repository"]: step["with"]["path"] for step in steps if "repository" in step.get("with", {})
    }
    assert places == {"Comfy-Org/ComfyUI": "hosts/comfyui", "vladmandic/sdnext": "hosts/sdnext"}
    assert not any("ref" in step.get("with", {}) for step in steps)
    assert steps[-1]["env"] == {"DCAE_COMFYUI_PATH": "hosts/comfyui", "SDNEXT_PATH": "hosts/sdnext"}
    assert "tests/hosts" in steps[-1]["run"]
    test = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    assert "push" in test[True] and "nox" in [step.get("run") for step in test["jobs"]["test"]["steps"]]
