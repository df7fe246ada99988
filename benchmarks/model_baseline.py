"""TLB-VFI as plainly as the paper's code computes it: the baseline of the measurements.

No savings: three frames are encoded for every pair, at full and at reduced size and through all
levels; attention computes its full matrices; the correlation copies its input nine times; unused
warps are computed; upsampling convolves the large map. Float32, contiguous tensors, whole maps. The
weights, and the small parts that offer no saving, are those of the measured model.

`tlbvfi bench --baseline` runs it.
"""

# Submodules accessed by name have no type here; B, C, H, W are the field's names.
# ruff: noqa: ANN401, N806

from collections.abc import Sequence
from typing import Any

import torch
from comfyui_tlbvfi.tlbvfi.model import TLBVFI, Geometry
from comfyui_tlbvfi.tlbvfi.model.autoencoder import flow_pyramid, luma
from comfyui_tlbvfi.tlbvfi.model.bridge import sample_bridge, step_list
from comfyui_tlbvfi.tlbvfi.model.flow import rescale_flow
from comfyui_tlbvfi.tlbvfi.model.layers import per_frame
from comfyui_tlbvfi.tlbvfi.model.tlbvfi import pad_frame, reduce_frame
from torch import Tensor
from torch.nn import functional as F


class Baseline:
    """The model's weights in the reference's graph; one pair at a time."""

    def __init__(self, model: TLBVFI) -> None:
        """`model`: the network whose weights are used, all float32 and contiguous."""
        self.model = model
        self.encoder: Any = model.vqgan.encoder
        self.decoder: Any = model.vqgan.decoder

    @torch.no_grad()
    def __call__(
        self,
        frame0: Tensor,
        frame1: Tensor,
        geometry: Geometry,
        steps: int,
        noise: Sequence[Tensor],
    ) -> Tensor:
        """Frame halfway between two frames [1, 3, H, W] in [0, 1]."""
        frames = pad_frame(torch.cat([frame0, frame1]), geometry)
        clip = with_unknown(frames)
        phi, deepest = self.features(clip)
        y = self.latent(clip, deepest)
        latent = self.model.vqgan.quantize(self.sample(y, steps, noise))
        flow = self.flow(torch.cat([frame0, frame1]), frames, phi, geometry)
        return self.decode(latent, phi, flow, frames)[:, :, : geometry.height, : geometry.width]

    def features(self, clip: Tensor) -> tuple[list[Tensor], Tensor]:
        """phi[0..5] of the two real frames, and phi[5] of all three; `clip` [3, 3, H, W]."""
        h = self.encoder.conv_in(clip)
        kept = [h]
        for level in self.encoder.down:
            h = res_block(level.block[0], h)
            for attention in level.attn:
                h = max_vit(attention, h, None)
            h = level.downsample.conv(F.pad(h, (0, 1, 0, 1)))
            kept.append(h)
        return [feature[[0, 2]] for feature in kept], h

    def latent(self, clip: Tensor, deepest: Tensor) -> Tensor:
        """The latent clip [1, 3, T=3, h, w] of `clip` [T=3, 3, H, W] and its phi[5]."""
        encoder = self.encoder
        gate = 1 + torch.sigmoid(frequencies(encoder.frequency_extractor, luma(clip)))
        h = encoder.mid((deepest * gate).transpose(0, 1)[None].contiguous())
        h = encoder.conv_out(F.silu(per_frame(encoder.norm_out, h)))
        return per_frame(self.model.vqgan.quant_conv, h)

    def sample(self, y: Tensor, steps: int, noise: Sequence[Tensor]) -> Tensor:
        visited = step_list(steps)
        unet = self.model.denoise_fn

        def denoise(x: Tensor, step: int) -> Tensor:
            modulations = unet.embed([visited[step]], x.device)[0]
            return unet(x, unet.embed_context(y), modulations)

        return sample_bridge(denoise, y, steps, noise)

    def flow(self, frames: Tensor, padded: Tensor, phi: list[Tensor], geometry: Geometry) -> Tensor:
        if not geometry.reduces_flow:
            return self.refine(padded, phi)
        canvas = reduce_frame(frames, geometry).contiguous()
        reduced, _ = self.features(with_unknown(canvas))
        flow = self.refine(canvas * 2 - 1, reduced)
        pyramid = [flow, *flow_pyramid(flow, 3)]
        for feature, level in zip(reduced, pyramid, strict=False):
            warp_both(feature, level)
        size = padded.shape[-2:]
        scale = float(geometry.flow_scale)
        return F.interpolate(flow, size=size, mode="bilinear", align_corners=False) / scale

    def refine(self, canvas: Tensor, phi: Sequence[Tensor]) -> Tensor:
        net = self.decoder.refinenet
        flow = rescale_flow(self.decoder.flownet(*canvas.split(1)), 0.25)
        for level, block in ((3, net.rf_block4), (2, net.rf_block3), (1, net.rf_block2)):
            flow = rescale_flow(refine_block(block, phi[level], flow), 2)
        return refine_block(net.rf_block1, phi[0], flow)

    def decode(self, latent: Tensor, phi: list[Tensor], flow: Tensor, frames: Tensor) -> Tensor:
        decoder = self.decoder
        clip = per_frame(self.model.vqgan.post_quant_conv, latent)
        h = decoder.mid(decoder.conv_in(clip))[:, :, 0].contiguous()
        flows = [flow, *flow_pyramid(flow, 3)]
        seen = [warp_both(feature, level) for feature, level in zip(phi, flows, strict=False)]
        for level in (4, 3, 2, 1, 0):
            context = [phi[level + 1], *([seen[level + 1]] if level < 3 else [])]
            h = self.decode_level(decoder.up[level], h, torch.cat(context).flatten(0, 1)[None])
        h = decoder.conv_out(F.silu(decoder.norm_out(h)))
        residual, mask = torch.sigmoid(decoder.moduleout(h)).split((3, 1), dim=1)
        seen0, seen1 = warp_both(frames, flow).split(1)
        return (mask * seen0 + (1 - mask) * seen1 + 2 * residual - 1).clamp(0, 1)

    def decode_level(self, level: Any, h: Tensor, context: Tensor) -> Tensor:
        h = res_block(level.block[0], h)
        for attention in level.attn:
            h = max_vit(attention, h, None)
        h = max_vit(level.cross_attn, h, project(level.cross_attn.proj_in, context))
        upsample = level.upsample.conv
        return F.conv2d(F.interpolate(h, scale_factor=2), upsample.weight, upsample.bias, padding=1)


def with_unknown(frames: Tensor) -> Tensor:
    """[2, 3, H, W] -> [3, 3, H, W], gray in the middle."""
    return torch.stack([frames[0], torch.full_like(frames[0], 0.5), frames[1]])


def haar(clip: Tensor) -> list[Tensor]:
    """The eight bands LLL, LLH, ... HHH (frame, height, width) of one undecimated level.

    `clip`: luma [B, T, H, W]; each band is [B, T - 1, H, W], zeros are assumed below and right.
    """
    bands = [clip]
    for dim, padding in ((1, ()), (2, (0, 0, 0, 1)), (3, (0, 1))):
        padded = [F.pad(band, padding) if padding else band for band in bands]
        size = padded[0].shape[dim] - 1
        pairs = [(band.narrow(dim, 0, size), band.narrow(dim, 1, size)) for band in padded]
        bands = [
            half for a, b in pairs for half in ((b + a) * 0.5 / 2**0.5, (b - a) * 0.5 / 2**0.5)
        ]
    return bands


def frequencies(extractor: Any, lumas: Tensor) -> Tensor:
    """Features [1, 256, H/32, W/32] of the wavelet details of `lumas` [T=3, 1, H, W]."""
    low, *fine = haar(lumas.transpose(0, 1))
    _, *coarse = haar(low)
    h = extractor.conv_in(torch.cat([*fine, *coarse], dim=1))
    for block in extractor.Blocks:
        inner = block.conv1(F.relu(block.norm1(h)))
        h = block.conv2(F.relu(block.norm2(inner))) + block.shortcut(h)
    return h


def res_block(block: Any, x: Tensor) -> Tensor:
    h = block.conv1(F.silu(block.norm1(x)))
    h = block.conv2(F.silu(block.norm2(h)))
    return h + (x if block.nin_shortcut is None else block.nin_shortcut(x))


def max_vit(block: Any, x: Tensor, context: Tensor | None) -> Tensor:
    """Window and grid attention of [B, C, H, W]."""
    stages = ((block.attn_block, block.ff_block, False), (block.attn_grid, block.ff_grid, True))
    for attention, feed, is_grid in stages:
        tokens = group_tokens(x, is_grid)
        queries = attention.norm(tokens)
        keys = queries if context is None else attention.norm(group_tokens(context, is_grid))
        tokens = tokens + attend(attention.fn, queries, keys)
        tokens = tokens + feed.fn(feed.norm(tokens))
        x = ungroup_tokens(tokens, x.shape, is_grid)
    return x


def attend(fn: Any, queries: Tensor, keys: Tensor) -> Tensor:
    q, k, v = fn.to_q(queries), fn.to_k(keys), fn.to_v(keys)
    side = torch.arange(8, device=q.device)
    coordinates = torch.cartesian_prod(side, side)
    apart = coordinates[:, None] - coordinates[None] + 7
    bias = fn.rel_pos_bias.weight[apart[..., 0] * 15 + apart[..., 1], 0]
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(1, 2) + bias
    return fn.to_out[0](logits.softmax(dim=-1) @ v)


def group_tokens(x: Tensor, is_grid: bool) -> Tensor:
    B, C, H, W = x.shape
    if is_grid:
        x = x.view(B, C, 8, H // 8, 8, W // 8).permute(0, 3, 5, 2, 4, 1)
    else:
        x = x.view(B, C, H // 8, 8, W // 8, 8).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(-1, 64, C)


def ungroup_tokens(tokens: Tensor, shape: torch.Size, is_grid: bool) -> Tensor:
    B, C, H, W = shape
    x = tokens.view(B, H // 8, W // 8, 8, 8, C)
    x = x.permute(0, 5, 3, 1, 4, 2) if is_grid else x.permute(0, 5, 1, 3, 2, 4)
    return x.reshape(shape)


def project(proj: Any, context: Tensor) -> Tensor:
    layer = proj.get_submodule

    def normed(x: Tensor, name: str) -> Tensor:
        norm = layer(name)
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)

    h = F.gelu(normed(layer("0")(context), "1"))
    h = F.gelu(normed(layer("3")(h), "4"))
    h = h * layer("6")(h.mean(dim=(2, 3)))[:, :, None, None]
    return normed(layer("7")(h), "8")


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """`grid_sample` along `flow` [B, 2, H, W]."""
    H, W = flow.shape[-2:]
    columns = torch.linspace(-1, 1, W, device=flow.device).expand(H, W)
    rows = torch.linspace(-1, 1, H, device=flow.device)[:, None].expand(H, W)
    grid = torch.stack(
        [columns + flow[:, 0] / ((W - 1) / 2), rows + flow[:, 1] / ((H - 1) / 2)], dim=-1
    )
    return F.grid_sample(image, grid, padding_mode="border", align_corners=True)


def warp_both(pair: Tensor, flow: Tensor) -> Tensor:
    """Both images of a pair [2, C, H, W], each along its half of `flow` [1, 4, H, W]."""
    return warp(pair, flow.view(2, 2, *flow.shape[-2:]))


def refine_block(block: Any, pair: Tensor, flow: Tensor) -> Tensor:
    """One correction of `flow` [1, 4, H, W] by features [2, C, H, W]."""
    C, H, W = pair.shape[1:]
    flows = flow.view(2, 2, H, W)
    neighbors = F.unfold(pair, 3, padding=1).view(2, C, 9, H, W).transpose(1, 2)
    seen = warp(neighbors.reshape(2, 9 * C, H, W), flows).view(2, 9, C, H, W)
    center = seen[:, 4]
    gate = torch.sigmoid(block.occl_convs(center.reshape(1, 2 * C, H, W)))
    blend = gate * center[:1] + (1 - gate) * center[1:]
    unit = blend / (blend.square().sum(1, keepdim=True) + 1e-12).sqrt()
    units = seen / (seen.square().sum(2, keepdim=True) + 1e-12).sqrt()
    cosines = (unit[None] * units).sum(2)
    corrected = []
    for d in range(2):
        own = flows[d : d + 1]
        parts = [block.corr_convs(cosines[d : d + 1]), block.flow_convs(own)]
        motion = block.motion_convs(torch.cat(parts, dim=1))
        h = block.gru(torch.cat([blend, center[d : d + 1], motion, own], dim=1))
        corrected.append(own + block.flow_head(h))
    return torch.cat(corrected, dim=1)
