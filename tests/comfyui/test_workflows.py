"""Each workflow of example_workflows and its API-format twin are the same graph."""

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
WORKFLOWS = sorted(FOLDER.glob("*.json"))


def test_there_are_workflows():
    assert WORKFLOWS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_twin_is_the_same_graph(path, comfyui):
    workflow = json.loads(path.read_text())
    twin = json.loads((FOLDER / "api" / path.name).read_text())
    nodes = {str(n["id"]): n for n in workflow["nodes"] if n["type"] not in ("Note", "MarkdownNote")}
    links = {link[0]: link for link in workflow["links"]}
    assert {i: n["type"] for i, n in nodes.items()} == {i: n["class_type"] for i, n in twin.items()}
    for i, n in nodes.items():
        inputs = {}
        for slot in n["inputs"]:
            _, source, output, target, _, kind = links[slot["link"]]
            assert str(target) == i
            assert kind == slot["type"]
            inputs[slot["name"]] = [str(source), output]
        declared = comfyui.object_info(n["type"])["input"]
        widgets = [name for part in declared.values() for name, spec in part.items() if is_widget(spec)]
        inputs |= dict(zip(widgets, n["widgets_values"], strict=False))
        assert inputs == twin[i]["inputs"], n["type"]
    assert path.with_suffix(".jpg").is_file(), "a template shows a picture of the same name"


def is_widget(spec: list) -> bool:
    return isinstance(spec[0], list) or spec[0] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
