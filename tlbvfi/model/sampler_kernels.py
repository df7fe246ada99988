"""The Triton kernels of the sampler; import only if Triton is installed.

Maps are [B, 3, h, w, 32] float32, with the 32 channels of a pixel adjacent. The latent itself is
[B, 3, 3, h, w]. Products are of float16 halves, see `split`, with float32 accuracy.

Every map is computed in squares of one frame and comes with the moments of its squares,
[B, squares, 2, 32]: mean and sum of squared deviations of each channel. The kernel that norms the
map merges them, so a norm needs no kernel of its own.
"""
# Triton is installed with PyTorch's CUDA builds only; its functions are compiled from their source.
# pyright: basic, reportMissingImports=false
# ruff: noqa: ANN001, ANN201

import triton
import triton.language as tl

from .triton_kernels import SIZES, attended, halved, plus_product

WIDTH = tl.constexpr(32)
"""Channels of a map."""
FRAMES = tl.constexpr(3)
DOWN, UP = tl.constexpr(-1), tl.constexpr(1)
SQUARES_AT_ONCE = tl.constexpr(128)
"""Number of squares whose moments are merged at once."""


@triton.jit
def merged(moments, height, width, side):
    """(mean, summed squared deviations) of the channels of a map, from those of its squares.

    (Chan, Golub and LeVeque 1979.) Means are taken relative to that of the first square, which is
    only as far from the overall mean as squares are from each other, so little cancels.
    """
    channel = tl.arange(0, WIDTH)
    columns = tl.cdiv(width, side)
    squares = columns * tl.cdiv(height, side)
    first = tl.load(moments + channel)
    apart = tl.zeros((WIDTH,), tl.float32)
    deviations = tl.zeros((WIDTH,), tl.float32)
    for begin in range(0, squares * FRAMES, SQUARES_AT_ONCE):
        square = begin + tl.arange(0, SQUARES_AT_ONCE)
        inside = (square < squares * FRAMES)[:, None]
        at = moments + square[:, None] * (2 * WIDTH) + channel[None, :]
        off = tl.load(at, inside, 0.0) - first[None, :]
        rows = tl.minimum(height - square % squares // columns * side, side)
        pixels = rows * tl.minimum(width - square % columns * side, side)
        count = tl.where(inside, pixels.to(tl.float32)[:, None], 0.0)
        apart += tl.sum(count * off, axis=0)
        deviations += tl.sum(tl.load(at + WIDTH, inside, 0.0) + count * off * off, axis=0)
    center = tl.div_rn(apart, (height * width * FRAMES).to(tl.float32))
    return first + center, deviations - apart * center


@triton.jit
def mean_of_pairs(x):
    """[32] -> [32]: the mean of every two neighbors, for both of them."""
    pairs = tl.reshape(x, (WIDTH // 2, 2))
    mean = 0.5 * tl.sum(pairs, axis=1)
    return tl.reshape(tl.broadcast_to(mean[:, None], (WIDTH // 2, 2)), (WIDTH,))


@triton.jit
def norm_of(moments, weight, bias, height, width, side, eps, IS_PAIRED: tl.constexpr):
    """(mean, factor, offset), [32]: the norm of x is (x - mean) * factor + offset.

    `IS_PAIRED`: every two neighboring channels are a group; otherwise each channel is its own.
    """
    channel = tl.arange(0, WIDTH)
    mean, deviations = merged(moments, height, width, side)
    variance = tl.div_rn(deviations, (height * width * FRAMES).to(tl.float32))
    if IS_PAIRED:
        center = mean_of_pairs(mean)
        variance = mean_of_pairs(variance + (mean - center) * (mean - center))
        mean = center
    factor = tl.div_rn(tl.load(weight + channel), tl.sqrt_rn(variance + eps))
    return mean, factor, tl.load(bias + channel)


@triton.jit
def store_moments(moments, total, inside):
    """Store moments of one square of a map, from the pixels `inside` of `total` [pixels, 32]."""
    channel = tl.arange(0, WIDTH)
    count = tl.sum(inside.to(tl.float32), axis=0)
    mean = tl.div_rn(tl.sum(tl.where(inside[:, None], total, 0.0), axis=0), count)
    apart = tl.where(inside[:, None], total - mean[None, :], 0.0)
    tl.store(moments + channel, mean)
    tl.store(moments + WIDTH + channel, tl.sum(apart * apart, axis=0))


@triton.jit
def moments_of(height, width, side):
    """Number of values in the moments of one map."""
    return tl.cdiv(height, side) * tl.cdiv(width, side) * (FRAMES * 2 * WIDTH)


@triton.jit
def square_of(height, width, SIDE: tl.constexpr):
    """(frame, number of the square in the clip, its first row and column) of a program."""
    columns = tl.cdiv(width, SIDE)
    squares = columns * tl.cdiv(height, SIDE)
    number = tl.program_id(0)
    top, left = number % squares // columns * SIDE, number % columns * SIDE
    return number // squares, top, left


@triton.jit
def stored_size(height, width, SCALE: tl.constexpr):
    """Height and width of a map before it is resampled to these."""
    if SCALE == DOWN:
        return 2 * height, 2 * width
    if SCALE == UP:
        return height // 2, width // 2
    return height, width


@triton.jit
def activated(x, mean, factor, offset, IS_NORMED: tl.constexpr):
    """SiLU of the norm, if `IS_NORMED`, else `x`."""
    if IS_NORMED:
        x = (x - mean[None, :]) * factor[None, :] + offset[None, :]
        x *= tl.sigmoid(x)
    return x


@triton.jit
def resampled(
    frame, row, column, width, pixels, seen, mean, factor, offset,
    SCALE: tl.constexpr, CHANNELS: tl.constexpr, IS_NORMED: tl.constexpr,
):  # fmt: skip
    """[N, 32] values of a frame, activated and then halved or doubled; zero where not `seen`.

    `width`: that of the stored frame; `pixels`: of the clip, if `CHANNELS` is not 32 and each
    channel is stored as a plane.
    """
    channel = tl.arange(0, WIDTH)
    if CHANNELS == WIDTH:
        of_pixel, of_channel = WIDTH, 1
    else:
        of_pixel, of_channel = 1, pixels
    live = seen[:, None] & (channel < CHANNELS)[None, :]
    if SCALE == DOWN:
        found = tl.zeros((row.shape[0], WIDTH), tl.float32)
        for corner in tl.static_range(4):
            at = (2 * row + corner // 2) * width + 2 * column + corner % 2
            x = tl.load(frame + at[:, None] * WIDTH + channel[None, :], live, 0.0)
            found += activated(x, mean, factor, offset, IS_NORMED)
        found *= 0.25
    else:
        if SCALE == UP:
            row, column = row // 2, column // 2
        at = row * width + column
        x = tl.load(frame + at[:, None] * of_pixel + channel[None, :] * of_channel, live, 0.0)
        found = activated(x, mean, factor, offset, IS_NORMED)
    return tl.where(live, found, 0.0)


@triton.jit
def convolved(
    staged, small_staged, large, small, frame, first, last, one, smaller,
    PARTS: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """[pixels of a square, 32]: the convolution of the staged frames `first` to `last`.

    Channels of the result are rows until the end: products of 64 rows would use Hopper's
    instruction for large matrices, and wait for each.
    """
    around: tl.constexpr = SIDE + 2
    depth: tl.constexpr = PARTS * WIDTH
    channel = tl.arange(0, WIDTH)
    pixel = tl.arange(0, SIDE * SIDE)
    corner = pixel // SIDE * around + pixel % SIDE
    total = tl.zeros((WIDTH, SIDE * SIDE), tl.float32)
    # A line of three taps at once: their products do not wait for each other.
    for step in range(first * 3 * PARTS, (last + 1) * 3 * PARTS):
        near, line, taken = step // (3 * PARTS), step // PARTS % 3, channel + step % PARTS * WIDTH
        for tap in tl.static_range(3):
            where = (near * around + line) * around + corner + tap
            at = taken[:, None] + (where * depth)[None, :]
            column = ((near - frame + 1) * 9 + line * 3 + tap) * depth + taken
            factor = channel[:, None] + column[None, :] * WIDTH
            total = plus_product(
                total,
                tl.load(large + factor),
                tl.load(small + factor),
                tl.load(staged + at),
                tl.load(small_staged + at),
                one,
                smaller,
            )
    return tl.trans(total)


@triton.jit(do_not_specialize=SIZES)
def clip_convolution_kernel(
    x,
    x_moments,
    other,
    other_moments,
    norm_weight,
    norm_bias,
    modulation,
    large,
    small,
    bias,
    more,
    more_other,
    skip_large,
    skip_small,
    skip_bias,
    staged,
    out,
    moments,
    height,
    width,
    side_in,
    eps,
    one,
    smaller,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHANNELS_OUT: tl.constexpr,
    SCALE: tl.constexpr,
    IS_NORMED: tl.constexpr,
    IS_MODULATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    MORE_PARTS: tl.constexpr,
    MORE_SCALE: tl.constexpr,
    IS_PROJECTED: tl.constexpr,
    HAS_MOMENTS: tl.constexpr,
    SIDE: tl.constexpr,
    HALO_BLOCK: tl.constexpr,
):
    """out = bias + more + the 3x3x3 convolution of SiLU(norm(x)), for a square of one frame.

    `PARTS`: 2 if the input is the channels of `x` and those of `other`. `SCALE`: of the activated
    input. `modulation`: [64], scale and shift of the normed input. `CHANNELS`, `CHANNELS_OUT`: 32,
    or as many as a latent has. `more`: a map, resampled by `MORE_SCALE`; if it `IS_PROJECTED`, the
    product of its channels, and those of `more_other`, with a weight. `SIDE`, `side_in`: of the
    squares of `out` and of the input.

    First the input of the square and one pixel around it is activated and split, once for all 27
    taps, into `staged`, memory of this program alone; then the taps are products of that.
    """
    image = tl.program_id(1)
    frame, top, left = square_of(height, width, SIDE)
    pixels = height * width * FRAMES
    channel = tl.arange(0, WIDTH)
    zero = tl.zeros((WIDTH,), tl.float32)
    around: tl.constexpr = SIDE + 2
    halo: tl.constexpr = around * around
    depth: tl.constexpr = PARTS * WIDTH

    in_height, in_width = stored_size(height, width, SCALE)
    more_height, more_width = stored_size(height, width, MORE_SCALE)

    # 1. Stage.
    program = image * tl.num_programs(0) + tl.program_id(0)
    staged += program * (2 * FRAMES * halo * depth)
    small_staged = staged + FRAMES * halo * depth
    place = tl.arange(0, HALO_BLOCK)
    row = top - 1 + place // around
    column = left - 1 + place % around
    here = place < halo
    seen = here & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    first = tl.maximum(frame - 1, 0)
    last = tl.minimum(frame + 1, FRAMES - 1)
    for part in tl.static_range(PARTS):
        source, gathered = x, x_moments
        if part == 1:
            source, gathered = other, other_moments
        mean, factor, offset = zero, zero, zero
        if IS_NORMED:
            mean, factor, offset = norm_of(
                gathered + image * moments_of(in_height, in_width, side_in),
                norm_weight + part * WIDTH,
                norm_bias + part * WIDTH,
                in_height,
                in_width,
                side_in,
                eps,
                PARTS == 2,
            )
        if IS_MODULATED:
            scale = 1 + tl.load(modulation + channel)
            factor *= scale
            offset = offset * scale + tl.load(modulation + WIDTH + channel)
        for near in range(first, last + 1):
            if CHANNELS == WIDTH:
                begin = (image * FRAMES + near) * in_height * in_width * WIDTH
            else:
                begin = image * CHANNELS * pixels + near * height * width
            found = resampled(
                source + begin, row, column, in_width, pixels, seen, mean, factor, offset,
                SCALE, CHANNELS, IS_NORMED,
            )  # fmt: skip
            large_found, small_found = halved(found, smaller)
            at = ((near * halo + place) * depth + part * WIDTH)[:, None] + channel[None, :]
            tl.store(staged + at, large_found, here[:, None])
            tl.store(small_staged + at, small_found, here[:, None])
    tl.debug_barrier()

    # 2. Convolve.
    total = convolved(
        staged, small_staged, large, small, frame, first, last, one, smaller, PARTS, SIDE
    )

    # 3. Add bias and `more`.
    pixel = tl.arange(0, SIDE * SIDE)
    row = top + pixel // SIDE
    column = left + pixel % SIDE
    inside = (row < height) & (column < width)
    if HAS_BIAS:
        total += tl.load(bias + channel, channel < CHANNELS_OUT, 0.0)[None, :]
    if IS_PROJECTED:
        total += tl.load(skip_bias + channel)[None, :]
    for part in tl.static_range(MORE_PARTS):
        source = more
        if part == 1:
            source = more_other
        begin = (image * FRAMES + frame) * more_height * more_width * WIDTH
        found = resampled(
            source + begin, row, column, more_width, pixels, inside, zero, zero, zero,
            MORE_SCALE, WIDTH, False,
        )  # fmt: skip
        if IS_PROJECTED:
            large_found, small_found = halved(found, smaller)
            factors = (channel + part * WIDTH)[:, None] * WIDTH + channel[None, :]
            total = plus_product(
                total,
                large_found,
                small_found,
                tl.load(skip_large + factors),
                tl.load(skip_small + factors),
                one,
                smaller,
            )
        else:
            total += found
    at = (frame * height + row) * width + column
    if CHANNELS_OUT == WIDTH:
        at = (image * pixels + at)[:, None] * WIDTH + channel[None, :]
    else:
        at = at[:, None] + (image * CHANNELS_OUT + channel)[None, :] * pixels
    tl.store(out + at, total, inside[:, None] & (channel < CHANNELS_OUT)[None, :])
    if HAS_MOMENTS:
        store_moments(moments + program * (2 * WIDTH), total, inside)


@triton.jit(do_not_specialize=SIZES)
def tokens_kernel(
    x,
    moments,
    norm_weight,
    norm_bias,
    large,
    small,
    bias,
    tokens,
    height,
    width,
    eps,
    scale,
    one,
    smaller,
    SIDE: tl.constexpr,
):
    """tokens [B, 3, 2, 3 * h * w, 32]: queries times `scale`, keys and values of norm(x), split."""
    image = tl.program_id(1)
    positions = height * width * FRAMES
    position = tl.program_id(0) * (SIDE * SIDE) + tl.arange(0, SIDE * SIDE)
    inside = (position < positions)[:, None]
    channel = tl.arange(0, WIDTH)
    mean, factor, offset = norm_of(
        moments + image * moments_of(height, width, SIDE),
        norm_weight,
        norm_bias,
        height,
        width,
        SIDE,
        eps,
        False,
    )
    at = position[:, None] * WIDTH + channel[None, :]
    found = tl.load(x + image * positions * WIDTH + at, inside, 0.0)
    found = (found - mean[None, :]) * factor[None, :] + offset[None, :]
    large_found, small_found = halved(found, smaller)
    for which in tl.static_range(3):
        line = channel[:, None] * (3 * WIDTH) + (channel + which * WIDTH)[None, :]
        token = tl.zeros((SIDE * SIDE, WIDTH), tl.float32)
        token += tl.load(bias + which * WIDTH + channel)[None, :]
        token = plus_product(
            token,
            large_found,
            small_found,
            tl.load(large + line),
            tl.load(small + line),
            one,
            smaller,
        )
        if which == 0:
            token *= scale
        large_token, small_token = halved(token, smaller)
        begin = tokens + (image * 3 + which) * (2 * positions * WIDTH)
        tl.store(begin + at, large_token, inside)
        tl.store(begin + positions * WIDTH + at, small_token, inside)


@triton.jit(do_not_specialize=SIZES)
def attention_kernel(
    x,
    tokens,
    large,
    small,
    bias,
    out,
    moments,
    height,
    width,
    one,
    smaller,
    SIDE: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """out = x + bias + attention @ weight, on tokens from `tokens_kernel`."""
    image = tl.program_id(1)
    frame, top, left = square_of(height, width, SIDE)
    pixel = tl.arange(0, SIDE * SIDE)
    row, column = top + pixel // SIDE, left + pixel % SIDE
    inside = (row < height) & (column < width)
    channel = tl.arange(0, WIDTH)
    at = ((frame * height + row) * width + column)[:, None] * WIDTH + channel[None, :]
    positions = height * width * FRAMES
    queries = tokens + image * (6 * positions * WIDTH)
    keys = queries + 2 * positions * WIDTH
    large_query = tl.load(queries + at, inside[:, None], 0.0)
    small_query = tl.load(queries + positions * WIDTH + at, inside[:, None], 0.0)
    found = attended(
        large_query,
        small_query,
        keys,
        keys + 2 * positions * WIDTH,
        positions,
        one,
        smaller,
        SIDE * SIDE,
        BLOCK_KEYS,
        WIDTH,
    )
    large_found, small_found = halved(found, smaller)
    line = channel[:, None] * WIDTH + channel[None, :]
    begin = image * positions * WIDTH
    total = tl.load(x + begin + at, inside[:, None], 0.0) + tl.load(bias + channel)[None, :]
    total = plus_product(
        total, large_found, small_found, tl.load(large + line), tl.load(small + line), one, smaller
    )
    tl.store(out + begin + at, total, inside[:, None])
    program = image * tl.num_programs(0) + tl.program_id(0)
    store_moments(moments + program * (2 * WIDTH), total, inside)


@triton.jit
def bridge_kernel(
    x,
    offset,
    end,
    noise,
    out,
    count,
    clean_weight,
    end_weight,
    state_weight,
    noise_weight,
    HAS_NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = one step of the bridge from state `x`, which is `offset` from clean; see `bridge`."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    state = tl.load(x + at, inside, 0.0)
    found = clean_weight * (state - tl.load(offset + at, inside, 0.0))
    found += end_weight * tl.load(end + at, inside, 0.0) + state_weight * state
    if HAS_NOISE:
        found += noise_weight * tl.load(noise + at, inside, 0.0)
    tl.store(out + at, found, inside)
