"""The texts in locales/ are those of the nodes, in every language."""

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "locales"
ENGLISH = json.loads((FOLDER / "en" / "nodeDefs.json").read_text(encoding="utf-8"))


def test_english_is_what_the_nodes_say(comfyui):
    for name, texts in ENGLISH.items():
        info = comfyui.object_info(name)
        assert (texts["display_name"], texts["description"]) == (info["display_name"], info["description"])
        declared = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        assert {name: one["tooltip"] for name, one in texts["inputs"].items()} == {
            name: spec[1]["tooltip"] for name, spec in declared.items()
        }
        assert [texts["outputs"][str(i)]["name"] for i in range(len(info["output"]))] == info["output_name"]
    assert set(ENGLISH) == {name for name in comfyui.get("/object_info").json() if name.startswith("DCAE_")}


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_other_languages_have_the_same_texts(language):
    texts = json.loads((FOLDER / language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert shape(texts) == shape(ENGLISH)
    for text in flat(texts):
        assert text and not set("@{}|$%") & set(text), "vue-i18n gives these a meaning"


def shape(texts):
    return {name: shape(text) for name, text in texts.items()} if isinstance(texts, dict) else None


def flat(texts):
    for text in texts.values():
        yield from flat(text) if isinstance(text, dict) else [text]
