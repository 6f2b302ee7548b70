"""DC-AE for ComfyUI: the module that ComfyUI imports. The nodes are imported only when ComfyUI asks for them."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Return the extension with the nodes. ComfyUI calls this."""
    from .nodes import DCAEExtension

    return DCAEExtension()
