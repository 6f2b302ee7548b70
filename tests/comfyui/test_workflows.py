"""The workflows of example_workflows: the same graph in both formats, and each runs where its nodes are at hand."""

import json
from pathlib import Path

import pytest
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
WORKFLOWS = sorted(FOLDER.glob("*.json"))


def test_there_are_workflows():
    assert WORKFLOWS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_both_formats_hold_the_same_graph(path, comfyui):
    workflow = json.loads(path.read_text())
    prompt = json.loads((FOLDER / "api" / path.name).read_text())
    nodes = {str(n["id"]): n for n in workflow["nodes"] if n["type"] not in ("Note", "MarkdownNote")}
    links = {link[0]: link for link in workflow["links"]}
    assert {i: n["type"] for i, n in nodes.items()} == {i: n["class_type"] for i, n in prompt.items()}
    for i, n in nodes.items():
        inputs = {}
        for slot in n["inputs"]:
            _, source, output, target, _, kind = links[slot["link"]]
            assert str(target) == i
            assert kind == slot["type"]
            inputs[slot["name"]] = [str(source), output]
        try:
            declared = comfyui.object_info(n["type"])["input"]
        except KeyError:  # of a pack that is not here
            assert inputs.items() <= prompt[i]["inputs"].items(), n["type"]
            assert set(map(str, n["widgets_values"])) >= {
                str(v) for k, v in prompt[i]["inputs"].items() if k not in inputs
            }
            continue
        widgets = [name for part in declared.values() for name, spec in part.items() if is_widget(spec)]
        if n["type"] == "KSampler":
            widgets.insert(1, "control_after_generate")  # which only the page has
        inputs |= dict(zip(widgets, n["widgets_values"], strict=False))
        inputs.pop("control_after_generate", None)
        assert inputs == prompt[i]["inputs"], n["type"]
    assert path.with_suffix(".jpg").is_file(), "a template shows a picture of the same name"


def is_widget(spec: list) -> bool:
    return isinstance(spec[0], list) or spec[0] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_it_runs(path, comfyui):
    """As it is, but for the 4K one, which is made smaller, and its budget with it."""
    prompt = json.loads((FOLDER / "api" / path.name).read_text())
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
    if path.stem == "compare":
        (shown,) = result.outputs["3"]["dcae_compare"][0]["pictures"]
        # Which library decodes the JPEG, and so its colours, changes with ComfyUI's versions.
        assert float(shown["results"][0]["text"].split()[0]) == pytest.approx(26.9, abs=0.25)
        return
    sizes = {Image.open(file).size for file in result.images}
    assert sizes == {
        (512, 344) if path.stem.startswith("4k") else (992, 640) if "inpaint" in path.stem else (1000, 667)
    }
    shown = result.lines.values()
    assert shown and all("strips" in text for text in shown) == path.stem.startswith("4k")


def smaller(inputs: dict) -> dict:
    return {name: 0.03 if name == "budget_gib" else value for name, value in inputs.items()}
