"""Functions of tensors as CUDA graphs: recorded after a few calls, replayed without launch gaps.

Hundreds of small kernels take longer to launch one by one than to run; a graph launches them all at
once. A function must not wait for the GPU or copy to it, and must launch the same kernels whatever
the values are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..memory import is_out_of_memory
from .precision import float32_precision

log = logging.getLogger("tlbvfi.model")

Function = Callable[..., Sequence[Tensor]]
"""Hashable: functions that are equal do the same."""

CALLS_BEFORE_RECORDING = 8
"""Calls, of all functions together, before any is recorded.

Recording launches everything once more, for nothing, and waits for the GPU: that costs what some
four replays save. So a short job pays little, and one call of each function, in which libraries
choose kernels and allocate their own memory, comes first in any case.
"""

KINDS_KEPT = 8
"""Functions and shapes that are remembered."""


class Recorder(Protocol):
    """How functions run, and how they are recorded."""

    def run(self, function: Function, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """`function(*inputs)`, where it would be recorded."""
        ...

    def record(
        self, function: Function, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> Callable[[], None]:
        """A call that computes `outputs` from the values that `inputs` have then.

        Raises:
            RuntimeError: that is impossible here, or memory ran out.
        """
        ...

    def forget(self) -> None:
        """No recorded call is made any more: give back their memory."""
        ...


@dataclass(frozen=True, slots=True)
class Graph:
    """A recorded function with the memory it reads and writes."""

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    replay: Callable[[], None]

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The function of `inputs`, in newly allocated memory."""
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        self.replay()
        return [output.clone() for output in self.outputs]


class Graphs:
    """Runs functions of tensors that use a network's weights, after some calls as graphs.

    Results equal those of the functions: the same kernels run in the same order. Weights may be
    moved between calls; graphs are then recorded again. For one thread at a time, and not to be
    traced by torch.compile.
    """

    def __init__(self, network: nn.Module, instead: str, recorder: Recorder | None = None) -> None:
        """`network`: functions may use no tensors but its weights and their inputs.

        `instead`: what a warning says happens where graphs do not work.
        `recorder`: default: a `GpuRecorder`.
        """
        # Reading these is ten times faster than `network.parameters()`.
        tensors = ((module._parameters, module._buffers) for module in network.modules())
        self._tensors = [named for both in tensors for named in both if named]
        self._instead = instead
        self._recorder = recorder or GpuRecorder()
        self._addresses: list[int] = []
        self._made: dict[Hashable, list[Tensor]] = {}
        """What each kind of call has given, as tensors without values."""
        self._graphs: dict[Hashable, Graph] = {}
        self._calls = 0
        self.work = True
        """False once recording has failed: functions then simply run."""

    def __call__(self, function: Function, *inputs: Tensor) -> list[Tensor]:
        """`function(*inputs)`.

        The first input is on the GPU. The others may be on the CPU; if they are page-locked,
        nothing waits for them.
        """
        # Tensors made in inference mode could not be written to outside it; leaving it turns
        # gradients on.
        with torch.inference_mode(False), torch.no_grad():
            graph = self._graph_of(function, inputs) if self.work else None
            if graph is not None:
                return graph(inputs)
            there = [x.to(inputs[0].device, non_blocking=True) for x in inputs]
            if not self.work:
                return list(function(*there))
            made = [x.clone() for x in self._recorder.run(function, there)]
            kind = _kind(function, inputs)
            self._made[kind] = [torch.empty_like(x, device="meta") for x in made]
            return made

    def clear(self) -> None:
        """Drop all graphs; they are recorded again after as many calls as at first."""
        self._made.clear()
        self._drop()

    def _drop(self) -> None:
        self._graphs.clear()
        self._calls = 0
        self._recorder.forget()

    def _graph_of(self, function: Function, inputs: Sequence[Tensor]) -> Graph | None:
        """The graph to replay for these inputs; None if there should be or can be none yet."""
        addresses = [
            x.data_ptr() for named in self._tensors for x in named.values() if x is not None
        ]
        if addresses != self._addresses:
            self.clear()
            self._addresses = addresses
        kind = _kind(function, inputs)
        if kind not in self._made:
            # It runs for the first time: its maps must not come on top of the memory of graphs.
            self._drop()
            if len(self._made) >= KINDS_KEPT:
                self._made.clear()
            return None
        self._calls += 1
        if kind not in self._graphs and self._calls > CALLS_BEFORE_RECORDING:
            self._record(kind, function, inputs)
        return self._graphs.get(kind)

    def _record(self, kind: Hashable, function: Function, inputs: Sequence[Tensor]) -> None:
        device = inputs[0].device
        own, outputs = (
            [torch.empty_like(x, device=device) for x in tensors]
            for tensors in (inputs, self._made[kind])
        )
        try:
            replay = self._recorder.record(function, own, outputs)
        except RuntimeError as error:  # an allocator or a driver without graph support
            if is_out_of_memory(error):
                raise
            log.warning(
                "CUDA graphs do not work here (%s): %s, which is slower and gives the same frames.",
                str(error).split("\n", 1)[0],
                self._instead,
            )
            self.work = False
            self.clear()
            return
        self._graphs[kind] = Graph(own, outputs, replay)


def _kind(function: Function, inputs: Sequence[Tensor]) -> Hashable:
    """Everything that decides which kernels run."""
    shapes = tuple((tuple(x.shape), x.dtype) for x in inputs)
    return function, inputs[0].device, shapes, float32_precision()


class GpuRecorder:
    """Records CUDA graphs that share one pool of memory.

    They may run in any order, because nothing reads a graph's memory after its replay: the results
    are copied out of it.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None  # PyTorch's handle has no public type

    def run(self, function: Function, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """`function(*inputs)` in the stream of recordings, where libraries need memory of their own.

        The result is for use in the current stream, and until the next call.
        """
        with self._stream_beside(inputs[0].device) as stream, torch.cuda.stream(stream):
            return function(*inputs)

    def record(
        self, function: Function, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> Callable[[], None]:
        """A call that replays the recorded function."""
        device = inputs[0].device
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        with self._stream_beside(device) as stream:
            try:
                # Other threads continue: they decode and may allocate page-locked memory meanwhile.
                with torch.cuda.graph(
                    graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
                ):
                    # Memory of the graph itself should not outlive its replay: cudaMallocAsync,
                    # which ComfyUI uses, warns of each such tensor when the graph is dropped.
                    for output, made in zip(outputs, function(*inputs), strict=True):
                        output.copy_(made)
            except RuntimeError:
                _end_allocating(device, self._pool)
                raise
        return graph.replay

    def forget(self) -> None:
        """Give back the memory of dropped graphs, and what PyTorch keeps for the current stream.

        Functions run in another stream, which could not use that.
        """
        self._pool = None
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    @contextmanager
    def _stream_beside(self, device: torch.device) -> Iterator[torch.cuda.Stream]:
        """The stream of recordings, after the current one, which continues after it."""
        current = torch.cuda.current_stream(device)
        if self._stream is None or self._stream.device != device:
            self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(current)
        try:
            # If recording fails, PyTorch leaves its own stream as the current one.
            with torch.cuda.stream(current), torch.autocast("cuda", enabled=False):
                yield self._stream
        finally:
            current.wait_stream(self._stream)


def _end_allocating(device: torch.device, pool: Any) -> None:  # noqa: ANN401
    """Have PyTorch's allocator notice that a recording is over, which it may miss if that failed.

    As long as it waits for the end, it frees no memory that two streams have used.
    """
    end = getattr(torch._C, "_cuda_endAllocateToPool", None)  # older: no such function
    if end is not None:
        with suppress(RuntimeError):  # it has noticed
            end(device.index, pool)
