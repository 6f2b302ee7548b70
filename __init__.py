"""DC-AE for ComfyUI. This file is what ComfyUI imports; without ComfyUI it imports nothing of it."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """ComfyUI asks here for the nodes."""
    from .nodes import DCAEExtension

    return DCAEExtension()
