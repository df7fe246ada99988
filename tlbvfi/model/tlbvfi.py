"""TLB-VFI: video frame interpolation by a temporal-aware latent Brownian bridge.

The model reads top to bottom: features of each frame, the latent clip of both frames around an
unknown one, the bridge from that latent to the clean one, the flow, and the decoder that puts the
frame together from warped features and warped frames.

Frames are RGB in [0, 1] everywhere but in the flow estimator on a reduced canvas, which the
reference feeds with [-1, 1]. The unknown frame is mid-gray.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .autoencoder import Autoencoder, compose, luma
from .bands import Bands, default_bands, keep
from .bridge import sample_bridge, step_list
from .geometry import Geometry
from .layers import Operations, per_frame
from .unet import UNet

UNKNOWN = 0.5
"""Value of every pixel of the frame to be found, before it is found."""

DEEPEST = 5
FLOW_LEVELS = 3
"""Levels of the encoder whose features refine the flow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameFeatures:
    """What is known of one frame, for both pairs it belongs to."""

    geometry: Geometry
    frame: Tensor
    """Padded, [B, C, Hp, Wp] in [0, 1]; RGB, and further channels that are only warped."""
    phi: Sequence[Tensor | None]
    """phi[k] of the whole frame at 1 / 2**k, k = 0..5; phi[0] only where the flow needs it."""
    canvas: Tensor
    """What the flow estimator sees: the frame, or its reduced canvas in [-1, 1]."""
    flow_phi: Sequence[Tensor]
    """phi[0..3] of what the flow estimator sees."""

    @property
    def deepest(self) -> Tensor:
        """phi[5], [B, 256, h, w]."""
        return present(self.phi[DEEPEST:])[0]


class TLBVFI(nn.Module):
    """The network; parameters are named as in the official checkpoint."""

    def __init__(self, operations: Operations = nn) -> None:
        super().__init__()
        self.denoise_fn = UNet(operations)
        self.vqgan = Autoencoder(operations)

    @property
    def device(self) -> torch.device:
        """Where frames and features have to be."""
        return self.vqgan.quantize.embedding.weight.device

    @property
    def compute_dtype(self) -> torch.dtype:
        """Type the convolutions of the decoder compute in."""
        return self.vqgan.decoder.conv_out.weight.dtype

    def to_compute_dtype(self, dtype: torch.dtype) -> "TLBVFI":
        """Let the convolutions of the decoder compute in `dtype`; the rest is float32.

        All that leads to the quantizer stays exact, because a latent that is a little off can
        take another code: with the encoder in float16 up to 4 % of the codes changed, in bfloat16
        9 %. Flow and warps stay, because they count pixels.
        """
        decoder = self.vqgan.decoder
        for part in (decoder.up, decoder.norm_out, decoder.conv_out, decoder.moduleout):
            part.to(dtype)
        return self

    def encode(
        self, frame: Tensor, geometry: Geometry, bands: Bands | None = None
    ) -> FrameFeatures:
        """Features of frames [B, C >= 3, H, W] in [0, 1] of the size that `geometry` was made for."""
        encoder = self.vqgan.encoder
        bands = bands or default_bands(frame.device)
        padded = pad_frame(frame, geometry)
        rgb = padded[:, :3].contiguous(memory_format=torch.channels_last)
        phi = encoder.features(rgb, DEEPEST, bands, keep_first=not geometry.reduces_flow)
        if not geometry.reduces_flow:
            return FrameFeatures(
                geometry=geometry, frame=padded, phi=phi, canvas=rgb, flow_phi=present(phi[:4])
            )
        canvas = reduce_frame(frame[:, :3], geometry)
        flow_phi = encoder.features(canvas, FLOW_LEVELS, bands, keep_first=True)
        return FrameFeatures(
            geometry=geometry,
            frame=padded,
            phi=phi,
            canvas=canvas.mul_(2).sub_(1),
            flow_phi=present(flow_phi),
        )

    def encode_unknown(self, geometry: Geometry, bands: Bands | None = None) -> Tensor:
        """phi[5] of the unknown frame, [1, 256, h, w]: the same for all pairs of one geometry."""
        size = (1, 3, geometry.padded_height, geometry.padded_width)
        gray = torch.full(size, UNKNOWN, device=self.device)
        gray = gray.contiguous(memory_format=torch.channels_last)
        bands = bands or default_bands(self.device)
        features = self.vqgan.encoder.features(gray, DEEPEST, bands, keep_first=False)
        return present(features[DEEPEST:])[0]

    def encode_clip(
        self, features0: FrameFeatures, unknown: Tensor, features1: FrameFeatures
    ) -> Tensor:
        """Latent clip [B, 3, T=3, h, w] of frame 0, the unknown frame and frame 1."""
        phi0, phi1 = features0.deepest.float(), features1.deepest.float()
        luma0, luma1 = luma(features0.frame), luma(features1.frame)
        deepest = (phi0, unknown.float().expand_as(phi0), phi1)
        # The weights of luma add up to 0.9999, so gray keeps a luma a little below itself.
        lumas = (
            luma0,
            luma(features0.frame.new_full((1, 3, 1, 1), UNKNOWN)).expand_as(luma0),
            luma1,
        )
        return per_frame(self.vqgan.quant_conv, self.vqgan.encoder(deepest, lumas))

    def sample_latent(self, y: Tensor, steps: int, noise: Sequence[Tensor]) -> Tensor:
        """The clean latent clip, from that of the frames; [B, 3, 3, h, w] both."""
        unet = self.denoise_fn
        embeddings = unet.embed(step_list(steps), y.device)
        context = unet.embed_context(y)
        return sample_bridge(
            lambda x, step: unet(x, context, embeddings[step : step + 1]), y, steps, noise
        )

    def estimate_flow(
        self, features0: FrameFeatures, features1: FrameFeatures, bands: Bands | None = None
    ) -> Tensor:
        """Flow from the frame between into both frames, [B, 4, Hp, Wp]."""
        bands = bands or default_bands(self.device)
        decoder = self.vqgan.decoder
        flow = decoder.flownet(features0.canvas, features1.canvas)
        flow = decoder.refinenet(flow, features0.flow_phi, features1.flow_phi, bands)
        geometry = features0.geometry
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
        bands: Bands | None = None,
    ) -> Tensor:
        """Frame between [B, C, H, W] in [0, 1], of the quantized latent clip."""
        clip = per_frame(self.vqgan.post_quant_conv, latent)
        bands = bands or default_bands(self.device)
        logits = self.vqgan.decoder(clip, features0.phi, features1.phi, flow, bands)
        between = keep(compose(features0.frame, features1.frame, flow, logits), bands)
        geometry = features0.geometry
        return between[:, :, : geometry.height, : geometry.width]

    def forward(
        self,
        features0: FrameFeatures,
        unknown: Tensor,
        features1: FrameFeatures,
        steps: int,
        noise: Sequence[Tensor],
        bands: Bands | None = None,
    ) -> Tensor:
        """Frame halfway between two frames, [B, C, H, W] in [0, 1].

        `unknown`: from `encode_unknown` for the same geometry; `noise`: steps - 1 draws of
        N(0, 1), [B, 3, 3, h, w] each.
        """
        y = self.encode_clip(features0, unknown, features1)
        latent = self.vqgan.quantize(self.sample_latent(y, steps, noise))
        flow = self.estimate_flow(features0, features1, bands)
        return self.decode(latent, features0, features1, flow, bands)


def present(features: Sequence[Tensor | None]) -> list[Tensor]:
    """Features all of which have been kept."""
    return [feature for feature in features if feature is not None]


def pad_frame(frame: Tensor, geometry: Geometry) -> Tensor:
    """`frame` continued below and on the right by reflection, and where that ends by its border."""
    down = geometry.padded_height - geometry.height
    right = geometry.padded_width - geometry.width
    reflected = (min(down, geometry.height - 1), min(right, geometry.width - 1))
    frame = F.pad(frame, (0, reflected[1], 0, reflected[0]), mode="reflect")
    rest = (0, right - reflected[1], 0, down - reflected[0])
    return F.pad(frame, rest, mode="replicate") if any(rest) else frame


def reduce_frame(frame: Tensor, geometry: Geometry) -> Tensor:
    """The unpadded frame at the flow's scale, at the top left of a mid-gray canvas."""
    height, width = geometry.reduced_frame
    scale = float(geometry.flow_scale)
    # Sampled at (d + 0.5) / scale - 0.5 even where the size had to be rounded down.
    small = torch.ops.aten.upsample_bilinear2d(frame, (height, width), False, scale, scale)
    rest = (0, geometry.canvas[1] - width, 0, geometry.canvas[0] - height)
    canvas = F.pad(small, rest, value=UNKNOWN)
    return canvas.contiguous(memory_format=torch.channels_last)
