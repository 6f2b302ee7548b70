"""What clients of the API find in /history, and the messages that the page shows instead: a line for each run."""

import json
import time
import uuid
from pathlib import Path

import pytest
import requests
import websocket

from .prompts import loader, node, photograph, save


def round_trip(name: str, mode: str = "pad", batch: int = 1) -> dict:
    """As a page sends nodes in a subgraph: their ids have its id before them."""
    return {
        "1": node("LoadImage", image=name),
        "2": node("RepeatImageBatch", image=["1", 0], amount=batch),
        "7:3": loader(),
        "7:4": node("DCAE_Encode", pixels=["2", 0], vae=["7:3", 0], size_mode=mode),
        "7:5": node("DCAE_Decode", samples=["7:4", 0], vae=["7:3", 0]),
        "8": save(["7:5", 0], f"outputs-{uuid.uuid4().hex}"),
    }


@pytest.fixture
def name(comfyui, tmp_path) -> str:
    requests.post(f"{comfyui.url}/free", json={"free_memory": True, "unload_models": True}, timeout=30)
    return photograph(comfyui, tmp_path, 150, 140, f"{uuid.uuid4().hex}.png")[0]


@pytest.mark.parametrize(
    ("mode", "batch", "encoded", "decoded"),
    [
        ("pad", 1, "150x140 (padded to 160x160)", "150x140 (padded to 160x160)"),
        ("crop", 1, "150x140 (cropped to 128x128)", "128x128"),
        ("pad", 2, "2 x 150x140 (padded to 160x160)", "2 x 150x140 (padded to 160x160)"),
    ],
)
def test_a_line_is_a_message_and_no_output(comfyui, name, mode, batch, encoded, decoded):
    result = comfyui.run(round_trip(name, mode, batch))
    assert result.error is None
    assert list(result.outputs) == ["8"] and list(result.outputs["8"]) == ["images"]
    sizes = {one: text.split(" · ")[0] for one, text in result.lines.items()}
    assert sizes == {"7:4": encoded, "7:5": decoded}
    for _, data in [event for event in result.events if event[0] == "dcae.line"]:
        assert data["state"] == "done" and data["text"].endswith(" s") and "peak 0." in data["text"]
    again = comfyui.run(round_trip(name, mode, batch))  # from the cache, but for the file of another name
    assert again.lines == {} and list(again.outputs) == ["8"]


def test_the_line_before_a_run_says_the_same_sizes(comfyui):
    def said(**query) -> str:
        common = {"choice": loader()["inputs"]["model"], "width": 150, "height": 140, "batch": 1}
        answer = requests.get(f"{comfyui.url}/dcae/plan", params={**common, **query}, timeout=60).json()
        return answer.get("text", "").split(" · ")[0] or answer["problem"]

    assert said(direction="encode", size_mode="pad") == "150x140 (padded to 160x160)"
    assert said(direction="encode", size_mode="crop", batch=3) == "3 x 150x140 (cropped to 128x128)"
    assert said(direction="encode", width=64, height=96) == "64x96"
    assert said(direction="decode", size_mode="pad", batch=2) == "2 x 150x140 (padded to 160x160)"
    assert said(direction="decode", size_mode="crop") == "128x128"
    assert said(direction="decode", size_mode="forgotten") == "160x160"
    given = {"true_width": 150, "true_height": 0}
    assert said(direction="decode", size_mode="forgotten", **given) == "150x160 (padded to 160x160)"
    assert "width 20 is not that of a picture with this latent" in said(direction="decode", true_width=20)
    assert "can't run with 48 latent channels" in said(direction="encode", latent_channels=48)


def test_a_node_that_stands_for_another(comfyui, name):
    """Nodes that others make while they run, as loops do, are shown where those say."""
    prompt = round_trip(name)
    prompt["7:5"] = node("DecodesByExpansion", samples=["7:4", 0], vae=["7:3", 0])
    result = comfyui.run(prompt)
    assert result.error is None
    assert set(result.lines) == {"7:4", "7:5"}


def test_without_a_client(comfyui, name):
    """Nobody is listening, or somebody else is: the run goes well, and no one gets its lines."""
    other = websocket.create_connection(f"ws://127.0.0.1:{comfyui.port}/ws?clientId={uuid.uuid4().hex}", timeout=60)
    try:
        answer = requests.post(f"{comfyui.url}/prompt", json={"prompt": round_trip(name)}, timeout=60).json()
        deadline = time.monotonic() + 120
        while not (done := comfyui.get(f"/history/{answer['prompt_id']}").json()):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        (entry,) = done.values()
        assert entry["status"]["status_str"] == "success" and list(entry["outputs"]) == ["8"]
        other.settimeout(1)
        heard = []
        while True:
            try:
                heard.append(other.recv())
            except websocket.WebSocketTimeoutException:
                break
        texts = [one for one in heard if isinstance(one, str)]
        assert texts and not [one for one in texts if json.loads(one)["type"] == "dcae.line"]
    finally:
        other.close()


def test_every_entry_has_pictures(comfyui, name):
    """Compare's is a result of its own; a client that takes the first entry, or goes through all, finds a file."""
    result = comfyui.run(
        {
            "1": node("LoadImage", image=name),
            "2": loader(),
            "3": node("DCAE_Compare", image=["1", 0], vae_1=["2", 0], repeats=1, amplify=5.0),
            "4": node("DCAE_Encode", pixels=["1", 0], vae=["2", 0], size_mode="pad"),
            "5": node("DCAE_Decode", samples=["4", 0], vae=["2", 0]),
            "6": save(["5", 0], "outputs"),
            "7": save(["3", 0], "outputs-grid"),
        }
    )
    assert result.error is None and set(result.outputs) == {"3", "6", "7"}
    pictures = {}
    for one, shown in result.outputs.items():
        (image,) = shown["images"]
        assert set(image) == {"filename", "subfolder", "type"}
        answer = requests.get(f"{comfyui.url}/view", params=image, timeout=60)
        assert answer.ok and answer.headers["Content-Type"] == "image/png"
        pictures[one] = Path(comfyui.base, image["type"], image["subfolder"], image["filename"]).stat().st_size
    assert result.outputs["3"]["images"][0]["type"] == "temp" and all(pictures.values())
