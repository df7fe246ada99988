"""ComfyUI-TLBVFI: video frame interpolation that streams from file to file.

ComfyUI, pip and pytest load this folder under different names, so nothing is imported here at
module level and everything below uses relative imports.
"""

__version__ = "0.1.0"

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> object:
    """The ComfyUI extension; ComfyUI calls this when it loads custom nodes."""
    from .nodes.extension import TLBVFIExtension

    return TLBVFIExtension()
