"""The Brownian bridge that ends at the two frames' latent: its schedule and the walk back along it.

Everything here is scalar arithmetic and one update rule; the denoiser is an argument.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

TIMESTEPS = 1000
MAX_STEPS = 500
"""Above this, integer steps of the schedule repeat, and the update would divide by zero."""

Denoiser = Callable[[Tensor, int], Tensor]
"""(state, index of the step) -> predicted offset of the state from the clean latent."""


def step_list(count: int) -> list[int]:
    """Timesteps visited by `count` steps, descending.

    The reference's formula needs at least three steps. One step is the estimate made at the very
    start, two visit both ends.
    """
    if count < 3:
        return [TIMESTEPS - 1, 0][:count]
    spans = count - 2
    return [(TIMESTEPS - 1) * (spans - k) // spans for k in range(spans)] + [1, 0]


def bridge_mean() -> Tensor:
    """m_t, the weight of the end point y at every timestep; [1000] float32."""
    return _m().float()


def bridge_variance() -> Tensor:
    """Variance 2 (m_t - m_t^2) of the bridge at every timestep; [1000] float32."""
    m = _m()
    return (2 * (m - m * m)).float()


def _m() -> Tensor:
    return torch.linspace(0.001, 0.999, TIMESTEPS, dtype=torch.float64, device="cpu")


@dataclass(frozen=True, slots=True)
class BridgeStep:
    """Weights of one update: x <- clean * x0 + end * y + state * x + noise * N(0, 1)."""

    clean: float
    end: float
    state: float
    noise: float


def bridge_step(t: int, following: int) -> BridgeStep:
    """The update from timestep `t` to `following`, multiplied out."""
    m, variance = bridge_mean(), bridge_variance()
    m_t, m_n, v_t, v_n = m[t], m[following], variance[t], variance[following]
    s2 = (v_t - v_n * (1 - m_t) ** 2 / (1 - m_n) ** 2) * v_n / v_t
    kept = ((v_n - s2) / v_t).sqrt()
    return BridgeStep(
        clean=float((1 - m_n) - kept * (1 - m_t)),
        end=float(m_n - kept * m_t),
        state=float(kept),
        noise=float(s2.sqrt()),
    )


def bridge_steps(count: int) -> list[BridgeStep]:
    """All updates of `count` steps; the last leaves the clean latent."""
    updates = [bridge_step(t, following) for t, following in pairwise(step_list(count))]
    return [*updates, BridgeStep(clean=1.0, end=0.0, state=0.0, noise=0.0)]


def sample_bridge(
    denoise: Denoiser, y: Tensor, steps: int, noise: Sequence[Tensor] | Tensor
) -> Tensor:
    """Clean latent at the other end of the bridge that starts at `y`; same shape.

    `noise`: steps - 1 standard normal draws of the shape of `y`, in step order.
    """
    x = y
    for index, w in enumerate(bridge_steps(steps)[:-1]):
        x0 = x - denoise(x, index)
        x = w.clean * x0 + w.end * y + w.state * x + w.noise * noise[index]
    return x - denoise(x, steps - 1)
