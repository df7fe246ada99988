"""When memory runs out, the work goes on with less and gives the same frames."""

from fractions import Fraction
from itertools import count, pairwise

import pytest
import torch
from comfyui_tlbvfi.tlbvfi.errors import MemoryBudgetError
from comfyui_tlbvfi.tlbvfi.memory import is_out_of_memory
from comfyui_tlbvfi.tlbvfi.method import PairKey, Request
from comfyui_tlbvfi.tlbvfi.methods import tlbvfi
from comfyui_tlbvfi.tlbvfi.methods.tlbvfi import TlbvfiMethod
from comfyui_tlbvfi.tlbvfi.model import SamplingOptions, plan_memory

OPTIONS = SamplingOptions(steps=1, padding="tight")
GEOMETRY = OPTIONS.geometry(64, 64)
FASTEST, LEAST = (plan_memory(GEOMETRY, available=limit).peak for limit in (None, 0))
KEY = PairKey(0, 0)
TIMES = [Fraction(1, 4), Fraction(1, 2)]

PLAN_ARGUMENT = {"encode": 2, "forward": 5}


@pytest.fixture
def short_of_memory(model, monkeypatch):
    """Make calls of the network's `encode` or `forward` fail; returns the peaks of their plans."""

    def fail(name, failures):
        function, calls, peaks = getattr(model, name), count(), []

        def short(*arguments):
            peaks.append(arguments[PLAN_ARGUMENT[name]].peak)
            if next(calls) in failures:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            return function(*arguments)

        monkeypatch.setattr(model, name, short)
        return peaks

    return fail


@pytest.fixture(scope="module")
def frames():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def mid_frames(method, frames, times=TIMES):
    features0, features1 = [method.prepare(frame) for frame in frames[:2]]
    return torch.stack(list(method.between(features0, features1, times, KEY)))


def test_a_shortage_goes_on_with_less_and_the_same_frames(model, frames, short_of_memory):
    undisturbed = mid_frames(TlbvfiMethod(model, OPTIONS), frames)
    encoded, tried = short_of_memory("encode", {1}), short_of_memory("forward", {1})
    assert torch.equal(mid_frames(TlbvfiMethod(model, OPTIONS), frames), undisturbed)
    # both frames; then the mid frame, an endpoint of the pair for the frame at a quarter
    assert encoded[0] == encoded[1] == FASTEST > encoded[2] == encoded[3]
    assert encoded[2] == tried[0] == tried[1] > tried[2] >= LEAST


def test_what_does_not_fit_in_the_least_is_refused_with_what_to_do(sketch, frames, short_of_memory):
    tried = short_of_memory("forward", range(1000))
    with pytest.raises(
        MemoryBudgetError, match="64x64 do not fit into the memory of cpu"
    ) as refused:
        mid_frames(TlbvfiMethod(sketch, OPTIONS), frames)
    assert isinstance(refused.value.__cause__, torch.cuda.OutOfMemoryError)
    assert (tried[0], tried[-1]) == (FASTEST, LEAST)
    assert all(a > b for a, b in pairwise(tried))
    assert len(tried) < 20


@pytest.mark.parametrize(("has_it", "advice"), [(True, "bfloat16"), (False, "float16")])
def test_what_does_not_fit_is_told_of_a_precision_that_its_device_has(
    sketch, frames, short_of_memory, monkeypatch, has_it, advice
):
    short_of_memory("forward", range(1000))
    monkeypatch.setattr(tlbvfi, "has_bfloat16", lambda device: has_it)
    with pytest.raises(MemoryBudgetError, match=f"set precision to {advice} and"):
        mid_frames(TlbvfiMethod(sketch, OPTIONS), frames)


def test_others_make_room_before_less_is_made_do_with(sketch, frames, short_of_memory):
    undisturbed = mid_frames(TlbvfiMethod(sketch, OPTIONS), frames)
    tried = short_of_memory("forward", {0, 1})
    rooms = iter([True, False])
    method = TlbvfiMethod(sketch, OPTIONS, make_room=lambda: next(rooms))
    assert torch.equal(mid_frames(method, frames), undisturbed)
    assert tried[0] == tried[1] == FASTEST > tried[2]


def test_other_errors_are_not_taken_for_a_shortage(sketch, frames, monkeypatch):
    monkeypatch.setattr(sketch, "forward", lambda *arguments: torch.empty(2) @ torch.empty(3))
    with pytest.raises(RuntimeError, match="size"):
        mid_frames(TlbvfiMethod(sketch, OPTIONS), frames)


def test_a_shortage_leaves_fewer_pairs_at_once(sketch, frames, monkeypatch, short_of_memory):
    """Two pairs in a batch until they no longer fit, then one by one."""

    def pairs_at_once(method, height, width):
        return 2 if method.available is None or method.available > 2 * LEAST else 1

    method = TlbvfiMethod(sketch, OPTIONS)
    features = [method.prepare(frame) for frame in frames]
    requests = [
        Request(features0=a, features1=b, times=TIMES[1:], key=PairKey(0, pair))
        for pair, (a, b) in enumerate(pairwise(features))
    ]
    single = [f for r in requests for f in method.between(r.features0, r.features1, r.times, r.key)]
    monkeypatch.setattr(TlbvfiMethod, "pairs_at_once", pairs_at_once)
    tried = short_of_memory("forward", range(5))
    assert method.pairs_at_once(64, 64) == 2
    many = list(method.between_many(requests))
    assert method.pairs_at_once(64, 64) == 1
    assert len(many) == len(single) == 2
    assert torch.equal(torch.stack(many), torch.stack(single))
    assert tried[0] > FASTEST >= tried[-1]


def test_the_errors_of_a_full_memory_are_known():
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB)"))
    assert is_out_of_memory(
        RuntimeError(
            "Could not allocate tensor with 234881024 bytes. There is not enough GPU video memory "
            "available!"
        )
    )
    assert is_out_of_memory(RuntimeError("CUDNN_STATUS_ALLOC_FAILED"))
    assert is_out_of_memory(RuntimeError("could not create a primitive"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))
