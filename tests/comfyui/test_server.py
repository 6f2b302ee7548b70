"""The server that the other tests of this folder stand on: core nodes only."""

import pytest
from PIL import Image

from .server import Rejected, Server


def plain_image(width: int, height: int, color: int) -> dict:
    image = {"class_type": "EmptyImage", "inputs": {"width": width, "height": height, "batch_size": 1, "color": color}}
    save = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "plain"}}
    return {"1": image, "2": save}


def test_it_starts_without_a_failed_import(comfyui: Server):
    assert "Traceback" not in comfyui.startup_log
    assert "IMPORT FAILED" not in comfyui.startup_log


def test_a_workflow_of_core_nodes_runs(comfyui: Server):
    result = comfyui.run(plain_image(96, 64, 0x3366CC))
    assert result.error is None
    (file,) = result.images
    with Image.open(file) as image:
        assert image.size == (96, 64)
        assert image.convert("RGB").getcolors() == [(96 * 64, (0x33, 0x66, 0xCC))]


def test_an_uploaded_image_can_be_loaded(comfyui: Server, tmp_path):
    Image.new("RGB", (40, 24), (1, 2, 3)).save(tmp_path / "small.png")
    name = comfyui.upload_image(tmp_path / "small.png")
    load = {"class_type": "LoadImage", "inputs": {"image": name}}
    result = comfyui.run({**plain_image(8, 8, 0), "1": load})
    with Image.open(result.images[0]) as image:
        assert image.getpixel((39, 23)) == (1, 2, 3)


def test_a_bad_input_is_rejected_with_the_nodes_name(comfyui: Server):
    with pytest.raises(Rejected) as caught:
        comfyui.run(plain_image(0, 64, 0))
    assert caught.value.node_errors["1"]["class_type"] == "EmptyImage"
    assert "width" in str(caught.value)


def test_what_a_node_raises_comes_back(comfyui: Server):
    prompt = plain_image(8, 8, 0)
    prompt["2"]["inputs"]["filename_prefix"] = "../../outside"
    result = comfyui.run(prompt)
    assert (result.error.node_id, result.error.node_type) == ("2", "SaveImage")
    assert "outside the output folder" in result.error.message
