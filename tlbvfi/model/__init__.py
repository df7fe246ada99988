"""The TLB-VFI networks: tensors in, tensors out; no files, no devices, no video."""

from .bands import Bands
from .geometry import MINIMUM_SIDE, Geometry, Padding, plan_geometry
from .memory import WHOLE, MemoryPlan, plan_memory
from .precision import COMPUTE_DTYPES
from .sampling import SamplingOptions, sample
from .tlbvfi import TLBVFI, FrameFeatures

__all__ = [
    "COMPUTE_DTYPES",
    "MINIMUM_SIDE",
    "TLBVFI",
    "WHOLE",
    "Bands",
    "FrameFeatures",
    "Geometry",
    "MemoryPlan",
    "Padding",
    "SamplingOptions",
    "plan_geometry",
    "plan_memory",
    "sample",
]
