"""What lower precision costs a mid frame, and how much memory one takes."""

import pytest
import torch
from comfyui_tlbvfi.tlbvfi.bench.sizes import Size
from comfyui_tlbvfi.tlbvfi.model import TLBVFI, sample
from comfyui_tlbvfi.tlbvfi.model.memory import LIBRARIES
from torch.nn import functional as F


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "decibel"), [(torch.float16, 60), (torch.bfloat16, 50)])
def test_lower_precision_stays_near_float32(stand_in_state, model, dtype, decibel):
    low = TLBVFI().eval()
    low.load_state_dict({name: stand_in_state[name] for name in low.state_dict()})
    low.to_compute_dtype(dtype)
    generator = torch.Generator().manual_seed(1)
    frames = [
        F.interpolate(torch.rand(1, 3, 8, 8, generator=generator), size=(256, 256), mode="bicubic")
        for _ in range(2)
    ]
    frames = [frame.clamp(0, 1) for frame in frames]
    off = sample(low, *frames) - sample(model, *frames)
    assert -10 * off.square().mean().log10() > decibel


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "scale"),
    [
        (Size(512, 512), 0.5),
        (Size(512, 512), 1.0),
        (Size(1024, 768), 0.5),
    ],
)
def test_predicted_memory_is_enough_and_not_much_more(measured, size, scale):
    """The memory of a process on top of what it took before the first frame.

    Smaller frames take less than loading the weights, which exist twice for a moment.
    """
    found = measured(size, 1, flow_scale=scale)
    taken = found["peak_bytes"] - found["idle_bytes"]
    predicted = found["predicted_bytes"] + LIBRARIES["cpu"]
    assert 0.75 * predicted < taken <= predicted
