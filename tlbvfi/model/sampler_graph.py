"""A function of tensors as one CUDA graph per shape: recorded once, replayed without launch gaps.

Meant for the sampler, whose ten steps are hundreds of small kernels that take longer to launch one
by one than to run. The recorded function must not wait for the GPU or copy to it, and must launch
the same kernels whatever the values are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..memory import is_out_of_memory
from .precision import float32_precision

log = logging.getLogger("tlbvfi.model")

Function = Callable[..., Tensor]
Record = Callable[[Function, Sequence[Tensor]], tuple[Callable[[], None], Tensor]]
"""(function, its inputs) -> (a call that recomputes it from the same memory, its output)."""

GRAPHS_KEPT = 4
"""Shapes whose graphs are kept; each holds the memory its function takes."""

WARM_UPS = 3
"""Runs before recording, in which libraries choose kernels and allocate their own memory."""


@dataclass(frozen=True, slots=True)
class Graph:
    """A recorded function with the memory it reads and writes."""

    inputs: list[Tensor]
    output: Tensor
    replay: Callable[[], None]

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        """The function of `inputs`, in newly allocated memory."""
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        self.replay()
        return self.output.clone()


class GraphedSampler:
    """Replays a function of tensors; the first call with new shapes records it.

    Results equal those of the function itself: the same kernels run in the same order. Weights may
    be moved between calls; the function is then recorded again. For one thread at a time, and not
    to be traced by torch.compile.
    """

    def __init__(
        self,
        sample: Function,
        weights: Callable[[], Iterable[Tensor]],
        record: Record | None = None,
    ) -> None:
        """`sample`: maps tensors to one tensor; the only others it may use are those of `weights`.

        `record`: how it is recorded; default: by a `GpuRecorder`.
        """
        self._sample = sample
        self._weights = weights
        self._record = record or GpuRecorder()
        self._graphs: dict[object, Graph] = {}
        self._addresses: list[int] = []

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """`sample(*inputs)`.

        The first input is on the GPU. The others may be on the CPU; if they are page-locked,
        nothing waits for them.
        """
        addresses = [weight.data_ptr() for weight in self._weights()]
        if addresses != self._addresses:
            self._graphs.clear()
            self._addresses = addresses
        key = _key(inputs)
        graph = self._graphs.pop(key, None) or self._recorded(inputs)
        self._graphs[key] = graph  # most recently used last
        while len(self._graphs) > GRAPHS_KEPT:
            del self._graphs[next(iter(self._graphs))]
        return graph(inputs)

    def _recorded(self, inputs: Sequence[Tensor]) -> Graph:
        # Tensors made in inference mode could not be written to outside it; leaving it turns
        # gradients on.
        with torch.inference_mode(False), torch.no_grad():
            own = [torch.empty_like(x, device=inputs[0].device).copy_(x) for x in inputs]
            try:
                replay, output = self._record(self._sample, own)
            except RuntimeError as error:  # an allocator or a driver without graph support
                if is_out_of_memory(error):
                    raise
                log.warning(
                    "CUDA graphs do not work here (%s): the sampler's steps run one by one, which "
                    "is slower and gives the same frames.",
                    str(error).split("\n", 1)[0],
                )
                self._record = compute_anew
                replay, output = self._record(self._sample, own)
        return Graph(own, output, replay)


def _key(inputs: Sequence[Tensor]) -> object:
    """Everything that decides which kernels run."""
    shapes = tuple((tuple(x.shape), x.dtype) for x in inputs)
    return inputs[0].device, shapes, float32_precision()


def compute_anew(function: Function, inputs: Sequence[Tensor]) -> tuple[Callable[[], None], Tensor]:
    """The `Record` for functions that cannot be recorded."""
    output = function(*inputs)

    def replay() -> None:
        output.copy_(function(*inputs))

    return replay, output


class GpuRecorder:
    """Records CUDA graphs that share one pool of memory.

    They may run in any order, because nothing reads a graph's memory after its replay: the result
    is copied out of it.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None  # PyTorch's handle has no public type

    def __call__(
        self, function: Function, inputs: Sequence[Tensor]
    ) -> tuple[Callable[[], None], Tensor]:
        """Run `function` to warm it up, then record it."""
        device = inputs[0].device
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(device)
        # If recording fails, PyTorch leaves its own stream as the current one.
        with torch.cuda.stream(current), torch.autocast("cuda", enabled=False):
            if self._stream is None or self._stream.device != device:
                self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS - 1):
                    function(*inputs)
                output = function(*inputs)
            # Other threads continue: they decode and may allocate page-locked memory meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                # Memory of the graph itself should not outlive its replay: cudaMallocAsync, which
                # ComfyUI uses, warns of each such tensor when the graph is dropped.
                output.copy_(function(*inputs))
            current.wait_stream(self._stream)
        return graph.replay, output
