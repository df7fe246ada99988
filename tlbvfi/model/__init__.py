"""The TLB-VFI networks: tensors in, tensors out; no files, no devices, no video."""

from .geometry import MINIMUM_SIDE, Geometry, Padding, plan_geometry
from .tlbvfi import TLBVFI, FrameFeatures

__all__ = ["MINIMUM_SIDE", "TLBVFI", "FrameFeatures", "Geometry", "Padding", "plan_geometry"]
