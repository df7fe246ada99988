"""The TLB-VFI networks: tensors in, tensors out; no files, no devices, no video."""

from .bands import Bands, default_bands
from .geometry import MINIMUM_SIDE, Geometry, Padding, plan_geometry
from .memory import predict_peak_memory
from .precision import COMPUTE_DTYPES
from .sampling import SamplingOptions, sample
from .tlbvfi import TLBVFI, FrameFeatures

__all__ = [
    "COMPUTE_DTYPES",
    "MINIMUM_SIDE",
    "TLBVFI",
    "Bands",
    "FrameFeatures",
    "Geometry",
    "Padding",
    "SamplingOptions",
    "default_bands",
    "plan_geometry",
    "predict_peak_memory",
    "sample",
]
