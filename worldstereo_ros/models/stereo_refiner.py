"""Paints what neither eye's camera saw: SpatialDreamer's RefinerNet and denoiser, at a small size.

The made eye comes with its holes filled by geometry. A denoiser repaints the filled pixels, starting from the fill; a
reference network encodes the camera's own image, and its tokens are further keys of the denoiser's spatial attention
(reference attention). Frames are of a live camera, so each attends to itself and to those before it.

Differences from the paper (Lv et al. 2024, arXiv 2411.11934), whose networks have a billion parameters:

- latents are blocks of 4x4 pixels, 48 numbers that are exactly the image, and not those of an autoencoder;
- convolutions at half the image's size surround the transformer: a token of 4x4 pixels that is the product of
  attention alone continues an edge at a multiple of four pixels, and 128 channels do not hold its exact place;
- tokens away from what is painted are keys only. The camera's image is tokens of 8x8 pixels, twice as coarse;
- frames after the present one are unknown, so that temporal interaction learning mixes those before it.

Images are of a made right eye. For a left eye, mirror all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn import functional

from worldstereo_ros.models.blocks import ResidualBlock, zero_module
from worldstereo_ros.models.checkpoints.networks import load_network
from worldstereo_ros.models.factorised_blocks import (
    FactorisedBlock,
    TimestepEmbedding,
    rotary_grid,
    rotary_positions,
    time_modulation,
)
from worldstereo_ros.models.stereo_candidates import CANDIDATES, DIRECTIONS, first_met, mix
from worldstereo_ros.utils.errors import InputError

BLOCK_PX, REFERENCE_PX = 4, 8  # side of a token, and of one of the reference
PIXEL_CHANNELS = 3 + 3 + 4  # noisy, filled, and `StereoCondition`'s others
MET_CHANNELS = 4 * len(DIRECTIONS)
DISPARITY_PX = 32.0  # disparities are divided by it
INTERACTING_FRAMES = 2  # before the present one, that its reference tokens are mixed with


@dataclass(frozen=True)
class StereoCondition:
    """Inputs of the refiner: F frames of a synthesised right view, in b clips; images are in [-1, 1].

    Attributes:
        filled: (b, F, 3, H, W) the eye, its holes filled by geometry. H and W are multiples of 8.
        painted: (b, F, 1, H, W) 1 = filled without being seen by any frame; what is to be painted.
        remembered: (b, F, 1, H, W) 1 = filled from what other frames saw.
        disparity: (b, F, 1, H, W) pixels between the eyes.
        reference: (b, F, 3, H, W + margin) the camera's image, the left eye, from the same column on; the margin shows
            what the right part of the made eye sees.
    """

    filled: torch.Tensor
    painted: torch.Tensor
    remembered: torch.Tensor
    disparity: torch.Tensor
    reference: torch.Tensor

    @property
    def deviation(self) -> torch.Tensor:
        """(b,) stereo deviation strength: mean difference of the blocks of the two eyes at the same place."""
        width = self.filled.shape[-1]
        return (self.filled - self.reference[..., :width]).abs().flatten(1).mean(1).float()


@dataclass
class RefinerHistory:
    """What frames before the present one left behind, newest last: for each block, tokens (b, 1, n, width).

    Attributes:
        tokens: inputs of the temporal blocks.
        references: tokens of the reference network.
    """

    tokens: list[list[torch.Tensor]] = field(default_factory=list)
    references: list[list[torch.Tensor]] = field(default_factory=list)

    def add(self, tokens: list[torch.Tensor], references: list[torch.Tensor], frames: int) -> None:
        """Remembers a frame; at most so many frames are kept."""
        self.tokens = [*self.tokens, tokens][-frames:]
        self.references = [*self.references, references][-INTERACTING_FRAMES:]


class ReferenceNetwork(nn.Module):
    """Encodes the camera's image; each block's tokens are keys of the denoiser's block of the same number.

    Args:
        width, heads, depth, mlp_ratio: see `StereoRefiner`.
    """

    def __init__(self, width: int, heads: int, depth: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Conv2d(3, width, REFERENCE_PX, stride=REFERENCE_PX)
        self.blocks = nn.ModuleList(FactorisedBlock(width, heads, mlp_ratio=mlp_ratio) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        # Temporal interaction learning: the share of a frame's own tokens, the rest is of its neighbours.
        self.own_share = nn.Parameter(torch.full((depth,), 0.5))

    def forward(self, images: torch.Tensor, modulation: torch.Tensor) -> list[torch.Tensor]:
        """Tokens (b, F, m, width) of each block for images (b, F, 3, H, W)."""
        b, frames = images.shape[:2]
        x = self.embed(images.flatten(0, 1))
        rows, columns = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2).unflatten(0, (b, frames))
        rotary = rotary_grid(rows, columns, x.shape[-1] // self.heads, x.device)
        out = []
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = block(x, modulation, rotary=rotary)
            out.append(norm(x))
        return out

    def interact(self, level: int, tokens: torch.Tensor, before: list[torch.Tensor]) -> torch.Tensor:
        """Mixes tokens of each frame with those of the frames before it.

        Args:
            level: number of the block.
            tokens: (b, F, m, width).
            before: tokens (b, 1, m, width) of frames before the first one, newest last.
        """
        known = torch.cat([*before, tokens], dim=1)
        first, mixed = len(before), []
        share = self.own_share[level].clamp(0, 1).to(tokens.dtype)
        for frame in range(first, known.shape[1]):
            others = known[:, max(0, frame - INTERACTING_FRAMES) : frame]
            own = known[:, frame]
            mixed.append(own if others.shape[1] == 0 else share * own + (1 - share) * others.mean(1))
        return torch.stack(mixed, dim=1)


class StereoRefiner(ModelMixin, ConfigMixin):
    """The denoiser and its reference network.

    Args:
        width: channels of the tokens.
        heads: attention heads.
        depth: pairs of a spatial and a temporal block.
        mlp_ratio: hidden channels of the feed-forward networks, in widths.
        pixel_width: channels of the convolutions at half the image's size.
        band: tokens are updated up to so many places beside what is painted.
        history: frames before the present one that it attends to.
        prior_noise: standard deviation of the noise that is added to the fill in training, image units (-1 to 1).
        reference_attention: the tokens of the camera's image are keys; else there is no reference network.
        deviation_strength: the stereo deviation strength is embedded beside the time.
        temporal_interaction: the reference's tokens are mixed with those of the frames before (TIL).
        mixture: it mixes colours that lie around a hole instead of adding to the fill (`stereo_candidates`).
        sides: it was trained on what lies beyond the side of the camera's image, and paints there, too.

    The last five are for ablations.

    Raises:
        InputError: a number is too small, or the heads do not fit the width.
    """

    @register_to_config
    def __init__(
        self,
        width: int = 128,
        heads: int = 4,
        depth: int = 3,
        mlp_ratio: float = 3.0,
        pixel_width: int = 32,
        band: int = 2,
        history: int = 3,
        prior_noise: float = 0.5,
        reference_attention: bool = True,
        deviation_strength: bool = True,
        temporal_interaction: bool = True,
        mixture: bool = False,
        sides: bool = False,
    ) -> None:
        super().__init__()
        if depth < 1 or pixel_width < 1 or band < 0 or history < 1 or width % (4 * heads):
            raise InputError(
                f"depth {depth}, pixel_width {pixel_width}, band {band} and history {history} must be at least 1, 1, "
                f"0 and 1, and width {width} a multiple of four times the heads ({heads})."
            )
        channels = PIXEL_CHANNELS + (MET_CHANNELS if mixture else 0)
        self.stem = nn.Sequential(nn.Conv2d(4 * channels, pixel_width, 3, padding=1), ResidualBlock(pixel_width))
        self.down = nn.Conv2d(pixel_width, width, 2, stride=2)
        self.t_embedder = TimestepEmbedding(width)
        self.deviation_embedder = TimestepEmbedding(width) if deviation_strength else None
        self.t_block = time_modulation(width)
        self.reference = ReferenceNetwork(width, heads, depth, mlp_ratio) if reference_attention else None
        self.spatial_blocks = nn.ModuleList(FactorisedBlock(width, heads, mlp_ratio=mlp_ratio) for _ in range(depth))
        over_time = [FactorisedBlock(width, heads, temporal=True, mlp_ratio=mlp_ratio) for _ in range(depth)]
        for block in over_time:  # nothing of other frames until trained
            zero_module(block.attn.proj)
            zero_module(block.mlp.fc2)
        self.temporal_blocks = nn.ModuleList(over_time)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * pixel_width)
        self.head = nn.Sequential(ResidualBlock(pixel_width), ResidualBlock(pixel_width))
        self.out = nn.Conv2d(pixel_width, 4 * (CANDIDATES if mixture else 3), 3, padding=1)
        zero_module(self.out)

    def forward(
        self,
        noisy: torch.Tensor,
        time: torch.Tensor,
        condition: StereoCondition,
        *,
        temporal: bool = True,
        history: RefinerHistory | None = None,
        band: int | None = None,
    ) -> torch.Tensor:
        """Predicts the clean eye.

        Args:
            noisy: (b, F, 3, H, W) the eye at a noise level: `(1 - time) clean + time (filled + noise)`.
            time: (b,) noise level, 1 = the fill.
            condition: what is known.
            temporal: frames attend to those before them.
            history: of frames before; then F is 1, and the frame is added to it.
            band: instead of that of the configuration; fewer tokens are faster.

        Returns:
            (b, F, 3, H, W); the fill where the network knows nothing better, and until it is trained.

        Raises:
            InputError: shapes do not fit.
        """
        self._check(noisy, time, condition, history)
        b, frames, _, height, width = noisy.shape
        pixels = torch.cat(
            (
                noisy,
                condition.filled,
                condition.painted,
                condition.remembered,
                condition.disparity / DISPARITY_PX,
                torch.ones_like(condition.painted),  # convolutions see where the image ends
            ),
            dim=2,
        ).flatten(0, 1)
        filled = condition.filled.flatten(0, 1)
        if self.config.mixture:
            met, nearer = first_met(filled, condition.painted.flatten(0, 1), condition.disparity.flatten(0, 1))
            pixels = torch.cat([pixels, met.flatten(1, 2), nearer], dim=1)
        pixels = functional.pixel_unshuffle(pixels, 2).contiguous(memory_format=torch.channels_last)
        skip = self.stem(pixels)
        tokens = self.down(skip).flatten(2).transpose(1, 2).unflatten(0, (b, frames))
        rows, columns = height // BLOCK_PX, width // BLOCK_PX
        inside = self.band_of(condition.painted, band)
        index = _places(inside.any(1), repeat=history is not None)  # the blocks change these tokens alone
        exact = history is not None and bool(inside.any(-1).all())  # they are the band unless a clip has none
        embedded = self.t_embedder(1000 * time)
        if self.deviation_embedder is not None:
            embedded = embedded + self.deviation_embedder(1000 * condition.deviation)
        modulation = self.t_block(embedded)
        references = [] if self.reference is None else self.reference(condition.reference, modulation)
        head_dim = self.config.width // self.config.heads
        rotary = rotary_grid(rows, columns, head_dim, noisy.device)
        beside = self._reference_rotary(condition.reference.shape[-2:], columns, head_dim, noisy.device)
        inputs: list[torch.Tensor] = []
        for level, (spatial, over_time) in enumerate(zip(self.spatial_blocks, self.temporal_blocks, strict=True)):
            keys = references[level] if references else None
            if temporal and self.reference is not None and self.config.temporal_interaction:
                past = [] if history is None else [each[level] for each in history.references]
                keys = self.reference.interact(level, references[level], past)
            updated = spatial(
                tokens, modulation, rotary=rotary, extra_keys=keys, extra_rotary=beside, query_index=index
            )
            tokens = updated if exact else torch.where(inside[..., None], updated, tokens.type_as(updated))
            if history is not None:
                inputs.append(tokens)
                tokens = self._latest(over_time, tokens, [each[level] for each in history.tokens], index, modulation)
            elif temporal:
                updated = self._over_time(over_time, tokens, modulation, index)
                tokens = torch.where(inside[..., None], updated, tokens.type_as(updated))
        if history is not None:
            history.add(inputs, references, self.config.history)
        wide = self.up(self.norm(tokens)).flatten(0, 1).transpose(1, 2).unflatten(2, (rows, columns))
        x = self.out(functional.silu(self.head(skip + functional.pixel_shuffle(wide, 2))))
        x = functional.pixel_shuffle(x, 2).type_as(filled)
        return (mix(filled, met, x) if self.config.mixture else filled + x).unflatten(0, (b, frames))

    def refine(
        self, condition: StereoCondition, *, history: RefinerHistory | None = None, band: int | None = None
    ) -> torch.Tensor:
        """Paints the eye in one step from the fill, (b, F, 3, H, W); all but `painted` is unchanged. See `forward`."""
        time = torch.ones(len(condition.filled), device=condition.filled.device)
        made = self(condition.filled, time, condition, history=history, band=band).clamp(-1, 1)
        return torch.where(condition.painted > 0.5, made, condition.filled)

    def band_of(self, painted: torch.Tensor, band: int | None = None) -> torch.Tensor:
        """(b, F, n) bool: the tokens that are updated, for (b, F, 1, H, W), up to `band` places beside it."""
        reach = self.config.band if band is None else band
        mask = functional.max_pool2d(painted.flatten(0, 1).float(), BLOCK_PX)
        wide = functional.max_pool2d(mask, 2 * reach + 1, 1, reach)
        return (wide > 0).flatten(1).unflatten(0, painted.shape[:2])

    def _over_time(
        self, block: nn.Module, tokens: torch.Tensor, modulation: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        """A temporal block, in which frames attend to themselves and to `history` frames before them."""
        place = torch.arange(tokens.shape[1], device=tokens.device)
        apart = place[:, None] - place[None]
        mask = (apart >= 0) & (apart <= self.config.history)
        rotary = rotary_positions(place, self.config.width // self.config.heads)
        return block(tokens, modulation, rotary=rotary, mask=mask, query_index=index)

    def _latest(
        self,
        block: nn.Module,
        tokens: torch.Tensor,
        past: list[torch.Tensor],
        index: torch.Tensor,
        modulation: torch.Tensor,
    ) -> torch.Tensor:
        """What `_over_time` gives for the last frame alone, at the places `index` (b, k); past frames are keys only."""
        assert isinstance(block, FactorisedBlock)
        b, _, _, width = tokens.shape
        where = index[:, None, :, None].expand(-1, 1, -1, width)
        known = [each.type_as(tokens).gather(2, where) for each in (*past, tokens)]
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            (block.scale_shift_table + modulation.view(b, -1, width))[:, :, None, None].type_as(tokens).unbind(1)
        )
        normed = block.norm1(torch.cat(known, dim=1)) * (1 + scale1) + shift1
        # (b * k, frames, width); of a single clip it would be a view, which linear layers are slow on.
        flat = normed.transpose(1, 2).flatten(0, 1).contiguous()
        rotary = rotary_positions(torch.arange(flat.shape[1], device=tokens.device), width // self.config.heads)
        last = torch.full((len(flat), 1), flat.shape[1] - 1, device=tokens.device)
        x = known[-1] + gate1 * block.attn(flat, rotary, index=last).unflatten(0, (b, -1)).transpose(1, 2)
        x = x + gate2 * block.mlp(block.norm2(x) * (1 + scale2) + shift2)
        return tokens.scatter(2, where, x.type_as(tokens))

    def _reference_rotary(
        self, size: torch.Size, columns: int, head_dim: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions of the reference's tokens: the same rows, and columns to the right of the eye's."""
        rows, wide = (side // REFERENCE_PX for side in size)
        ratio = REFERENCE_PX // BLOCK_PX
        cosine, sine = rotary_grid(rows * ratio, wide * ratio, head_dim, device, first_column=columns)

        def every(x: torch.Tensor) -> torch.Tensor:
            return x.view(1, rows * ratio, wide * ratio, 1, -1)[:, ::ratio, ::ratio].flatten(1, 2)

        return every(cosine), every(sine)

    def _check(
        self, noisy: torch.Tensor, time: torch.Tensor, condition: StereoCondition, history: RefinerHistory | None
    ) -> None:
        b, frames, channels, height, width = noisy.shape
        wide = condition.reference.shape[-1]
        fits = channels == 3 and time.shape == (b,) and condition.filled.shape == noisy.shape
        fits &= all(
            each.shape == (b, frames, 1, height, width)
            for each in (condition.painted, condition.remembered, condition.disparity)
        )
        fits &= condition.reference.shape == (b, frames, 3, height, wide) and wide >= width
        if not fits or height % REFERENCE_PX or width % REFERENCE_PX or wide % REFERENCE_PX:
            raise InputError(
                f"The refiner was given {tuple(noisy.shape)}, times {tuple(time.shape)} and a reference "
                f"{tuple(condition.reference.shape)}; (b, F, 3, H, W), (b,) and (b, F, 3, H, at least W) of multiples "
                f"of {REFERENCE_PX} were expected, and conditions of the same size."
            )
        if history is not None and frames != 1:
            raise InputError(f"The refiner was given {frames} frames with a history; one at a time was expected.")


def _places(band: torch.Tensor, *, repeat: bool) -> torch.Tensor:
    """(b, k) int64 places of a band (b, n) bool; where one has fewer than another, its first or others fill up k.

    Repeated places would have wrong gradients.
    """
    count = int(band.sum(1).max().clamp_min(1))
    order = band.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.where(band.gather(1, order), order, order[:, :1]) if repeat else order


def load_stereo_refiner(folder: Path, device: torch.device | str = "cpu") -> StereoRefiner | None:
    """Loads a refiner from a folder with `config.json` and safetensors, in evaluation mode, without gradients.

    Args:
        folder: folder of the network.
        device: device to load it to.

    Returns:
        The network in float32; None if there is no such folder.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    return load_network(folder, StereoRefiner, "stereo refiner", device)
