"""GPU memory that a memory plan takes, counted without a GPU on tensors that have no values.

    python benchmarks/gpu_plans.py 3840x2160 --precision bfloat16 --vram 4G

Needs a CUDA build of PyTorch, but no GPU. It counts the tensors that exist at the peak of three
frames and the two between them. Nothing is measured: the workspaces of libraries (cuBLAS 32 MB per
stream, cuDNN as its kernels request) and the allocator's fragmentation come on top.
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
from comfyui_tlbvfi.tlbvfi.bench.sizes import Size, parse_sizes
from comfyui_tlbvfi.tlbvfi.cli.arguments import add_network, parse_size
from comfyui_tlbvfi.tlbvfi.methods.tlbvfi import DTYPES
from comfyui_tlbvfi.tlbvfi.model import (
    TLBVFI,
    activation,
    bands,
    bridge,
    correlation_kernel,
    flow,
    fused_unet,
    layers,
    nearest,
    norm,
    norm_kernel,
    plan_memory,
    split,
    tlbvfi,
)
from comfyui_tlbvfi.tlbvfi.model.geometry import Geometry, plan_geometry
from comfyui_tlbvfi.tlbvfi.model.memory import GRAPH_FEATURES, IN_HAND, LIBRARIES, MemoryPlan
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

STEPS = 10


def main() -> None:
    """Print one row: the plan's figure and the count."""
    parser = argparse.ArgumentParser(description="Count what a plan of memory takes on a GPU.")
    parser.add_argument("size", help="WIDTHxHEIGHT")
    add_network(parser)
    arguments = parser.parse_args()
    (size,) = parse_sizes(arguments.size)
    budget = None if arguments.memory is None else parse_size(arguments.memory)
    pretend_to_launch_kernels()
    planned, counted = count(size, DTYPES[arguments.precision], budget)
    print(
        f"{size} {arguments.precision}: planned {planned / 1e9:.2f} GB, {counted / 1e9:.2f} GB counted"
    )


def count(size: Size, dtype: torch.dtype, budget: int | None) -> tuple[int, int]:
    """Bytes planned, and bytes of tensors at the peak, weights included in both."""
    geometry = plan_geometry(size.height, size.width)
    with torch.device("meta"):
        like = TLBVFI().to_compute_dtype(dtype)
    live = Live()
    with FakeTensorMode(), torch.no_grad(), live:
        model = on_gpu(like)
        weights = live.now
        available = None if budget is None else budget - weights - LIBRARIES["cuda"]
        plan = plan_memory(geometry, available=available, device="cuda", dtype=dtype)
        run(model, geometry, plan)
    return weights + plan.peak, live.peak


def run(model: TLBVFI, geometry: Geometry, plan: MemoryPlan) -> None:
    """Three frames and the two between them, in the order of a job."""
    unknown = model.encode_unknown(geometry, plan)
    noise = torch.empty((STEPS - 1, 1, 3, 3, *geometry.latent), device="cuda")
    handed_out: list[Tensor] = []
    held: list[Tensor] = []

    def encoded() -> Any:  # noqa: ANN401 - the features of a frame
        frame = torch.empty((1, 3, geometry.height, geometry.width), device="cuda")
        return model.encode(frame, geometry, plan)

    features = encoded()
    if plan.in_graphs:  # held as long as there are graphs, in addition to what they hold at most
        held += [torch.empty_like(features.frame) for _ in range(2)]
        held += [torch.empty_like(x) for _ in range(GRAPH_FEATURES) for x in features.tensors]
    for _ in range(2):
        following = encoded()
        between = model(features, unknown, following, STEPS, noise, plan)
        handed_out = [*handed_out, between][-IN_HAND["cuda"] :]
        features = following


class Live(TorchDispatchMode):
    """Sums the storages that exist, and keeps the largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._there: dict[int, tuple[object, int]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.is_cuda:
                self._note(leaf.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, -(-storage.nbytes() // 512) * 512
        if key in self._there:
            return

        def forget(_: object) -> None:
            del self._there[key]
            self.now -= size

        self._there[key] = weakref.ref(storage, forget), size
        self.now += size
        self.peak = max(self.peak, self.now)


def on_gpu(like: TLBVFI) -> TLBVFI:
    """A network with the same dtypes, on a GPU, without values."""
    with torch.device("cuda"):
        model = TLBVFI()
    for module, known in zip(model.modules(), like.modules(), strict=True):
        for name, value in (*known._parameters.items(), *known._buffers.items()):
            if value is None:
                continue
            empty = torch.empty(value.shape, dtype=value.dtype, device="cuda")
            if empty.ndim == 4:
                empty = empty.contiguous(memory_format=torch.channels_last)
            is_parameter = name in known._parameters
            made = torch.nn.Parameter(empty, requires_grad=False) if is_parameter else empty
            setattr(module, name, made)
        if hasattr(known, bands.SPLITS):
            setattr(module, bands.SPLITS, getattr(known, bands.SPLITS))
    return model


class Launch:
    """A kernel that does nothing."""

    def __getitem__(self, grid: tuple[int, ...]) -> Any:  # noqa: ANN401
        return lambda *args, **kwargs: None


def pretend_to_launch_kernels() -> None:
    """Make the network take the path it takes on an H100; nothing is computed anyway."""
    steps = {pair: bridge.bridge_step(*pair) for pair in pairwise(bridge.step_list(STEPS))}
    bridge.bridge_step = lambda t, following: steps[t, following]
    for module in (flow, nearest, norm, tlbvfi):
        module.is_available = lambda device: True
    for module in (activation, correlation_kernel, fused_unet, nearest, norm_kernel, split):
        module.kernel_named = lambda *name: Launch()
    bands.can_fuse = bands.can_split = layers.can_split = lambda device: True
    split.registers = lambda device: None
    torch.cuda.device_of = lambda tensor: nullcontext()
    # The kernels used on a GPU hold no table of all attention weights.
    torch.nn.functional.scaled_dot_product_attention = lambda q, k, v, **_: torch.empty_like(q)


if __name__ == "__main__":
    main()
