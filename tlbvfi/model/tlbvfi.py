"""TLB-VFI: video frame interpolation by a temporal-aware latent Brownian bridge.

The model reads top to bottom: features of each frame, the latent clip of both frames around an
unknown one, the bridge from that latent to the clean one, the flow, and the decoder, which builds
the frame from warped features and warped frames.

Frames are RGB in [0, 1], except in the flow estimator on a reduced canvas, which the reference
feeds with [-1, 1]. The unknown frame is mid-gray.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .autoencoder import Autoencoder, compose, luma
from .bands import SPLITS, keep, stored, top
from .bridge import sample_bridge, step_list
from .fused_unet import is_available, pack
from .fused_unet import walk_bridge as fused_walk
from .geometry import Geometry
from .layers import Operations, per_frame
from .memory import WHOLE, MemoryPlan
from .unet import UNet

UNKNOWN = 0.5
"""Value of every pixel of the unknown frame."""

Sampler = Callable[[Tensor, int, "Sequence[Tensor] | Tensor"], Tensor]
"""(latent of the frames, steps, noise) -> clean latent."""

LEVELS = 5
FLOW_LEVELS = 3
"""Levels of the encoder whose features refine the flow, in addition to its first features."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowFeatures:
    """A frame's part of what the flow is estimated from."""

    canvas: Tensor
    """The padded frame, or its reduced canvas in [-1, 1]."""
    features: Sequence[Tensor]
    """The encoder's first features of the canvas, and its first three levels."""


@dataclass(slots=True, kw_only=True)
class FrameFeatures:
    """Everything computed from one frame, shared by both pairs it belongs to."""

    geometry: Geometry
    frame: Tensor
    """Padded, [B, C, Hp, Wp], nominally in [0, 1]; RGB, and further channels that are only warped."""
    levels: Sequence[Tensor] | None = None
    """Outputs of the encoder's five levels; that of level i is at 1 / 2**(i + 1).

    If memory is short, they are computed when the first pair needs them.
    """
    flow: FlowFeatures | None = None
    """None if computed again for every pair, to save memory."""

    @property
    def rgb(self) -> Tensor:
        """The padded frame as input for the encoder, in [0, 1]."""
        frame = self.frame[:, :3]
        rgb = torch.empty_like(frame, memory_format=torch.channels_last)
        return torch.clamp(frame, 0, 1, out=rgb)

    @property
    def tensors(self) -> list[Tensor]:
        """All of them in one list, if a plan has kept everything."""
        flow = [] if self.flow is None else [self.flow.canvas, *self.flow.features]
        return [self.frame, *(self.levels or ()), *flow]

    @classmethod
    def of_tensors(cls, geometry: Geometry, tensors: Sequence[Tensor]) -> "FrameFeatures":
        """The features whose `tensors` these are."""
        frame, levels, flow = tensors[0], tensors[1 : 1 + LEVELS], tensors[1 + LEVELS :]
        known = FlowFeatures(canvas=flow[0], features=flow[1:]) if flow else None
        return cls(geometry=geometry, frame=frame, levels=levels, flow=known)

    @staticmethod
    def number_of_tensors(geometry: Geometry) -> int:
        """How many `tensors` the features of a frame have."""
        return 1 + LEVELS + (2 + FLOW_LEVELS if geometry.reduces_flow else 0)


class TLBVFI(nn.Module):
    """The network; parameters are named as in the official checkpoint."""

    def __init__(self, operations: Operations = nn) -> None:
        super().__init__()
        self.denoise_fn = UNet(operations)
        self.vqgan = Autoencoder(operations)

    @property
    def device(self) -> torch.device:
        """Where frames and features must be."""
        return self.vqgan.quantize.embedding.weight.device

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype of the decoder's convolutions."""
        return self.vqgan.decoder.conv_out.weight.dtype

    def to_compute_dtype(self, dtype: torch.dtype) -> "TLBVFI":
        """Run convolutions in `dtype` where the difference does not show; the rest is float32.

        bfloat16: the decoder; float16: the flow as well, which bfloat16 would change too much.
        Everything before the quantizer stays exact, because a slightly different latent can take
        another code: with the encoder in float16 up to 4 % of the codes changed, in bfloat16 9 %.
        There, GPUs without fast float32 split its factors instead. Positions, flows and norms are
        float32.
        """
        decoder = self.vqgan.decoder
        kept = [] if dtype == torch.float16 else [decoder.flownet, decoder.refinenet]
        for part in decoder.children():
            if part not in kept:
                part.to(dtype)
        for layer in self.vqgan.modules():
            if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
                setattr(layer, SPLITS, dtype != torch.float32)
        return self

    def encode(self, frame: Tensor, geometry: Geometry, plan: MemoryPlan = WHOLE) -> FrameFeatures:
        """Features of frames [B, C >= 3, H, W], of the size `geometry` was made for."""
        features = FrameFeatures(geometry=geometry, frame=pad_frame(frame, geometry))
        if plan.keeps_flow_features:
            self.levels_of(features, plan)
            features.flow = self.encode_canvas(features, plan) if geometry.reduces_flow else None
        return features

    def levels_of(self, features: FrameFeatures, plan: MemoryPlan = WHOLE) -> Sequence[Tensor]:
        """The encoder's levels of a frame, computed on first use."""
        if features.levels is None:
            encoder = self.vqgan.encoder
            levels = encoder.levels(encoder.first(features.rgb), LEVELS, plan.encode)
            if features.geometry.reduces_flow:  # then only the decoder uses these
                levels[:-1] = [level.to(self.compute_dtype) for level in levels[:-1]]
            features.levels = levels
            plan.give_back(self.device)
        return features.levels

    def stack(self, features: Sequence[FrameFeatures], plan: MemoryPlan = WHOLE) -> FrameFeatures:
        """Features of several frames of one geometry, stacked into a batch in their order."""
        if len(features) == 1:
            return features[0]
        flows = [f.flow for f in features if f.flow is not None]
        flow = None
        if len(flows) == len(features):
            flow = FlowFeatures(
                canvas=torch.cat([f.canvas for f in flows]),
                features=[
                    torch.cat(maps) for maps in zip(*(f.features for f in flows), strict=True)
                ],
            )
        levels = zip(*(self.levels_of(f, plan) for f in features), strict=True)
        return FrameFeatures(
            geometry=features[0].geometry,
            frame=torch.cat([f.frame for f in features]),
            levels=[torch.cat(maps) for maps in levels],
            flow=flow,
        )

    def encode_canvas(self, features: FrameFeatures, plan: MemoryPlan = WHOLE) -> FlowFeatures:
        """What the flow is estimated from if that is done on a smaller canvas."""
        encoder, geometry = self.vqgan.encoder, features.geometry
        frame = features.frame[:, :3, : geometry.height, : geometry.width]
        canvas = reduce_frame(frame.clamp(0, 1), geometry)
        # No code depends on these features, so they are computed in the type they refine the flow in.
        first = keep(encoder.first(canvas.to(self.vqgan.decoder.refinenet.dtype)), plan.canvas)
        levels = encoder.levels(stored(first), FLOW_LEVELS, plan.canvas)
        plan.give_back(self.device)
        return FlowFeatures(canvas=canvas.mul_(2).sub_(1), features=[first, *levels])

    def flow_features(self, features: FrameFeatures, plan: MemoryPlan = WHOLE) -> FlowFeatures:
        """What the flow is estimated from: the kept features, or features computed now."""
        if features.flow is not None:
            return features.flow
        if features.geometry.reduces_flow:
            return self.encode_canvas(features, plan)
        rgb = features.rgb
        first = keep(self.vqgan.encoder.first(rgb), plan.encode)
        levels = self.levels_of(features, plan)[:FLOW_LEVELS]
        return FlowFeatures(canvas=rgb, features=[first, *levels])

    def encode_unknown(self, geometry: Geometry, plan: MemoryPlan = WHOLE) -> Tensor:
        """The last level of the unknown frame, [1, 256, h, w]; all pairs of a geometry share it."""
        size = (1, 3, geometry.padded_height, geometry.padded_width)
        gray = torch.full(size, UNKNOWN, device=self.device, dtype=torch.float32)
        gray = gray.contiguous(memory_format=torch.channels_last)
        encoder = self.vqgan.encoder
        return encoder.levels(encoder.first(gray), LEVELS, plan.encode)[-1]

    def encode_clip(
        self,
        features0: FrameFeatures,
        unknown: Tensor,
        features1: FrameFeatures,
        plan: MemoryPlan = WHOLE,
    ) -> Tensor:
        """Latent clip [B, 3, T=3, h, w] of frame 0, the unknown frame and frame 1."""
        deepest0, deepest1 = (self.levels_of(f, plan)[-1] for f in (features0, features1))
        luma0, luma1 = luma(features0.frame), luma(features1.frame)
        deepest = (deepest0, unknown.expand_as(deepest0), deepest1)
        # The luma weights add up to 0.9999, so the luma of gray is slightly below its value.
        lumas = (
            luma0,
            luma(features0.frame.new_full((1, 3, 1, 1), UNKNOWN)).expand_as(luma0),
            luma1,
        )
        return per_frame(self.vqgan.quant_conv, self.vqgan.encoder(deepest, lumas, plan.clip))

    def sample_latent(self, y: Tensor, steps: int, noise: Sequence[Tensor] | Tensor) -> Tensor:
        """The clean latent clip from the frames' latent clip; [B, 3, 3, h, w] both."""
        return self.walk_bridge(y, noise, *self.prepare_walk(steps))

    def prepare_walk(self, steps: int) -> tuple[Tensor, ...]:
        """The arguments of `walk_bridge` after latent and noise; compute them once per device.

        The denoiser's embedding of each step, [steps, blocks, 64], and, if fused kernels are
        available, its weights as `fused_unet.pack` gives them.
        """
        unet, device = self.denoise_fn, self.device
        embeddings = unet.embed(step_list(steps), device)
        if not is_available(device):
            return (embeddings,)
        return embeddings, pack(unet, device)

    def walk_bridge(
        self,
        y: Tensor,
        noise: Sequence[Tensor] | Tensor,
        embeddings: Tensor,
        packed: Tensor | None = None,
    ) -> Tensor:
        """`sample_latent` with the result of `prepare_walk`, using only tensors on the device."""
        unet = self.denoise_fn
        if packed is not None:
            return fused_walk(unet, y, noise, embeddings, packed)
        context = unet.embed_context(y)
        return sample_bridge(
            lambda x, step: unet(x, context, embeddings[step]), y, len(embeddings), noise
        )

    def estimate_flow(
        self, features0: FrameFeatures, features1: FrameFeatures, plan: MemoryPlan = WHOLE
    ) -> Tensor:
        """Flow from the mid frame into both frames, [B, 4, Hp, Wp]."""
        decoder, geometry = self.vqgan.decoder, features0.geometry
        known0, known1 = (self.flow_features(f, plan) for f in (features0, features1))
        flow = decoder.flownet(known0.canvas, known1.canvas)
        flow = decoder.refinenet(flow, known0.features, known1.features, plan.flow)
        if not geometry.reduces_flow:
            return flow
        size = (geometry.padded_height, geometry.padded_width)
        full = F.interpolate(flow, size=size, mode="bilinear", align_corners=False)
        return full.div_(float(geometry.flow_scale))

    def decode(
        self,
        latent: Tensor,
        features0: FrameFeatures,
        features1: FrameFeatures,
        flow: Tensor,
        plan: MemoryPlan = WHOLE,
    ) -> Tensor:
        """Mid frame [B, C, H, W] from the quantized latent clip."""
        clip = per_frame(self.vqgan.post_quant_conv, latent)
        levels = [self.levels_of(features, plan) for features in (features0, features1)]
        logits = self.vqgan.decoder(clip, *levels, flow, plan)
        between = compose(features0.frame, features1.frame, flow, logits)
        geometry = features0.geometry
        return keep(top(between, geometry.height), plan.decode)[..., : geometry.width]

    def forward(
        self,
        features0: FrameFeatures,
        unknown: Tensor,
        features1: FrameFeatures,
        steps: int,
        noise: Sequence[Tensor] | Tensor,
        plan: MemoryPlan = WHOLE,
        sample: Sampler | None = None,
    ) -> Tensor:
        """Frame halfway between two frames, [B, C, H, W].

        `unknown`: from `encode_unknown` for the same geometry; `noise`: steps - 1 draws of
        N(0, 1), [B, 3, 3, h, w] each; `sample`: called instead of `sample_latent`.
        """
        # The flow first: if its features are not kept, they are freed before the largest maps.
        flow = self.estimate_flow(features0, features1, plan)
        plan.give_back(self.device)
        y = self.encode_clip(features0, unknown, features1, plan)
        plan.give_back(self.device)
        latent = self.vqgan.quantize((sample or self.sample_latent)(y, steps, noise))
        plan.give_back(self.device)
        return self.decode(latent, features0, features1, flow, plan)


def pad_frame(frame: Tensor, geometry: Geometry) -> Tensor:
    """`frame` padded below and on the right by reflection, and beyond that by its border."""
    down = geometry.padded_height - geometry.height
    right = geometry.padded_width - geometry.width
    reflected = (min(down, geometry.height - 1), min(right, geometry.width - 1))
    frame = F.pad(frame, (0, reflected[1], 0, reflected[0]), mode="reflect")
    rest = (0, right - reflected[1], 0, down - reflected[0])
    return F.pad(frame, rest, mode="replicate") if any(rest) else frame


def reduce_frame(frame: Tensor, geometry: Geometry) -> Tensor:
    """The unpadded frame at the flow's scale, in the top left corner of a mid-gray canvas."""
    height, width = geometry.reduced_frame
    scale = float(geometry.flow_scale)
    # Sampled at (d + 0.5) / scale - 0.5 even if the size had to be rounded down.
    small = torch.ops.aten.upsample_bilinear2d(frame, (height, width), False, scale, scale)
    rest = (0, geometry.canvas[1] - width, 0, geometry.canvas[0] - height)
    canvas = F.pad(small, rest, value=UNKNOWN)
    return canvas.contiguous(memory_format=torch.channels_last)
