"""The TLB-VFI networks: tensors in, tensors out; no files, no devices, no video."""

from .geometry import MINIMUM_SIDE, Geometry, Padding, plan_geometry
from .memory import MemoryPlan, plan_memory
from .precision import COMPUTE_DTYPES
from .sampling import SamplingOptions, sample
from .tlbvfi import TLBVFI, FrameFeatures

__all__ = [
    "COMPUTE_DTYPES",
    "MINIMUM_SIDE",
    "TLBVFI",
    "FrameFeatures",
    "Geometry",
    "MemoryPlan",
    "Padding",
    "SamplingOptions",
    "plan_geometry",
    "plan_memory",
    "sample",
]
