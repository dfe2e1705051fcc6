"""The video autoencoder of Open-Sora 1.2, with the names of its published weights.

Frames are encoded one by one by a two-dimensional autoencoder (diffusers' AutoencoderKL at SDXL's size, 8x8 pixels a
latent). A second autoencoder of causal three-dimensional convolutions takes those latents in chunks of 17 frames and
gives 5 latent frames for each: 3 frames of zeros stand before a chunk, then time is divided by 4. Latents are shifted
and scaled for each channel, which rectified flow needs (report of Open-Sora 1.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from worldstereo_ros.models.checkpoints.bounds import check_numbers
from worldstereo_ros.models.checkpoints.loading import build_on_meta
from worldstereo_ros.models.checkpoints.weights import CheckpointError, read_json
from worldstereo_ros.models.pointmaps.autoencoder import (
    FIRST_LOG_SCALE,
    FIRST_VALID,
    MAX_LOG_SCALE,
    MIN_LOG_SCALE,
    coded,
)
from worldstereo_ros.models.pointmaps.geometry import decode_points
from worldstereo_ros.models.pointmaps.open_sora_files import assign, open_published
from worldstereo_ros.models.pointmaps.temporal_autoencoder import TemporalAutoencoder
from worldstereo_ros.utils.errors import InputError

SPATIAL_SCALE = 0.18215  # of the latents of single frames
SHIFT, SCALE = (-0.10, 0.34, 0.27, 0.98), (3.85, 2.32, 2.33, 3.06)
LATENT_PX = 8
POINTMAP_OUTPUTS = 5  # three coordinates, log scale of their error, and whether there is a surface
MIN_LOG_VARIANCE, MAX_LOG_VARIANCE = -30.0, 20.0
HEADS = ("spatial_vae.module.decoder.conv_out.weight", "spatial_vae.module.decoder.conv_out.bias")


class OpenSoraVideoAutoencoder(ModelMixin, ConfigMixin):
    """Encodes videos (b, 3, F, H, W) in [-1, 1] to latents (b, z_dim, f, H / 8, W / 8).

    Args:
        widths, layers, groups: of the two-dimensional autoencoder; four widths.
        temporal_width, temporal_multipliers, temporal_blocks, temporal_downsample, temporal_groups: of the temporal
            one, see `TemporalAutoencoder`.
        z_dim: channels of the latents.
        out_channels: channels of decoded videos.
        chunk: frames that are encoded together.
    """

    @register_to_config
    def __init__(
        self,
        widths: tuple[int, ...] = (128, 256, 512, 512),
        layers: int = 2,
        groups: int = 32,
        temporal_width: int = 128,
        temporal_multipliers: tuple[int, ...] = (1, 2, 2, 4),
        temporal_blocks: int = 4,
        temporal_downsample: tuple[bool, ...] = (False, True, True),
        temporal_groups: int = 32,
        z_dim: int = 4,
        out_channels: int = 3,
        chunk: int = 17,
    ) -> None:
        super().__init__()
        if len(widths) != 4 or len(temporal_downsample) != len(temporal_multipliers) - 1 or chunk < 1:
            raise InputError(
                f"Four widths, a temporal_downsample less than temporal_multipliers and a chunk of frames were "
                f"expected; got {widths}, {temporal_downsample}, {temporal_multipliers} and {chunk}."
            )
        spatial = AutoencoderKL(
            in_channels=3,
            out_channels=out_channels,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=tuple(widths),
            layers_per_block=layers,
            latent_channels=z_dim,
            norm_num_groups=groups,
        )
        self.spatial_vae = nn.ModuleDict({"module": spatial})
        self.temporal_vae = TemporalAutoencoder(
            z_dim, temporal_width, temporal_multipliers, temporal_blocks, temporal_downsample, temporal_groups
        )
        for name, values in (("shift", SHIFT), ("scale", SCALE)):
            numbers = values if z_dim == len(values) else (float(name == "scale"),) * z_dim
            self.register_buffer(name, torch.tensor(numbers).view(1, -1, 1, 1, 1))

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a video."""
        chunk, step = int(self.config.chunk), self.temporal_vae.time_step
        return frames // chunk * -(-chunk // step) + -(-(frames % chunk) // step)

    def encode(
        self,
        videos: torch.Tensor,
        *,
        frames_at_once: int = 16,
        sample: bool = False,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Encodes videos to normalised latents.

        Args:
            videos: (b, 3, F, H, W) in [-1, 1]; H and W multiples of 8.
            frames_at_once: frames that the two-dimensional autoencoder takes together.
            sample: draws from the distribution of the latents; else their mean is taken.
            generator: for the draw.

        Returns:
            (b, z_dim, f, H / 8, W / 8) float32.

        Raises:
            InputError: the videos have another shape.
        """
        mean, log_variance = self.moments(videos, frames_at_once=frames_at_once)
        if sample:
            noise = torch.randn(mean.shape, generator=generator, device=mean.device)
            mean = mean + noise * (0.5 * log_variance).exp()
        return self.normalise(mean)

    def moments(self, videos: torch.Tensor, *, frames_at_once: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance (b, z_dim, f, h, w), float32, of latents before normalisation; see `encode`."""
        if videos.ndim != 5 or videos.shape[1] != 3 or videos.shape[3] % LATENT_PX or videos.shape[4] % LATENT_PX:
            raise InputError(
                f"The videos have shape {tuple(videos.shape)}; (b, 3, F, H, W) with H and W multiples of {LATENT_PX} "
                "was expected."
            )
        images = videos.transpose(1, 2).flatten(0, 1).to(self.dtype)
        single = torch.cat([self._spatial().encode(part).latent_dist.mode() for part in images.split(frames_at_once)])
        latents = single.unflatten(0, (len(videos), -1)).transpose(1, 2) * SPATIAL_SCALE
        chunks = latents.split(int(self.config.chunk), dim=2)
        both = torch.cat([self.temporal_vae.encode(chunk) for chunk in chunks], dim=2).float()
        mean, log_variance = both.chunk(2, dim=1)
        return mean, log_variance.clamp(MIN_LOG_VARIANCE, MAX_LOG_VARIANCE)

    def normalise(self, latents: torch.Tensor) -> torch.Tensor:
        """Shifts and scales latents."""
        return (latents.float() - self.get_buffer("shift").float()) / self.get_buffer("scale").float()

    def decode(self, latents: torch.Tensor, frames: int, *, frames_at_once: int = 16) -> torch.Tensor:
        """Decodes normalised latents.

        Args:
            latents: (b, z_dim, f, h, w).
            frames: frames of the video, which `f` alone does not tell.
            frames_at_once: frames that the two-dimensional autoencoder takes together.

        Returns:
            (b, out_channels, frames, 8 h, 8 w) float32.

        Raises:
            InputError: the latents have another shape, or are not those of so many frames.
        """
        if latents.ndim != 5 or frames < 1 or latents.shape[2] != self.latent_frames(frames):
            raise InputError(
                f"The latents have shape {tuple(latents.shape)}; (b, {self.config.z_dim}, "
                f"{self.latent_frames(max(frames, 1))}, h, w) was expected for {frames} frames."
            )
        chunk = int(self.config.chunk)
        raw = (latents.float() * self.get_buffer("scale").float() + self.get_buffer("shift").float()).to(self.dtype)
        parts, left = [], frames
        for part in raw.split(self.latent_frames(chunk), dim=2):
            parts.append(self.temporal_vae.decode(part, min(chunk, left)))
            left -= chunk
        single = torch.cat(parts, dim=2).transpose(1, 2).flatten(0, 1) / SPATIAL_SCALE
        images = torch.cat([self._spatial().decode(part).sample for part in single.split(frames_at_once)])
        return images.float().unflatten(0, (len(latents), frames)).transpose(1, 2)

    def set_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Sets shift and scale (z_dim,) of the latents."""
        for name, value in (("shift", mean), ("scale", std.clamp_min(1e-3))):
            buffer = self.get_buffer(name)
            buffer.copy_(value.to(buffer).view_as(buffer))

    def save_memory(self) -> None:
        """Computes activations of the two-dimensional autoencoder again for gradients instead of keeping them."""
        self._spatial().enable_gradient_checkpointing()

    def _spatial(self) -> AutoencoderKL:
        module: AutoencoderKL = self.spatial_vae["module"]
        return module


class PointmapVideoAutoencoder(OpenSoraVideoAutoencoder):
    """Encodes point maps instead of videos; its last convolution has two more outputs, see `PointmapAutoencoder`."""

    @register_to_config
    def __init__(
        self,
        widths: tuple[int, ...] = (128, 256, 512, 512),
        layers: int = 2,
        groups: int = 32,
        temporal_width: int = 128,
        temporal_multipliers: tuple[int, ...] = (1, 2, 2, 4),
        temporal_blocks: int = 4,
        temporal_downsample: tuple[bool, ...] = (False, True, True),
        temporal_groups: int = 32,
        z_dim: int = 4,
        out_channels: int = POINTMAP_OUTPUTS,
        chunk: int = 17,
    ) -> None:
        super().__init__(
            widths, layers, groups, temporal_width, temporal_multipliers, temporal_blocks, temporal_downsample,
            temporal_groups, z_dim, out_channels, chunk,
        )  # fmt: skip

    @classmethod
    def from_video_autoencoder(cls, video: OpenSoraVideoAutoencoder) -> PointmapVideoAutoencoder:
        """Starts from the weights of an autoencoder of videos, in float32; the further outputs begin at 0."""
        config = {k: v for k, v in video.config.items() if not k.startswith("_")} | {"out_channels": POINTMAP_OUTPUTS}
        model = cls(**config).to(video.device)
        weights = {name: tensor.float() for name, tensor in video.state_dict().items()}
        for name in HEADS:
            wide = torch.zeros_like(model.state_dict()[name])
            wide[: len(weights[name])] = weights[name]
            weights[name] = wide
        model.load_state_dict(weights)
        return model

    def encode_pointmaps(self, points: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Encodes point maps.

        Args:
            points: (b, F, 3, H, W) over the mean distance, axes of the first camera.
            valid: (b, F, H, W) bool, True = a surface.

        Returns:
            (b, z_dim, f, H / 8, W / 8) float32, normalised.
        """
        return self.encode(coded(points, valid).transpose(1, 2))

    def decode_heads(self, latents: torch.Tensor, frames: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Decodes normalised latents to coded points (b, F, 3, H, W), log scale and valid logit (b, F, H, W)."""
        decoded = self.decode(latents, frames).transpose(1, 2)
        log_scale = (decoded[:, :, 3] + FIRST_LOG_SCALE).clamp(MIN_LOG_SCALE, MAX_LOG_SCALE)
        return decoded[:, :, :3], log_scale, decoded[:, :, 4] + FIRST_VALID

    def decode_pointmaps(self, latents: torch.Tensor, frames: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Decodes normalised latents to points (b, F, 3, H, W) over the mean distance, log scale and valid logit."""
        code, log_scale, valid = self.decode_heads(latents, frames)
        return decode_points(code), log_scale, valid


def load_open_sora_autoencoder(
    path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> OpenSoraVideoAutoencoder:
    """Loads published weights, or those of a run, in evaluation mode, without gradients.

    Args:
        path: folder or file, see `open_sora_files.open_published`. A `config.json` of this package beside the weights
            tells class and sizes; without one they are those of OpenSora-VAE-v1.2.
        device: device to load it to.
        dtype: dtype of the weights.

    Returns:
        The autoencoder; a `PointmapVideoAutoencoder` where the configuration says so.

    Raises:
        CheckpointError: a file is missing or damaged, a tensor is missing, unknown, of a wrong shape or not finite, or
            the device has too little memory.
    """
    files = open_published(path)
    file = (path if path.is_dir() else path.parent) / "config.json"
    content = read_json(file) if file.is_file() else {}
    kinds = {kind.__name__: kind for kind in (OpenSoraVideoAutoencoder, PointmapVideoAutoencoder)}
    name = content.get("_class_name", content.get("model_type"))
    kind = kinds.get(str(name), OpenSoraVideoAutoencoder)
    config = {}
    if name in kinds:
        check_numbers(file, content)
        config = content
    elif name not in (None, "VideoAutoencoderPipeline"):
        raise CheckpointError(f"{file} describes a {name!s:.60}; Open-Sora's VideoAutoencoderPipeline was expected.")
    model = build_on_meta(kind, file, config, "video autoencoder")
    constants = {"shift": _column(SHIFT), "scale": _column(SCALE)} if model.config.z_dim == len(SHIFT) else {}
    assign(model, files, torch.device(device), dtype, optional=constants)
    if not bool((model.get_buffer("scale") > 0).all()):
        raise CheckpointError(f"{path}: scale of the latents is not positive.")
    return model.requires_grad_(False).eval()


def _column(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values).view(1, -1, 1, 1, 1)
