"""Condition latents of checkpoints that were trained with a video of the seed and then nothing (`full_vae`).

Wan's image-to-video models are told their first frame by the latent of a video that begins with it and is mid-grey
from then on. That video is encoded by the video autoencoder with its temporal layers, not keyframe by keyframe, so
that the latents after the first still hold a trace of it. `first_frame_only` has no such trace and needs none of this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from worldstereo_ros.models.checkpoints.weights import CheckpointError, named, read_json, tensors_of

if TYPE_CHECKING:
    from worldstereo_ros.models.checkpoints.hub import Checkpoint


class VideoCondition:
    """Encodes a picture followed by mid-grey as a video."""

    def __init__(self, autoencoder: Any) -> None:
        """Takes diffusers' `AutoencoderKLWan`, of which the encoder alone is kept."""
        autoencoder.decoder = None
        self._autoencoder = autoencoder

    @torch.no_grad()
    def __call__(self, picture: torch.Tensor, count: int) -> torch.Tensor:
        """(3, H, W) in [-1, 1] to the normalised latents (1, 16, count, H/8, W/8), float32."""
        config = self._autoencoder.config
        frames = config.scale_factor_temporal * (count - 1) + 1
        video = torch.zeros(1, *picture.shape[:1], frames, *picture.shape[1:], device=picture.device)
        video[:, :, 0] = picture
        latents = self._autoencoder.encode(video.to(self._autoencoder.dtype)).latent_dist.mode().float()
        mean, std = (
            torch.tensor(numbers, device=latents.device).view(1, -1, 1, 1, 1)
            for numbers in (config.latents_mean, config.latents_std)
        )
        return (latents - mean) / std


def load_video_condition(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> VideoCondition | None:
    """What `latent_cond_mode` needs; None where keyframes are encoded alone.

    That is so in `first_frame_only`, and where the base has an autoencoder for keyframes only.

    Raises:
        CheckpointError: the base's autoencoder cannot be loaded.
    """
    folder = checkpoint.base("vae") / "vae"
    if checkpoint.settings.latent_cond_mode != "full_vae":
        return None
    if read_json(folder / "config.json").get("_class_name") != "AutoencoderKLWan":
        return None
    from diffusers import AutoencoderKLWan

    try:
        model, said = AutoencoderKLWan.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, torch_dtype=dtype, output_loading_info=True
        )
    except Exception as error:  # the library raises many types for what is wrong with a file
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"The video autoencoder in {folder} cannot be loaded: {first.rstrip('.')}.") from None
    if said["missing_keys"]:
        missing = sorted(said["missing_keys"])
        raise CheckpointError(f"{folder} lacks {tensors_of(missing)}: {named(missing)}.")
    return VideoCondition(model.requires_grad_(False).eval().to(device))
