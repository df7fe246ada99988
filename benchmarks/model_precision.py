"""What less exact arithmetic changes in the quantizer's codes, flow and frame, part by part.

    python benchmarks/model_precision.py
    python benchmarks/model_precision.py --clip clip.mp4 --formats tf32 3xfloat16 --parts latent all

Stand-in weights, 256 lines, on the CPU, where a GPU's formats are emulated: the factors of products
are rounded to the format, products of such factors are exact in float32 and summed in float32.
float16 and bfloat16 also round the sums, as maps are stored in them. Attention is not changed:
PyTorch's float32 kernel for GPUs multiplies in three parts anyway. `tf32 cut` truncates factors
instead of rounding them; `3xfloat16` splits factors as `split.conv2d` does, and `3xfloat16 cut`
sums as tensor cores do, truncating after every eight products, but 32 channels at a time; it takes
minutes for a pair.
"""

# Values that pass through a dispatch mode have no type.
# ruff: noqa: ANN401

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from comfyui_tlbvfi.tlbvfi.bench.figures import psnr
from comfyui_tlbvfi.tlbvfi.bench.pictures import as_frames, moving_picture, pictures
from comfyui_tlbvfi.tlbvfi.bench.sizes import Size
from comfyui_tlbvfi.tlbvfi.bench.stand_in import write_stand_in
from comfyui_tlbvfi.tlbvfi.checkpoint import load_checkpoint
from comfyui_tlbvfi.tlbvfi.model import TLBVFI, plan_geometry
from comfyui_tlbvfi.tlbvfi.model.sampling import draw_noise
from comfyui_tlbvfi.tlbvfi.model.split import SMALLER, halves
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

LINES = 256
STEPS = 10
GOLDEN = Path(__file__).resolve().parent.parent / "tests/data/golden"

Multiply = Callable[[Tensor, Tensor], Tensor]
Format = Callable[[Multiply, Tensor, Tensor], Tensor]
"""(exact product, factor, factor) -> the product as a format computes it."""

PARTS = {
    "encoder": ("encoder",),
    "sampler": ("sampler",),
    "latent": ("encoder", "clip", "sampler"),
    "ifnet": ("ifnet",),
    "refinement": ("refinement",),
    "flow": ("ifnet", "refinement"),
    "decoder": ("decoder",),
    "behind the latent": ("ifnet", "refinement", "decoder"),
    "all": ("encoder", "clip", "sampler", "ifnet", "refinement", "decoder"),
}
"""Stages that compute in a format, the others in float32; those of the latent decide the codes."""

aten = torch.ops.aten
FACTORS = {
    aten.convolution.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1),
}
"""Positions of the factors among the arguments of the operators that matrix units compute."""


class Arithmetic(TorchDispatchMode):
    """Computes products in a format while it is entered."""

    def __init__(self, form: Format) -> None:
        super().__init__()
        self.form = form

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in FACTORS:
            return func(*args, **(kwargs or {}))
        multiply, bias = without_bias(func, args)
        first, second = FACTORS[func]
        found = self.form(multiply, args[first], args[second])
        return found if bias is None else found + bias


def without_bias(func: Any, args: Any) -> tuple[Multiply, Tensor | None]:
    """The bare product that an operator computes, and the bias it adds."""
    if func is aten.addmm.default:
        return aten.mm.default, args[0]
    if func is not aten.convolution.default:
        return func, None
    x, _, bias, *rest = args
    shaped = None if bias is None else bias.view(-1, *[1] * (x.ndim - 2))
    return Convolution(*rest), shaped


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution without bias."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    is_transposed: bool
    output_padding: Sequence[int]
    groups: int

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        options = self.stride, self.padding, self.dilation, self.is_transposed
        return aten.convolution.default(x, weight, None, *options, self.output_padding, self.groups)


def rounded(x: Tensor) -> Tensor:
    """`x` rounded to 10 bits of mantissa, ties away from zero, as cvt.rna.tf32.f32."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def cut(x: Tensor) -> Tensor:
    """`x` truncated to 10 bits of mantissa, as hardware does to numbers not rounded before."""
    return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)


def once(narrow: Callable[[Tensor], Tensor], multiply: Multiply, x: Tensor, y: Tensor) -> Tensor:
    """The product of both factors, narrowed."""
    return multiply(narrow(x), narrow(y))


def in_three_parts(multiply: Multiply, x: Tensor, y: Tensor) -> Tensor:
    """Both factors are split into two float16 parts; three of the four products are summed."""
    large_x, small_x, large_y, small_y = (half.float() for part in (x, y) for half in halves(part))
    small = multiply(small_x, large_y) + multiply(large_x, small_y)
    return small / SMALLER + multiply(large_x, large_y)


def in_three_cut_parts(multiply: Multiply, x: Tensor, y: Tensor) -> Tensor:
    """The same; in convolutions, sums are truncated as in tensor cores."""
    if not isinstance(multiply, Convolution) or multiply.is_transposed or multiply.groups > 1:
        return in_three_parts(multiply, x, y)
    return in_three_parts(partial(cutting_convolution, multiply), x, y)


def cutting_convolution(convolution: Convolution, x: Tensor, weight: Tensor) -> Tensor:
    """A convolution as a sum over taps and blocks of 32 channels, each summed with truncation."""
    x = F.pad(x, [side for zeros in reversed(convolution.padding) for side in (zeros, zeros)])
    lengths = zip(x.shape[2:], weight.shape[2:], convolution.stride, strict=True)
    spans = [(length - side) // stride * stride + 1 for length, side, stride in lengths]
    total = torch.zeros(())
    for tap in product(*map(range, weight.shape[2:])):
        window = [
            slice(first, first + span, stride)
            for first, span, stride in zip(tap, spans, convolution.stride, strict=True)
        ]
        seen = x[(..., *window)].movedim(1, -1).split(32, dim=-1)
        factors = weight[(..., *tap)].split(32, dim=1)
        total = total + sum(cutting_sum(s, f) for s, f in zip(seen, factors, strict=True))
    return total.movedim(-1, 1)


def cutting_sum(x: Tensor, weight: Tensor) -> Tensor:
    """`x` [..., C] times `weight` [C_out, C], the sum truncated to float32 every eight channels."""
    total = torch.zeros((*x.shape[:-1], len(weight)), dtype=torch.float64)
    for values, factors in zip(x.split(8, dim=-1), weight.split(8, dim=1), strict=True):
        total += F.linear(values.contiguous(), factors)
        total.view(torch.int64).bitwise_and_(~0x1FFFFFFF)
    return total.float()


def stored(dtype: torch.dtype, multiply: Multiply, x: Tensor, y: Tensor) -> Tensor:
    """The product with factors and sum rounded to a 16-bit dtype."""
    return multiply(x.to(dtype).float(), y.to(dtype).float()).to(dtype).float()


FORMATS: dict[str, Format] = {
    "tf32": partial(once, rounded),
    "tf32 cut": partial(once, cut),
    "3xfloat16": in_three_parts,
    "3xfloat16 cut": in_three_cut_parts,
    "float16": partial(stored, torch.float16),
    "bfloat16": partial(stored, torch.bfloat16),
}
QUICK = tuple(name for name in FORMATS if name != "3xfloat16 cut")
USUAL = "latent", "flow", "decoder", "all"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two frames [1, 3, H, W] and the noise between them."""

    frames: list[Tensor]
    flow_scale: float
    noise: list[Tensor]


@torch.no_grad()
def compute(model: TLBVFI, pair: Pair, form: Format | None, stages: Sequence[str]) -> list[Tensor]:
    """[latent, codes, flow, mid frame], with some stages computed in a format."""

    def inside(stage: str) -> AbstractContextManager[Any]:
        return Arithmetic(form) if form is not None and stage in stages else nullcontext()

    frame0, frame1 = pair.frames
    geometry = plan_geometry(*frame0.shape[-2:], flow_scale=pair.flow_scale, padding="tight")
    with inside("encoder"):
        features0, features1 = (model.encode(frame, geometry) for frame in (frame0, frame1))
        unknown = model.encode_unknown(geometry)
    with inside("clip"):
        y = model.encode_clip(features0, unknown, features1)
    with inside("sampler"):
        latent = model.sample_latent(y, len(pair.noise) + 1, pair.noise)
    quantize, decoder = model.vqgan.quantize, model.vqgan.decoder
    refining = calls_inside(decoder.refinenet, inside("refinement"))
    with calls_inside(decoder.flownet, inside("ifnet")), refining:
        flow = model.estimate_flow(features0, features1)
    with inside("decoder"):
        frame = model.decode(quantize(latent), features0, features1, flow)
    return [latent, quantize.codes(latent), flow, frame]


@contextmanager
def calls_inside(module: nn.Module, context: AbstractContextManager[Any]) -> Iterator[None]:
    """Run every call of `module` inside `context`."""

    def enter(*_: Any) -> None:
        context.__enter__()

    def leave(*_: Any) -> None:
        context.__exit__(None, None, None)

    handles = module.register_forward_pre_hook(enter), module.register_forward_hook(leave)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def golden_pairs(folder: Path) -> Iterator[Pair]:
    """The pairs of the tests' golden files, whose codes are not close calls."""
    for path in sorted(folder.glob("e2e_*.safetensors")):
        with safe_open(path, framework="pt") as file:
            frames = [file.get_tensor(name).movedim(-1, 1).float() / 255 for name in FRAMES]
            scale = float((file.metadata() or {})["flow_scale"])
            yield Pair(frames, scale, list(file.get_tensor("noise")))


FRAMES = ("frame0", "frame1")


def drawn_pairs() -> Iterator[Pair]:
    """A moving smooth picture, and two unrelated pictures."""
    size = Size(LINES, LINES)
    moving = [frame[None] for frame in as_frames(moving_picture(size, 2))]
    coarse = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    unrelated = F.interpolate(coarse, size=(LINES, LINES), mode="bicubic").clamp(0, 1).split(1)
    for seed, frames in enumerate((moving, list(unrelated))):
        yield Pair(frames, 0.5, noise_for(frames, seed))


def clip_pairs(clip: Path, width: int) -> Iterator[Pair]:
    """Neighbors among the first frames of a clip."""
    frames = [frame[None] for frame in as_frames(pictures(Size(width, LINES), clip))]
    for seed in range(0, len(frames) - 1, 4):
        pair = frames[seed : seed + 2]
        yield Pair(pair, 0.5, noise_for(pair, seed))


def noise_for(frames: Sequence[Tensor], seed: int) -> list[Tensor]:
    geometry = plan_geometry(*frames[0].shape[-2:], padding="tight")
    return draw_noise(seed, geometry, STEPS)


def report(exact: Sequence[list[Tensor]], found: Sequence[list[Tensor]]) -> dict[str, float | None]:
    """The figures of the worst pair, or means over the pairs."""
    off = [
        [(f - e).abs() for e, f in zip(*pair, strict=True)]
        for pair in zip(exact, found, strict=True)
    ]
    changed = [(codes != 0).double().mean().item() for _, codes, _, _ in off]
    return {
        "latent_error": max(latent.max().item() for latent, *_ in off),
        "codes_changed": sum(changed) / len(changed),
        "flow_error_pixels": max(flow.max().item() for _, _, flow, _ in off),
        "flow_error_pixels_mean": sum(flow.mean().item() for _, _, flow, _ in off) / len(off),
        "psnr": psnr(max(frame.square().mean().item() for *_, frame in off)),
        "largest_error": max(frame.max().item() for *_, frame in off),
    }


def stand_in_model() -> TLBVFI:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "stand_in.safetensors"
        write_stand_in(path)
        return load_checkpoint(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=QUICK)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=USUAL)
    parser.add_argument("--golden", type=Path, default=GOLDEN, help="folder of golden files")
    parser.add_argument("--clip", type=Path, help="video whose first frames are taken as well")
    parser.add_argument("--width", type=int, default=456, help="of the clip's frames")
    arguments = parser.parse_args()
    model = stand_in_model()
    sets = {"golden": list(golden_pairs(arguments.golden)), "drawn": list(drawn_pairs())}
    if arguments.clip:
        sets["clip"] = list(clip_pairs(arguments.clip, arguments.width))
    for name, pairs in sets.items():
        exact = [compute(model, pair, None, ()) for pair in pairs]
        for form, part in product(arguments.formats, arguments.parts):
            found = [compute(model, pair, FORMATS[form], PARTS[part]) for pair in pairs]
            row = {"pairs": name, "format": form, "part": part, **report(exact, found)}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
