"""Sora3R's method at its published size: point maps from images alone, by Open-Sora's transformer and autoencoder.

The point map's latent is sampled from noise by the rectified flow, beside the clean latent of the images. There are no
published weights of this; `worldstereo train pointmaps --base open-sora:FOLDER` fine-tunes those of Open-Sora 1.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from worldstereo_ros.models.pointmaps.open_sora_autoencoder import (
    OpenSoraVideoAutoencoder,
    PointmapVideoAutoencoder,
    load_open_sora_autoencoder,
)
from worldstereo_ros.models.pointmaps.open_sora_flow import sample_flow, sampling_levels
from worldstereo_ros.models.pointmaps.stdit3 import FPS, WORK_PIXELS, STDiT3, load_stdit3
from worldstereo_ros.models.pointmaps.types import PointmapPrediction, PointmapPrior, WorldPointmaps, check_clip
from worldstereo_ros.utils.errors import InputError

TRANSFORMER_FOLDER, AUTOENCODER_FOLDER, IMAGE_AUTOENCODER_FOLDER = "transformer", "vae", "image_vae"
DEFAULT_PIXELS = 384 * 512


@dataclass(frozen=True)
class PublishedPointmaps:
    """Samples point maps of videos.

    Attributes:
        transformer: gets the noisy latent of the point map, then that of the images.
        autoencoder: of point maps.
        image_autoencoder: of images.
    """

    transformer: STDiT3
    autoencoder: PointmapVideoAutoencoder
    image_autoencoder: OpenSoraVideoAutoencoder

    def __post_init__(self) -> None:
        z_dim = int(self.autoencoder.config.z_dim)
        config = self.transformer.config
        if config.in_channels != 2 * z_dim or config.out_channels != 2 * z_dim:
            raise InputError(
                f"The transformer has {config.in_channels} input and {config.out_channels} output channels; "
                f"{2 * z_dim} each were expected: latents of point maps and of images, and velocity and variance. "
                "Weights that were not fine-tuned for point maps cannot give any; train them first (worldstereo train "
                "pointmaps --base open-sora:FOLDER)."
            )
        if self.image_autoencoder.config.z_dim != z_dim or self.image_autoencoder.config.chunk != self.chunk:
            raise InputError("The autoencoders of images and of point maps have latents of different shapes.")

    @classmethod
    def from_pretrained(
        cls,
        transformer: Path | str,
        vae: Path | str,
        image_vae: Path | str | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> PublishedPointmaps:
        """Loads fine-tuned weights.

        Args:
            transformer: folder or file of the transformer, see `load_stdit3`.
            vae: folder or file of the autoencoder of point maps. One of images (OpenSora-VAE-v1.2) is taken for point
                maps as it is, which loses accuracy.
            image_vae: that of images; None: the folder `image_vae` beside `vae`, or `vae` itself if it is of images.
            device: device of the networks.
            dtype: dtype of the weights.

        Raises:
            CheckpointError: a file is missing or damaged, or a tensor is not accounted for.
            InputError: the transformer was not fine-tuned for point maps, or the parts do not fit each other.
        """
        network = load_stdit3(Path(transformer), device=device, dtype=dtype)
        points = load_open_sora_autoencoder(Path(vae), device=device, dtype=dtype)
        images: OpenSoraVideoAutoencoder | None = None
        if not isinstance(points, PointmapVideoAutoencoder):
            images = points
            points = PointmapVideoAutoencoder.from_video_autoencoder(points).to(dtype).requires_grad_(False).eval()
        if image_vae is not None or images is None:
            beside = Path(vae) if Path(vae).is_dir() else Path(vae).parent
            folder = beside.parent / IMAGE_AUTOENCODER_FOLDER if image_vae is None else Path(image_vae)
            images = load_open_sora_autoencoder(folder, device=device, dtype=dtype)
        if isinstance(images, PointmapVideoAutoencoder):
            raise InputError(f"{image_vae} is an autoencoder of point maps; one of images was expected.")
        return cls(network, points, images)

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return self.transformer.device

    @property
    def work_pixels(self) -> int:
        """Pixels of the images that the transformer was fine-tuned with, 384x512 if it does not say."""
        return int(self.transformer.config.get(WORK_PIXELS, DEFAULT_PIXELS))

    @property
    def chunk(self) -> int:
        """Frames that are encoded together, 17: clips of a multiple of it are what the base was trained with."""
        return int(self.autoencoder.config.chunk)

    @torch.no_grad()
    def sample(
        self,
        images: torch.Tensor,
        intrinsics: torch.Tensor,
        prior: PointmapPrior | None = None,
        *,
        steps: int = 30,
        fps: float = FPS,
        generator: torch.Generator | None = None,
    ) -> WorldPointmaps:
        """Samples world point maps, see `PointmapModel.sample`; poses follow by PnP.

        Args:
            images: (b, F, 3, H, W) in [-1, 1]; H and W multiples of 16.
            intrinsics: (b, 4); not used, as point maps are estimated without.
            prior: None; the published form has none.
            steps: steps of the sampler.
            fps: frames a second of the videos.
            generator: for the noise, on the device of the images.

        Returns:
            Points of a mean distance of about 1.

        Raises:
            InputError: a shape is another, `steps` is below 1, or a prior was given.
        """
        if prior is not None:
            raise InputError("The published form takes no prior; use the small model, or --prior none.")
        check_clip(images, intrinsics, None)
        frames, height, width = images.shape[1], *images.shape[3:]
        condition = self.image_autoencoder.encode(images.transpose(1, 2))
        noise = torch.randn(condition.shape, generator=generator, device=condition.device)
        levels = sampling_levels(steps, height, width, noise.shape[2])
        latents = sample_flow(
            lambda noisy, level: self.transformer.velocity(torch.cat((noisy, condition), dim=1), level, fps),
            noise,
            levels,
        )
        return WorldPointmaps(*self.autoencoder.decode_pointmaps(latents, frames))

    def refine(
        self, images: torch.Tensor, intrinsics: torch.Tensor, prior: PointmapPrior | None, *, passes: int = 1
    ) -> PointmapPrediction:
        """There is nothing to refine in the published form.

        Raises:
            InputError: always.
        """
        raise InputError("The published form refines no prior; use --prior none with these weights.")
