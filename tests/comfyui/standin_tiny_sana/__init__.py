"""Custom nodes for tests alone, beside the real ComfyUI_ExtraModels: a stand-in for the sizes in its table of Sana
models. Two entries more, `tiny` and `tiny_sprint`, have the options of published ones and the sizes of sizes.json."""

import json
import sys
from pathlib import Path

from server import PromptServer

NODE_CLASS_MAPPINGS = {}
SIZES = json.loads(Path(__file__).with_name("sizes.json").read_text())
LIKE = {"tiny": "SanaMS_1600M_P1_D20", "tiny_sprint": "SanaSprint_1600M_P1_D20"}


def add_entries(request: dict) -> dict:
    """Called with each prompt, before it is checked: the order in which packs are imported is not known."""
    (table,) = (module.sana_conf for name, module in sys.modules.items() if name.endswith("ExtraModels.Sana.conf"))
    for name, like in LIKE.items():
        table[name] = {**table[like], "unet_config": {**table[like]["unet_config"], **SIZES}}
    return request


PromptServer.instance.add_on_prompt_handler(add_entries)
