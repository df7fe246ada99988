"""Triton kernel of a convolution in float32 accuracy on tensor cores; to be imported only there."""
# Triton is installed with PyTorch's CUDA builds only; its functions are compiled from their source.
# pyright: basic, reportMissingImports=false
# ruff: noqa: ANN001, ANN201

import triton
import triton.language as tl


@triton.jit
def convolution_kernel(
    x,
    weight,
    bias,
    out,
    count,
    height,
    width,
    out_height,
    out_width,
    above,
    left,
    one,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """out[pixel, :] = bias + the sum over taps of x[pixel of the tap, :] @ weight[tap].

    Pixels are counted over the batch, channels lie one after the other. `above` and `left`: rows
    and columns of zeros around the input; pixels beyond it on the other sides are zero as well.

    Tensor cores cut their sums instead of rounding them, so each sum of `BLOCK_IN` channels is
    added outside of them (Ootomo and Yokota 2022), times `one`, which is 1.0 and unknown to the
    compiler: a plain addition it would move back into the tensor core.
    """
    pixel = tl.program_id(0).to(tl.int64) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    channel = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    column = (pixel % out_width).to(tl.int32) * STRIDE - left
    row = (pixel // out_width % out_height).to(tl.int32) * STRIDE - above
    image = pixel // out_width // out_height
    inside = pixel < count
    taken = tl.arange(0, BLOCK_IN)
    total = tl.zeros((BLOCK_PIXELS, BLOCK_OUT), tl.float32)
    per_tap: tl.constexpr = C_IN // BLOCK_IN
    for part in range(SIDE * SIDE * per_tap):
        tap = part // per_tap
        y, x_at = row + tap // SIDE, column + tap % SIDE
        seen = inside & (y >= 0) & (y < height) & (x_at >= 0) & (x_at < width)
        first = ((image * height + y) * width + x_at) * C_IN + part % per_tap * BLOCK_IN
        values = tl.load(x + first[:, None] + taken[None, :], seen[:, None], 0.0)
        line = part * BLOCK_IN + taken
        factors = tl.load(weight + line[:, None] + channel[None, :] * (SIDE * SIDE * C_IN))
        sums = tl.dot(values, factors, input_precision="tf32x3")
        total = tl.fma(sums, one, total)
    total += tl.load(bias + channel)[None, :]
    tl.store(out + pixel[:, None] * C_OUT + channel[None, :], total, inside[:, None])
