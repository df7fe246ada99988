"""The Triton kernels; import only if Triton is installed.

Channels are adjacent (channels_last), and warp, correlation and convolution count pixels over a
batch of rows. All arithmetic is float32 or as exact; square roots and quotients are rounded as in
IEEE 754.
"""
# Triton is installed with PyTorch's CUDA builds only; its functions are compiled from their source.
# pyright: basic, reportMissingImports=false
# ruff: noqa: ANN001, ANN201

import triton
import triton.language as tl

SIZES = (
    *("count", "start", "rows", "height", "width", "side_in"),
    *("out_height", "out_width", "above", "left"),
)
"""Arguments for whose values kernels are not specialized: others come with every band and picture."""


@triton.jit
def probe_kernel(out):
    """out[0] = 1: tells whether kernels can be compiled and run at all."""
    tl.store(out, 1.0)


@triton.jit
def whole_and_rest(shift, origin, size):
    """`origin + shift` as in `lookup._taps`: the pixel before it, and the fraction beyond that."""
    floor = tl.floor(shift)
    rest = shift - floor
    # Limited to one size beyond the image, so that it fits an integer; outside is clamped anyway.
    near = tl.minimum(tl.maximum(floor, -1.0 - size), 1.0 + size)
    whole = near.to(tl.int32) + origin
    rest = tl.where(whole < 0, 0.0, tl.where(whole > size - 2, 1.0, rest))
    return tl.minimum(tl.maximum(whole, 0), size - 2), rest


@triton.jit
def position(
    flow, pixel, inside, start, rows, height, width, flow_image, flow_axis, flow_row, flow_column
):
    """Where the flow of each pixel points: (image, row, column, fraction down, fraction right)."""
    column = (pixel % width).to(tl.int32)
    row = (pixel // width % rows).to(tl.int32) + start
    image = pixel // width // rows
    at = flow + image * flow_image + row.to(tl.int64) * flow_row + column * flow_column
    column, right = whole_and_rest(tl.load(at, inside, 0.0), column, width)
    row, down = whole_and_rest(tl.load(at + flow_axis, inside, 0.0), row, height)
    return image, row, column, down[:, None], right[:, None]


@triton.jit
def token(features, image, row, column, inside, height, width, channel):
    """[BLOCK, C] features at a pixel, zero outside of the image."""
    seen = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    first = ((image * height + row) * width + column) * channel.shape[0]
    return tl.load(features + first[:, None] + channel[None, :], seen[:, None], 0.0).to(tl.float32)


@triton.jit
def mixed(first, second, weight):
    """Mix of `first` and `second` by the weight of `second`; exact where that is 0 or 1."""
    return (1 - weight) * first + weight * second


@triton.jit
def length(x):
    """[BLOCK, C] -> [BLOCK] lengths, kept slightly above zero."""
    return tl.sqrt_rn(tl.sum(x * x, axis=1) + 1e-12)


@triton.jit
def cosine(reference, own, found):
    """[BLOCK] cosines of vectors [BLOCK, C]; `own` is the length of the reference."""
    return tl.div_rn(tl.sum(found * reference, axis=1), own * length(found))


@triton.jit
def across(features, image, row, column, right, inside, height, width, channel):
    """Three neighbors in a row, each between two pixels, from four tokens."""
    first = token(features, image, row, column - 1, inside, height, width, channel)
    second = token(features, image, row, column, inside, height, width, channel)
    third = token(features, image, row, column + 1, inside, height, width, channel)
    fourth = token(features, image, row, column + 2, inside, height, width, channel)
    return mixed(first, second, right), mixed(second, third, right), mixed(third, fourth, right)


@triton.jit(do_not_specialize=SIZES)
def warp_kernel(
    features,
    flow,
    out,
    count,
    start,
    rows,
    height,
    width,
    flow_image,
    flow_axis,
    flow_row,
    flow_column,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[pixel] = features at the pixel moved along the flow, clamped to the image."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < count
    channel = tl.arange(0, C)
    image, row, column, down, beside = position(
        flow, pixel, inside, start, rows, height, width,
        flow_image, flow_axis, flow_row, flow_column,
    )  # fmt: skip
    above = mixed(
        token(features, image, row, column, inside, height, width, channel),
        token(features, image, row, column + 1, inside, height, width, channel),
        beside,
    )
    below = mixed(
        token(features, image, row + 1, column, inside, height, width, channel),
        token(features, image, row + 1, column + 1, inside, height, width, channel),
        beside,
    )
    found = mixed(above, below, down)
    tl.store(
        out + pixel[:, None] * C + channel[None, :],
        found.to(out.dtype.element_ty),
        inside[:, None],
    )


@triton.jit(do_not_specialize=SIZES)
def correlation_kernel(
    blend,
    features,
    flow,
    out,
    count,
    start,
    rows,
    height,
    width,
    flow_image,
    flow_axis,
    flow_row,
    flow_column,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[pixel, 3 * (dy + 1) + dx + 1] = cosine of blend[pixel] and the neighbor (dy, dx).

    The nine neighbors share their fractions, so only the 4x4 tokens around them are loaded, and
    mixed sideways line by line, then downward.
    """
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < count
    channel = tl.arange(0, C)
    image, row, column, down, beside = position(
        flow, pixel, inside, start, rows, height, width,
        flow_image, flow_axis, flow_row, flow_column,
    )  # fmt: skip
    reference = tl.load(blend + pixel[:, None] * C + channel[None, :], inside[:, None], 0.0).to(
        tl.float32
    )
    own = length(reference)
    left_above, center_above, right_above = across(
        features, image, row - 1, column, beside, inside, height, width, channel
    )
    for line in tl.static_range(3):
        left, center, right = across(
            features, image, row + line, column, beside, inside, height, width, channel
        )
        at = out + pixel * 9 + 3 * line
        tl.store(at, cosine(reference, own, mixed(left_above, left, down)), inside)
        tl.store(at + 1, cosine(reference, own, mixed(center_above, center, down)), inside)
        tl.store(at + 2, cosine(reference, own, mixed(right_above, right, down)), inside)
        left_above, center_above, right_above = left, center, right


@triton.jit(do_not_specialize=SIZES)
def row_moments_kernel(
    x,
    means,
    squares,
    start,
    rows,
    height,
    width,
    image_stride,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Means and summed squared deviations of one row of `rows`, [B, height, C] from `start` on.

    Moments of pieces of the row are merged (Chan, Golub and LeVeque 1979), so it is read once.
    """
    number = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    image, row = number // rows, number % rows
    first = x + image.to(tl.int64) * image_stride + row.to(tl.int64) * width * C
    mean = tl.zeros((BLOCK_C,), tl.float32)
    total = tl.zeros((BLOCK_C,), tl.float32)
    for begin in range(0, width, BLOCK_W):
        column = begin + tl.arange(0, BLOCK_W)
        inside = (column < width)[:, None]
        found = tl.load(first + column[:, None] * C + channel[None, :], inside, 0.0).to(tl.float32)
        count = tl.minimum(width - begin, BLOCK_W).to(tl.float32)
        own = tl.div_rn(tl.sum(found, axis=0), count)
        apart = tl.where(inside, found - own[None, :], 0.0)
        share = tl.div_rn(count, begin + count)
        off = own - mean
        mean += off * share
        total += tl.sum(apart * apart, axis=0) + off * off * (begin * share)
    at = (image.to(tl.int64) * height + start + row) * C + channel
    tl.store(means + at, mean)
    tl.store(squares + at, total)


@triton.jit
def merged_kernel(
    means,
    squares,
    mean,
    square,
    height,
    width,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Moments of maps, [B, C], from those of their rows, [B, height, C] of `width` pixels; float64.

    Merged in one go (Chan, Golub and LeVeque 1979).
    """
    image = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = image.to(tl.int64) * height * C + channel
    total = tl.zeros((BLOCK_C,), tl.float64)
    within = tl.zeros((BLOCK_C,), tl.float64)
    for begin in range(0, height, BLOCK_H):
        row = begin + tl.arange(0, BLOCK_H)
        at = first[None, :] + row[:, None] * C
        inside = (row < height)[:, None]
        total += tl.sum(tl.load(means + at, inside, 0.0).to(tl.float64), axis=0)
        within += tl.sum(tl.load(squares + at, inside, 0.0).to(tl.float64), axis=0)
    center = total / height.to(tl.float64)
    between = tl.zeros((BLOCK_C,), tl.float64)
    for begin in range(0, height, BLOCK_H):
        row = begin + tl.arange(0, BLOCK_H)
        inside = (row < height)[:, None]
        found = tl.load(means + first[None, :] + row[:, None] * C, inside, 0.0).to(tl.float64)
        apart = tl.where(inside, found - center[None, :], 0.0)
        between += tl.sum(apart * apart, axis=0)
    tl.store(mean + image * C + channel, center)
    tl.store(square + image * C + channel, within + between * width.to(tl.float64))


@triton.jit
def factors_kernel(
    mean,
    square,
    weight,
    bias,
    added,
    factor,
    offset,
    count,
    eps,
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    IS_ADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Factor and offset, [B, C] float32, of one group of the norm of x + added; in float64.

    `mean`, `square`: moments of x, `count` values per channel, [B, C].
    """
    per_group: tl.constexpr = C // GROUPS
    number = tl.arange(0, BLOCK)
    inside = number < per_group
    channel = tl.program_id(1) * per_group + number
    at = tl.program_id(0) * C + channel
    center = tl.load(mean + at, inside, 0.0)
    extra = tl.zeros((BLOCK,), tl.float64)
    if IS_ADDED:
        extra = tl.load(added + channel, inside, 0.0).to(tl.float64)
    center += extra
    middle = tl.sum(center, axis=0) / per_group
    apart = tl.where(inside, center - middle, 0.0)
    own = tl.load(square + at, inside, 0.0) / count.to(tl.float64)
    variance = tl.sum(own + apart * apart, axis=0) / per_group
    scale = tl.load(weight + channel, inside, 0.0).to(tl.float64) / tl.sqrt(variance + eps)
    shift = tl.load(bias + channel, inside, 0.0).to(tl.float64) + (extra - middle) * scale
    tl.store(factor + at, scale.to(tl.float32), inside)
    tl.store(offset + at, shift.to(tl.float32), inside)


@triton.jit
def scaled_kernel(
    x,
    factor,
    offset,
    out,
    per_image,
    image_stride,
    C: tl.constexpr,
    IS_SILU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """activation(x * factor + offset) of a piece of an image; `factor` and `offset` are [B, C]."""
    image = tl.program_id(1)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < per_image
    channel = image * C + (at % C).to(tl.int32)
    found = tl.load(x + image.to(tl.int64) * image_stride + at, inside, 0.0).to(tl.float32)
    found = found * tl.load(factor + channel) + tl.load(offset + channel)
    if IS_SILU:
        found *= tl.sigmoid(found)
    else:
        found = tl.where(found < 0, 0.0, found)  # passes NaN through, as ReLU does
    place = out + image.to(tl.int64) * per_image + at
    tl.store(place, found.to(out.dtype.element_ty), inside)


@triton.jit
def halved(x, smaller):
    """Two parts of x, float16: x is the first plus the second / smaller."""
    large = x.to(tl.float16)
    return large, ((x - large.to(tl.float32)) * smaller).to(tl.float16)


@triton.jit
def plus_product(total, large, small, large_factors, small_factors, one, smaller):
    """total + the matrix product of two `halved` factors, without that of their small parts.

    Tensor cores truncate their sums instead of rounding them, so the product is added outside them
    (Ootomo and Yokota 2022), times `one`, which is 1.0 but unknown to the compiler: it would move a
    plain addition back into the tensor core.
    """
    sums = tl.dot(small, large_factors)
    sums = tl.dot(large, small_factors, sums)
    total = tl.fma(sums, one / smaller, total)
    return tl.fma(tl.dot(large, large_factors), one, total)


@triton.jit(do_not_specialize=SIZES)
def convolution_kernel(
    x,
    large,
    small,
    bias,
    more,
    out,
    count,
    height,
    width,
    out_height,
    out_width,
    above,
    left,
    more_stride,
    one,
    smaller,
    HAS_BIAS: tl.constexpr,
    HAS_MORE: tl.constexpr,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """out[pixel, :] = bias + more + the sum over taps of x[pixel of the tap, :] @ weight[tap].

    The weight is large + small / smaller, both float16, and x is split likewise; see `split`.

    Pixels are counted over the batch, channels are adjacent. `above` and `left`: rows
    and columns of zeros around the input; pixels beyond it on the other sides are zero as well.
    `more_stride`: values between images of `more`.
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
        factor = line[:, None] + channel[None, :] * (SIDE * SIDE * C_IN)
        large_factors, small_factors = tl.load(large + factor), tl.load(small + factor)
        large_values, small_values = halved(values, smaller)
        total = plus_product(
            total, large_values, small_values, large_factors, small_factors, one, smaller
        )
    if HAS_BIAS:
        total += tl.load(bias + channel)[None, :]
    if HAS_MORE:
        of_image = pixel - image * out_height * out_width
        at = image * more_stride + of_image * C_OUT
        total += tl.load(more + at[:, None] + channel[None, :], inside[:, None], 0.0)
    tl.store(out + pixel[:, None] * C_OUT + channel[None, :], total, inside[:, None])


@triton.jit
def attended(
    large_query,
    small_query,
    keys,
    values,
    positions,
    one,
    smaller,
    BLOCK: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Attention of `halved` queries to all keys, [BLOCK, DEPTH].

    `keys`, `values`: the large parts [positions, DEPTH], followed by the small parts. The softmax takes
    one pass over the keys (Milakov and Gimelshein 2018): sums are scaled down when a score exceeds all
    earlier ones.
    """
    channel = tl.arange(0, DEPTH)
    small_keys, small_values = keys + positions * DEPTH, values + positions * DEPTH
    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    weight = tl.zeros((BLOCK,), tl.float32)
    total = tl.zeros((BLOCK, DEPTH), tl.float32)
    for begin in range(0, positions, BLOCK_KEYS):
        key = begin + tl.arange(0, BLOCK_KEYS)
        known = key < positions
        down = channel[:, None] + key[None, :] * DEPTH
        across = key[:, None] * DEPTH + channel[None, :]
        score = plus_product(
            tl.zeros((BLOCK, BLOCK_KEYS), tl.float32),
            large_query,
            small_query,
            tl.load(keys + down, known[None, :], 0.0),
            tl.load(small_keys + down, known[None, :], 0.0),
            one,
            smaller,
        )
        score = tl.where(known[None, :], score, float("-inf"))
        high = tl.maximum(highest, tl.max(score, axis=1))
        share = tl.exp(score - high[:, None])
        kept = tl.exp(highest - high)
        weight = weight * kept + tl.sum(share, axis=1)
        large_share, small_share = halved(share, smaller)
        total = plus_product(
            total * kept[:, None],
            large_share,
            small_share,
            tl.load(values + across, known[:, None], 0.0),
            tl.load(small_values + across, known[:, None], 0.0),
            one,
            smaller,
        )
        highest = high
    return total / weight[:, None]


@triton.jit
def split_attention_kernel(
    tokens,
    out,
    positions,
    one,
    smaller,
    DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """out [B, positions, DEPTH] = attention of tokens [B, 3, 2, positions, DEPTH], see `split`."""
    image = tl.program_id(1).to(tl.int64)
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (position < positions)[:, None]
    at = position[:, None] * DEPTH + tl.arange(0, DEPTH)[None, :]
    queries = tokens + image * (6 * positions * DEPTH)
    keys = queries + 2 * positions * DEPTH
    found = attended(
        tl.load(queries + at, inside, 0.0),
        tl.load(queries + positions * DEPTH + at, inside, 0.0),
        keys,
        keys + 2 * positions * DEPTH,
        positions,
        one,
        smaller,
        BLOCK,
        BLOCK_KEYS,
        DEPTH,
    )
    tl.store(out + image * positions * DEPTH + at, found, inside)


@triton.jit
def activation_kernel(
    x, bias, slope, count, C: tl.constexpr, IS_GELU: tl.constexpr, BLOCK: tl.constexpr
):
    """x <- GELU or PReLU of x + bias, in place; channels are adjacent."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    channel = (at % C).to(tl.int32)
    found = tl.load(x + at, inside, 0.0).to(tl.float32) + tl.load(bias + channel).to(tl.float32)
    if IS_GELU:
        found = 0.5 * found * (1 + tl.erf(found * 0.7071067811865476))
    else:
        found = tl.where(found < 0, found * tl.load(slope + channel).to(tl.float32), found)
    tl.store(x + at, found.to(x.dtype.element_ty), inside)


@triton.jit
def sum_kernel(
    x,
    bias,
    other,
    per_image,
    other_stride,
    C: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """x <- x + bias + other of a piece of an image, in place; channels are adjacent."""
    image = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < per_image
    place = x + image * per_image + at
    found = tl.load(place, inside, 0.0).to(tl.float32)
    if HAS_BIAS:
        found += tl.load(bias + (at % C).to(tl.int32)).to(tl.float32)
    found += tl.load(other + image * other_stride + at, inside, 0.0).to(tl.float32)
    tl.store(place, found.to(x.dtype.element_ty), inside)


@triton.jit
def nearest_kernel(
    vectors, codebook, out, count, CODES: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr
):
    """out[n] = index of the code [CODES, 3] nearest to vector n [count, 3]; on ties the first."""
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = number < count
    x = tl.load(vectors + 3 * number, inside, 0.0)[:, None]
    y = tl.load(vectors + 3 * number + 1, inside, 0.0)[:, None]
    z = tl.load(vectors + 3 * number + 2, inside, 0.0)[:, None]
    least = tl.full((BLOCK,), float("inf"), tl.float32)
    found = tl.zeros((BLOCK,), tl.int32)
    for begin in range(0, CODES, STEP):
        code = begin + tl.arange(0, STEP)
        right = x - tl.load(codebook + 3 * code)[None, :]
        down = y - tl.load(codebook + 3 * code + 1)[None, :]
        deep = z - tl.load(codebook + 3 * code + 2)[None, :]
        distance = right * right + down * down + deep * deep
        here = tl.min(distance, axis=1)
        is_less = here < least
        found = tl.where(is_less, begin + tl.argmin(distance, axis=1), found)
        least = tl.where(is_less, here, least)
    tl.store(out + number, found.to(tl.int64), inside)
