"""ComfyUI-TLBVFI: video frame interpolation that streams from file to file.

    from comfyui_tlbvfi import interpolate_frames, interpolate_video

    interpolate_video("clip.mp4", "smooth.mp4", method="flow", times=2)

ComfyUI, pip and pytest load this folder under different names, so nothing is imported here at
module level and everything below uses relative imports. The names of the Python interface are
loaded when they are first used.
"""

TYPE_CHECKING = False  # as in `typing`, without importing it
if TYPE_CHECKING:
    from .encoding.errors import VideoError
    from .tlbvfi.api import VideoResult, interpolate_frames, interpolate_video
    from .tlbvfi.errors import InterpolationError
    from .tlbvfi.methods import MethodConfig, create_method

__all__ = [
    "InterpolationError",
    "MethodConfig",
    "VideoError",
    "VideoResult",
    "create_method",
    "interpolate_frames",
    "interpolate_video",
]

__version__ = "0.1.0"

WEB_DIRECTORY = "./web"

_HOMES = {
    "InterpolationError": ".tlbvfi.errors",
    "MethodConfig": ".tlbvfi.methods",
    "VideoError": ".encoding.errors",
    "VideoResult": ".tlbvfi.api",
    "create_method": ".tlbvfi.methods",
    "interpolate_frames": ".tlbvfi.api",
    "interpolate_video": ".tlbvfi.api",
}


async def comfy_entrypoint() -> object:
    """The ComfyUI extension; ComfyUI calls this when it loads custom nodes."""
    from .nodes.extension import TLBVFIExtension

    return TLBVFIExtension()


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name], __name__), name)
