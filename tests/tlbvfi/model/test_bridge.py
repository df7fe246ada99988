"""The schedule of the Brownian bridge and the steps along it."""

from itertools import pairwise

import pytest
import torch
from comfyui_tlbvfi.tlbvfi.model.bridge import (
    MAX_STEPS,
    bridge_mean,
    bridge_step,
    bridge_variance,
    sample_bridge,
    step_list,
)


@pytest.mark.parametrize(
    ("count", "steps"),
    [
        (1, [999]),
        (2, [999, 0]),
        (3, [999, 1, 0]),
        (5, [999, 666, 333, 1, 0]),
        (10, [999, 874, 749, 624, 499, 374, 249, 124, 1, 0]),
        (14, [999, 915, 832, 749, 666, 582, 499, 416, 333, 249, 166, 83, 1, 0]),
    ],
)
def test_steps_are_those_of_the_reference(count, steps):
    assert step_list(count) == steps


def test_every_schedule_descends_and_every_update_is_a_number():
    for count in range(2, MAX_STEPS + 1):
        steps = step_list(count)
        assert len(steps) == count
        assert all(a > b for a, b in pairwise(steps))
    for count in (2, 3, 10, 50, MAX_STEPS):
        steps = step_list(count)
        for t, following in pairwise(steps):
            update = bridge_step(t, following)
            assert update.state > 0
            assert update.noise > 0


def test_the_bridge_starts_at_the_end_point_and_ends_at_the_clean_latent():
    assert bridge_mean()[[0, -1]].tolist() == pytest.approx([0.001, 0.999])
    assert bridge_variance().max() == pytest.approx(0.5, abs=1e-5)


def test_a_perfect_denoiser_reaches_the_clean_latent():
    clean, y = torch.randn(1, 3, 3, 2, 2), torch.randn(1, 3, 3, 2, 2)
    noise = [torch.randn_like(y) for _ in range(9)]
    found = sample_bridge(lambda x, step: x - clean, y, 10, noise)
    assert (found - clean).abs().max() < 1e-5


def test_one_step_is_the_estimate_made_at_the_start():
    y = torch.randn(1, 3, 3, 2, 2)
    assert torch.equal(sample_bridge(lambda x, step: 0.25 * x, y, 1, []), y - 0.25 * y)
