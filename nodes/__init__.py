"""ComfyUI nodes over dcae_core, and the VAE object that the Loader returns."""

from comfy_api.v0_0_2 import ComfyExtension, io

from .coding import DCAEDecode, DCAEEncode
from .compare import DCAECompare
from .latents import DCAEEmptyLatent, DCAELoadLatent, DCAEScaleLatent
from .loader import DCAELoader
from .models import place_example
from .preview import DCAEPreview
from .replace import register
from .web import add_routes

__all__ = ["DCAEExtension"]


class DCAEExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        # Not in on_load, which ComfyUI 0.3.75 does not call.
        await register()
        place_example()
        add_routes()
        coding = [DCAELoader, DCAEEncode, DCAEDecode]
        return [*coding, DCAEEmptyLatent, DCAELoadLatent, DCAEScaleLatent, DCAECompare, DCAEPreview]
