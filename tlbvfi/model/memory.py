"""How much memory TLB-VFI takes, for a warning before a job that will not fit."""

import torch

from .geometry import Geometry

WEIGHTS = 44_300_000
"""Numbers that inference uses."""

WORKSPACE = 195_000_000
"""Bytes that do not depend on the size: bands, repacked weights, the libraries' own."""

FRAMES = 2
FULL_SIZE_VALUES = 30.0
"""Per padded pixel and frame: phi[1..5] and the frame itself."""
FIRST_FEATURE_VALUES = 64
"""Per padded pixel and frame: phi[0], kept where the flow is estimated at full size."""
REDUCED_VALUES = 93
"""Per pixel of the reduced canvas and frame: phi[0..3] of it and the canvas."""
DECODER_VALUES = 155
"""Per padded pixel: the largest maps of the output head, and what leads to them."""
REFINEMENT_VALUES = 515
"""Per pixel of the canvas: eight maps of 64 channels at the finest level of the refinement."""


def predict_peak_memory(geometry: Geometry, *, dtype: torch.dtype = torch.float32) -> int:
    """Bytes TLB-VFI takes at most for one pair on a CPU, weights and features included.

    What the interpreter and torch take on their own (some 230 MB) is not. Within 10 % of what
    benchmarks/model_memory.py measures; `dtype` is that of the decoder.
    """
    pixels = geometry.padded_height * geometry.padded_width
    area = float(geometry.flow_scale) ** 2
    flow_features = REDUCED_VALUES * area if geometry.reduces_flow else FIRST_FEATURE_VALUES
    kept = FRAMES * (FULL_SIZE_VALUES + flow_features) * torch.float32.itemsize
    decoding = DECODER_VALUES * dtype.itemsize
    refining = REFINEMENT_VALUES * area * torch.float32.itemsize
    weights = WEIGHTS * torch.float32.itemsize
    return int(weights + WORKSPACE + pixels * (kept + max(decoding, refining)))
