"""Where the time of a mid frame goes, and how much arithmetic each stage takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..checkpoint import Bare
from ..methods.tlbvfi import TlbvfiMethod
from ..model import TLBVFI, Geometry
from .cuda import now
from .figures import STAGES


@contextmanager
def stage_by_stage(method: TlbvfiMethod) -> Iterator[None]:
    """Without graphs of whole frames within the block, which would hide the stages from the clock.

    The sampler remains a graph of its own.
    """
    method.launches_frames_at_once = False
    method.forget_graphs()
    try:
        yield
    finally:
        method.launches_frames_at_once = True


@contextmanager
def watched(method: TlbvfiMethod) -> Iterator[dict[str, float]]:
    """Seconds that the method spends in each stage within the block, and between them (`other`).

    To be used within `stage_by_stage`.
    On a GPU the clock waits after every stage, so the sum exceeds the time of an undisturbed run.
    """
    spent: dict[str, float] = dict.fromkeys(STAGES, 0.0)
    model, device = method.model, method.device
    owners: tuple[tuple[str, Any, str], ...] = (
        ("encode", model, "encode"),
        ("encode", model, "levels_of"),
        ("encode", model, "encode_canvas"),
        ("latent", model, "encode_clip"),
        ("sampler", method, "sample"),
        ("quantizer", model.vqgan.quantize, "forward"),
        ("flow", model, "estimate_flow"),
        ("decode", model, "decode"),
    )
    for stage, owner, name in owners:
        # An attribute of the object hides the method of its class until it is deleted again.
        setattr(owner, name, _clocked(stage, getattr(owner, name), spent, device))
    began = now(device)
    try:
        yield spent
    finally:
        for _, owner, name in owners:
            delattr(owner, name)
        spent["other"] = now(device) - began - sum(spent.values())


def _clocked(
    stage: str, call: Callable[..., Any], spent: dict[str, float], device: torch.device
) -> Callable[..., Any]:
    def timed(*arguments: object, **options: object) -> Any:  # noqa: ANN401 - passed through
        others = sum(spent.values())
        began = now(device)
        result = call(*arguments, **options)
        # Without the time of the stages nested in this one.
        spent[stage] += now(device) - began - (sum(spent.values()) - others)
        return result

    return timed


@torch.no_grad()
def count_gflop(geometry: Geometry, steps: int) -> dict[str, float]:
    """GFLOP of each stage for a mid frame inside a sequence; nothing is computed.

    Counted on the meta device with whole maps: what bands compute twice at their edges is left out.
    Attention is two products there; on a CPU the counter would not see it at all.
    """
    with torch.device("meta"):
        model = TLBVFI(Bare()).eval()
        frame = torch.empty(1, 3, geometry.height, geometry.width)
        noise = [torch.empty(1, 3, 3, *geometry.latent)] * (steps - 1)
    unknown = model.encode_unknown(geometry)
    counted: dict[str, float] = {}

    def count(stage: str, call: Callable[[], Any]) -> Any:  # noqa: ANN401 - passed through
        with FlopCounterMode(display=False) as counter:
            result = call()
        counted[stage] = counter.get_total_flops() / 1e9
        return result

    features = count("encode", lambda: model.encode(frame, geometry))
    y: Tensor = count("latent", lambda: model.encode_clip(features, unknown, features))
    latent = count("sampler", lambda: model.sample_latent(y, steps, noise))
    latent = count("quantizer", lambda: model.vqgan.quantize(latent))
    flow = count("flow", lambda: model.estimate_flow(features, features))
    count("decode", lambda: model.decode(latent, features, features, flow))
    return counted
