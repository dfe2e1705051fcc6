"""Condition latents of checkpoints with `latent_cond_mode` `full_vae`.

Wan's image-to-video models take their first frame as the latents of a video that starts with it and is mid-grey from
then on. The video autoencoder encodes that video with its temporal layers, not frame by frame, so later latents still
depend on the first frame. With `first_frame_only` they do not, and this module is not used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from worldstereo_ros.models.checkpoints.hub import offline
from worldstereo_ros.models.checkpoints.loading import BASE_STEM
from worldstereo_ros.models.checkpoints.weights import (
    CheckpointError,
    count_tensors,
    format_names,
    open_weights,
    read_json,
)

if TYPE_CHECKING:
    from worldstereo_ros.models.checkpoints.hub import Checkpoint


class VideoCondition:
    """Encodes an image followed by mid-grey frames as a video."""

    def __init__(self, autoencoder: Any) -> None:
        """Keeps the encoder of diffusers' `AutoencoderKLWan` and drops its decoder."""
        autoencoder.decoder = None
        self._autoencoder = autoencoder

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, count: int) -> torch.Tensor:
        """Encodes b images.

        Args:
            images: (b, 3, H, W) in [-1, 1], the first frames.
            count: frames of the latents.

        Returns:
            (b, 16, count, H / 8, W / 8) float32, normalised latents.
        """
        config = self._autoencoder.config
        frames = config.scale_factor_temporal * (count - 1) + 1
        b, channels, *size = images.shape
        video = torch.zeros(b, channels, frames, *size, device=images.device)
        video[:, :, 0] = images
        latents = self._autoencoder.encode(video.to(self._autoencoder.dtype)).latent_dist.mode().float()
        mean, std = (
            torch.tensor(values, device=latents.device).view(1, -1, 1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        return (latents - mean) / std


def load_video_condition(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> VideoCondition | None:
    """Loads the video autoencoder of a checkpoint with `latent_cond_mode` `full_vae`.

    Returns:
        None with `first_frame_only`, or if the base model has an autoencoder for single frames only.

    Raises:
        CheckpointError: the base model's autoencoder cannot be loaded.
    """
    folder = checkpoint.base("vae") / "vae"
    if checkpoint.config.latent_cond_mode != "full_vae":
        return None
    if read_json(folder / "config.json").get("_class_name") != "AutoencoderKLWan":
        return None
    from diffusers import AutoencoderKLWan

    # The sizes in its config.json were checked with the autoencoder of single frames, which is loaded first.
    if removed := open_weights(folder, BASE_STEM).removed:
        raise CheckpointError(
            f"The names of the tensors in {folder} contain {' and '.join(removed)}: they were saved from a wrapped "
            "model. Rename them, and save the file again."
        )
    try:
        with offline():
            model, report = AutoencoderKLWan.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, torch_dtype=dtype, output_loading_info=True
            )
    except Exception as error:  # the library raises many types for what is wrong with a file
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"The video autoencoder in {folder} cannot be loaded: {first.rstrip('.')}.") from None
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise CheckpointError(f"{folder} lacks {count_tensors(missing)}: {format_names(missing)}.")
    return VideoCondition(model.requires_grad_(False).eval().to(device))
