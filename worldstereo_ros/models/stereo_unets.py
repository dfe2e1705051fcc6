"""SpatialDreamer at its published size: Stable Diffusion 2.1's U-Net as RefinerNet, and Stable Video Diffusion's.

Lv et al. 2024, arXiv 2411.11934. RefinerNet encodes the camera's frames. What goes into its spatial self-attention is
mixed over neighbouring frames (temporal interaction learning) and becomes further keys and values of the denoiser's
spatial self-attention at the same place, so that the made eye attends to the real one. The stereo deviation strength is
embedded and added to the time embeddings of both. The denoiser's input is the noisy latents, those of the warped eye,
and the mask of what is to be painted.

Not known of the paper, and chosen here: RefinerNet runs once, at noise level 0; texts are empty (zeros).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNetSpatioTemporalConditionModel
from torch import nn
from torch.nn import functional

from worldstereo_ros.models.blocks import zero_module
from worldstereo_ros.models.checkpoints.weights import CheckpointError
from worldstereo_ros.models.factorised_blocks import TimestepEmbedding

MASK_CHANNELS = 1
NEIGHBOURS = (-2, -1, 1, 2)  # frames that a frame's features are mixed with
TIME_IDS = (6.0, 127.0, 0.0)  # frame rate less 1, motion bucket, noise of the image: what SVD was trained with
_SPATIAL = ".transformer_blocks."  # of names of attention layers; SVD has `temporal_transformer_blocks`, too


class StereoConditioning(nn.Module):
    """What is neither Stable Diffusion's nor Stable Video Diffusion's; without effect on time until trained.

    Attributes:
        own_share: (levels,) share of a frame's own reference features, one for each attention layer; the rest is of
            its neighbours.
        denoiser_deviation, refiner_deviation: embeddings of the stereo deviation strength.
    """

    def __init__(self, levels: int, denoiser_width: int, refiner_width: int) -> None:
        super().__init__()
        self.own_share = nn.Parameter(torch.full((levels,), 0.5))
        self.denoiser_deviation = TimestepEmbedding(denoiser_width)
        self.refiner_deviation = TimestepEmbedding(refiner_width)
        for embedding in (self.denoiser_deviation, self.refiner_deviation):
            zero_module(embedding.mlp[2])

    def interact(self, level: int, features: torch.Tensor) -> torch.Tensor:
        """Mixes features (b, F, m, c) of each frame with those of up to two frames before and after it."""
        frames = features.shape[1]
        share = self.own_share[level].clamp(0, 1).to(features.dtype)
        mixed = []
        for frame in range(frames):
            near = [frame + step for step in NEIGHBOURS if 0 <= frame + step < frames]
            own = features[:, frame]
            mixed.append(share * own + (1 - share) * features[:, near].mean(1) if near else own)
        return torch.stack(mixed, dim=1)


class StereoUNets(nn.Module):
    """The denoiser, RefinerNet and what connects them.

    Args:
        denoiser: of Stable Video Diffusion; its first convolution is widened by the mask, with weights zero.
        refiner: of Stable Diffusion 2.1.

    Raises:
        CheckpointError: the two do not fit each other.
    """

    def __init__(self, denoiser: UNetSpatioTemporalConditionModel, refiner: UNet2DConditionModel) -> None:
        super().__init__()
        self.denoiser, self.refiner = denoiser, refiner
        self.levels = spatial_attentions(denoiser)
        theirs = spatial_attentions(refiner)
        channels = denoiser.config.out_channels
        if denoiser.config.in_channels == 2 * channels:
            widen_input(denoiser, MASK_CHANNELS)
        widths = [{name: net.get_submodule(name).to_k.in_features for name in found} for net, found in
                  ((denoiser, self.levels), (refiner, theirs))]  # fmt: skip
        fits = widths[0] == widths[1] and bool(self.levels)
        if not fits or denoiser.config.in_channels != 2 * channels + 1 or refiner.config.in_channels != channels:
            raise CheckpointError(
                f"RefinerNet ({refiner.config.in_channels} channels of latents, {len(theirs)} spatial attention layers "
                f"of {sorted(set(widths[1].values()))} channels) does not fit the denoiser ({channels} channels, "
                f"{denoiser.config.in_channels} of input, {len(self.levels)} layers of "
                f"{sorted(set(widths[0].values()))}); the U-Nets of Stable Diffusion 2.1 and Stable Video Diffusion "
                "were expected."
            )
        self.conditioning = StereoConditioning(
            len(self.levels),
            denoiser.time_embedding.linear_2.out_features,
            refiner.time_embedding.linear_2.out_features,
        )
        self._features: dict[str, torch.Tensor] = {}
        self._added: dict[str, torch.Tensor] = {}
        reading = {f"{name}.processor": _CrossViewProcessor(self._features, name) for name in self.levels}
        writing = {f"{name}.processor": _RecordingProcessor(self._features, name) for name in theirs}
        denoiser.set_attn_processor({**denoiser.attn_processors, **reading})
        refiner.set_attn_processor({**refiner.attn_processors, **writing})
        denoiser.time_embedding.register_forward_hook(self._adding("denoiser"))
        refiner.time_embedding.register_forward_hook(self._adding("refiner"))

    @contextmanager
    def reference(self, latents: torch.Tensor, deviation: torch.Tensor) -> Iterator[None]:
        """Encodes the camera's frames; within the context, the denoiser attends to them.

        Args:
            latents: (b, F, c, h, w) of the camera's frames, scaled as Stable Diffusion's are.
            deviation: (b,) stereo deviation strength, see `deviation_of`.
        """
        b, frames = latents.shape[:2]
        embed = self.conditioning
        self._added["denoiser"] = embed.denoiser_deviation(1000 * deviation)
        self._added["refiner"] = embed.refiner_deviation(1000 * deviation).repeat_interleave(frames, 0)
        try:
            text = latents.new_zeros(b * frames, 1, self.refiner.config.cross_attention_dim)
            self.refiner(latents.flatten(0, 1), 0, text)
            for level, name in enumerate(self.levels):
                features = self._features[name].unflatten(0, (b, frames))
                self._features[name] = embed.interact(level, features).flatten(0, 1)
            yield
        finally:
            self._features.clear()
            self._added.clear()

    def forward(self, noisy: torch.Tensor, time: Any, warped: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The denoiser's prediction (b, F, c, h, w), inside `reference`.

        Args:
            noisy: (b, F, c, h, w) latents, scaled by the scheduler.
            time: timestep of the scheduler.
            warped: (b, F, c, h, w) latents of the warped eye.
            mask: (b, F, 1, h, w) 1 = to be painted.
        """
        b = len(noisy)
        text = noisy.new_zeros(b, 1, self.denoiser.config.cross_attention_dim)
        ids = noisy.new_tensor([TIME_IDS] * b)
        return self.denoiser(torch.cat((noisy, warped, mask), dim=2), time, text, ids).sample

    def _adding(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return output + self._added[name].to(output.dtype) if name in self._added else output

        return hook


def deviation_of(warped: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """(b,) stereo deviation strength: mean difference of latents (b, F, c, h, w) of the two eyes."""
    return (warped - reference).abs().flatten(1).float().mean(1)


def spatial_attentions(network: nn.Module) -> list[str]:
    """Names of the spatial self-attention layers of a U-Net, in order."""
    return [name for name, _ in network.named_modules() if name.endswith(".attn1") and _SPATIAL in name]


def widen_input(network: UNetSpatioTemporalConditionModel, channels: int) -> None:
    """Gives a U-Net's first convolution further input channels, whose weights are zero."""
    old = network.conv_in
    new = nn.Conv2d(
        old.in_channels + channels, old.out_channels, old.kernel_size, old.stride, old.padding,
        bias=old.bias is not None,
        device=old.weight.device, dtype=old.weight.dtype,
    )  # fmt: skip
    with torch.no_grad():
        new.weight.zero_()[:, : old.in_channels] = old.weight
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    network.conv_in = new.requires_grad_(old.weight.requires_grad)
    network.register_to_config(in_channels=new.in_channels)


class _RecordingProcessor:
    """Self-attention that keeps what goes into it."""

    def __init__(self, store: dict[str, torch.Tensor], name: str) -> None:
        self.store, self.name = store, name

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        self.store[self.name] = hidden_states
        return _attend(attn, hidden_states, hidden_states)


class _CrossViewProcessor(_RecordingProcessor):
    """Self-attention whose keys and values are of the reference's features, too."""

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        reference = self.store.get(self.name)
        source = hidden_states if reference is None else torch.cat((hidden_states, reference), dim=1)
        return _attend(attn, hidden_states, source)


def _attend(attn: Any, queries: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Attention of diffusers' layers from (N, L, c) to (N, M, c)."""
    q, k, v = (
        layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        for layer, x in ((attn.to_q, queries), (attn.to_k, source), (attn.to_v, source))
    )
    out = functional.scaled_dot_product_attention(q, k, v, scale=attn.scale)
    return attn.to_out[0](out.transpose(1, 2).flatten(2))
