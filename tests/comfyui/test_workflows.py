"""The workflows of example_workflows: the same graph in both formats, with what the nodes declare, and each runs where
its nodes are at hand."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.core.docs.pages import Page
from tests.servers import PACK

from .extramodels import beside
from .server import Server

FOLDER = PACK / "example_workflows"
WORKFLOWS = sorted(FOLDER.glob("*.json"))
SANA = FOLDER / "Sana text to image.json"
NOTES = ("Note", "MarkdownNote")


@pytest.fixture(scope="module")
def with_extra_models():
    """A ComfyUI with the pack that has Sana's nodes."""
    with Server(**beside()) as server:
        yield server


def test_there_are_workflows():
    assert SANA in WORKFLOWS and len(WORKFLOWS) > 1


def api(path: Path) -> dict:
    return json.loads((FOLDER / "api" / path.name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_both_formats_hold_the_same_graph(path, comfyui):
    known = set(comfyui.get("/object_info").json())
    unknown = {n["class_type"] for n in api(path).values()} - known
    assert not unknown or path == SANA
    check(path, comfyui, unknown)
    assert path.with_suffix(".jpg").is_file(), "a template shows a picture of the same name"


def test_sanas_nodes_get_what_they_declare(with_extra_models):
    """All of it, so that the server takes the workflow; it stops at files that are not here."""
    check(SANA, with_extra_models)
    result = with_extra_models.run(api(SANA))
    assert "offline" in result.error.message.lower(), result.error


def test_gemma_is_sent_to_a_device_that_torch_knows():
    """The node offers `auto` as well, and hands it to torch as it is."""
    (gemma,) = [n["inputs"] for n in api(SANA).values() if n["class_type"] == "GemmaLoader"]
    assert torch.device(gemma["device"]).type == "cuda" and gemma["dtype"] == "BF16"
    assert "Without CUDA set Gemma Loader to *cpu* and *default*" in note(SANA)


def check(path: Path, server: Server, unknown: set[str] = frozenset()) -> None:
    """Both files of a workflow against each other, and against what the server tells of all nodes but the unknown."""
    workflow, prompt = json.loads(path.read_text(encoding="utf-8")), api(path)
    nodes = {str(n["id"]): n for n in workflow["nodes"] if n["type"] not in NOTES}
    links = {link[0]: link for link in workflow["links"]}
    assert {i: n["type"] for i, n in nodes.items()} == {i: n["class_type"] for i, n in prompt.items()}
    for i, n in nodes.items():
        inputs = {}
        for slot in n["inputs"]:
            _, source, output, target, _, kind = links[slot["link"]]
            assert str(target) == i
            assert kind == slot["type"]
            inputs[slot["name"]] = [str(source), output]
        if n["type"] in unknown:
            assert inputs.items() <= prompt[i]["inputs"].items(), n["type"]
            continue
        declared = server.object_info(n["type"])["input"]
        specs = {name: spec for part in ("required", "optional") for name, spec in declared.get(part, {}).items()}
        widgets = [name for name, spec in specs.items() if is_widget(spec)]
        if n["type"] == "KSampler":
            widgets.insert(1, "control_after_generate")  # which only the page has
        inputs |= dict(zip(widgets, n["widgets_values"], strict=False))
        inputs.pop("control_after_generate", None)
        assert inputs == prompt[i]["inputs"], n["type"]
        assert declared.get("required", {}).keys() <= inputs.keys() <= specs.keys(), n["type"]
        for name in inputs.keys() & set(widgets):
            assert is_valid(inputs[name], specs[name]), f"{n['type']}.{name} = {inputs[name]!r}"


def is_widget(spec: list) -> bool:
    return isinstance(spec[0], list) or spec[0] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def is_valid(value, spec: list) -> bool:
    """Whether a widget that is declared like this can hold a value."""
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    if isinstance(kind, list) or kind == "COMBO":
        return value in (kind if isinstance(kind, list) else options["options"])
    if kind in ("INT", "FLOAT"):
        numeric = isinstance(value, int if kind == "INT" else (int, float)) and not isinstance(value, bool)
        return numeric and options.get("min", value) <= value <= options.get("max", value)
    return isinstance(value, {"STRING": str, "BOOLEAN": bool}[kind])


def note(path: Path) -> str:
    (text,) = [n["widgets_values"][0] for n in json.loads(path.read_text())["nodes"] if n["type"] in NOTES]
    return text


def test_the_documentation_lists_them_with_the_sentence_of_their_notes():
    text = (PACK / "docs" / "comfyui.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    sentences = {path.stem: re.match(r"\*\*(.+?)\*\*", note(path))[1] for path in WORKFLOWS}
    assert {name: text for name, text in rows if name in sentences} == sentences


def test_the_command_of_the_documentation(comfyui):
    """Which sends one of them over the API."""
    (block,) = [one for one in Page(PACK / "docs" / "comfyui.md").blocks if one.needs == "a running ComfyUI"]
    command = ["bash", "-c", block.code.replace("http://127.0.0.1:8188", comfyui.url)]
    ran = subprocess.run(command, cwd=PACK, capture_output=True, text=True, check=True)
    run, deadline = json.loads(ran.stdout)["prompt_id"], time.monotonic() + 120
    while not (done := comfyui.get(f"/history/{run}").json()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert done[run]["status"]["status_str"] == "success"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_it_runs(path, comfyui):
    """As it is, but for the 4K one, which is made smaller, and its budget with it."""
    prompt = api(path)
    absent = {n["class_type"] for n in prompt.values()} - set(comfyui.get("/object_info").json())
    if absent:
        pytest.skip(f"{path.stem} needs {', '.join(sorted(absent))} of another pack, which is not here")
    for n in prompt.values():
        if n["class_type"] == "ImageScale":
            n["inputs"] |= {"width": 512, "height": 344}
            prompt = {i: {**n, "inputs": smaller(n["inputs"])} for i, n in prompt.items()}
            break
    result = comfyui.run(prompt)
    assert result.error is None
    if "Compare" in path.stem:
        (shown,) = result.outputs["3"]["dcae_compare"][0]["pictures"]
        # Which library decodes the JPEG, and so its colours, changes with ComfyUI's versions.
        assert float(shown["results"][0]["text"].split()[0]) == pytest.approx(26.9, abs=0.25)
        return
    sizes = {Image.open(file).size for file in result.images}
    assert sizes == {(512, 344) if path.stem.startswith("4K") else (1000, 667)}
    shown = result.lines.values()
    assert shown and (not path.stem.startswith("4K") or all("strips" in text for text in shown))


def smaller(inputs: dict) -> dict:
    return {name: 0.03 if name == "budget_gib" else value for name, value in inputs.items()}
