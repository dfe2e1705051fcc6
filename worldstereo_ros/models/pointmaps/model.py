"""The point-map model: network and autoencoder together, with the sampler, and their files."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from worldstereo_ros.models.autoencoders.image import ImageAutoencoder
from worldstereo_ros.models.checkpoints.bounds import check_latent_statistics, check_numbers
from worldstereo_ros.models.checkpoints.loading import BASE_STEM, build_on_meta
from worldstereo_ros.models.checkpoints.parameters import load_weights
from worldstereo_ros.models.checkpoints.saving import save_weights, write_json
from worldstereo_ros.models.checkpoints.weights import CheckpointError, open_weights, read_json
from worldstereo_ros.models.depth_network import DepthNetwork
from worldstereo_ros.models.pointmaps.autoencoder import PointmapAutoencoder
from worldstereo_ros.models.pointmaps.correlation import frame_motion
from worldstereo_ros.models.pointmaps.geometry import (
    mean_distance,
    pixel_rays,
    relative_poses,
    world_points,
)
from worldstereo_ros.models.pointmaps.network import PATCH_PX, NetworkInputs, PointmapNetwork
from worldstereo_ros.models.pointmaps.prior import no_prior
from worldstereo_ros.models.pointmaps.sweep import SCALE, SWEEP_CHANNELS, sweep
from worldstereo_ros.models.pointmaps.types import (
    PointmapPrediction,
    PointmapPrior,
    WorldPointmaps,
    check_clip,
)
from worldstereo_ros.utils.errors import InputError

LATENT_PX = 8
DOUBT_GAIN = 2.0  # a prior whose log depth is off by a half is in full doubt
LEVEL_SHIFT = 3.0  # timestep shift of the sampler
NETWORK_FOLDER, AUTOENCODER_FOLDER = "transformer", "vae"
ENCODE_BATCH_SIZE = 128  # frames


@dataclass(frozen=True)
class PointmapModel:
    """Refines priors to point maps, or samples point maps without one.

    Attributes:
        network: predicts velocities and maps.
        autoencoder: of point maps.
        image_autoencoder: of images; it is that of the small model and not part of the files.
        depth_network: whose features the network reads; likewise. None for networks that do not.
    """

    network: PointmapNetwork
    autoencoder: PointmapAutoencoder
    image_autoencoder: ImageAutoencoder
    depth_network: DepthNetwork | None = None

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return self.network.head.weight.device

    @torch.no_grad()
    def prepare(
        self,
        images: torch.Tensor,
        intrinsics: torch.Tensor,
        prior: PointmapPrior | None,
        has_prior: torch.Tensor | None = None,
        image_latents: torch.Tensor | None = None,
    ) -> tuple[NetworkInputs, torch.Tensor]:
        """Makes the inputs of the network.

        Args:
            images: (b, F, 3, H, W) in [-1, 1]; H and W multiples of 16.
            intrinsics: (b, 4).
            prior: of these videos; None = none has one.
            has_prior: (b,) bool, False = the prior of this video is not to be used; None = all are.
            image_latents: (b, z, F, h, w), where they are known from before.

        Returns:
            The inputs, and the scale (b,) that they are divided by: the mean distance of the prior's points.

        Raises:
            InputError: a shape is another.
        """
        check_clip(images, intrinsics, prior)
        b, f, _, height, width = images.shape
        device = images.device
        if image_latents is None:
            frames = images.float().transpose(1, 2)
            image_latents = self.image_autoencoder.encode(frames, ENCODE_BATCH_SIZE).float()
        if prior is None:
            prior, has_prior = no_prior(b, f, height, width, device), torch.zeros(b, dtype=torch.bool, device=device)
        elif has_prior is None:
            has_prior = torch.ones(b, dtype=torch.bool, device=device)
        blank = no_prior(b, f, height, width, device)
        has = has_prior.view(b, 1, 1, 1)
        log_depth = torch.where(has, prior.log_depth, blank.log_depth)
        log_sigma = torch.where(has, prior.log_sigma, blank.log_sigma)
        poses = torch.where(has, relative_poses(prior.poses), blank.poses)
        residual, weight = (torch.where(has, x, 0.0) for x in (prior.anchor_residual, prior.anchor_weight))
        points = world_points(log_depth.exp(), poses, intrinsics)
        scale = mean_distance(points, torch.ones_like(log_depth, dtype=torch.bool))
        scale = torch.where(has_prior, scale, torch.ones_like(scale))
        unit = scale.view(b, 1, 1, 1)
        known = has[:, None].float()
        prior_latents = torch.zeros_like(image_latents)
        matching = torch.zeros(b, f, SWEEP_CHANNELS, height // SCALE, width // SCALE, device=device)
        if bool(has_prior.any()):
            which = has_prior.nonzero()[:, 0]
            everywhere = torch.ones_like(log_depth[which], dtype=torch.bool)
            latents = self.autoencoder.encode_pointmaps(points[which] / unit[which, :, None], everywhere)
            prior_latents[which] = latents.to(prior_latents.dtype)
            matching[which] = sweep(images[which], log_depth[which], poses[which], intrinsics[which])
        log_unit = (log_depth - unit.log()) * known[:, 0]
        pixels = torch.cat(
            (
                images.float(),
                *(x[:, :, None] for x in (log_unit, log_sigma, residual, weight)),
                known.expand(b, f, 1, height, width),
            ),
            dim=2,
        )
        doubt = functional.avg_pool2d((log_sigma.exp() * DOUBT_GAIN).clamp(max=1.0), LATENT_PX)[:, None]
        doubt = torch.where(has[:, None], doubt, torch.ones_like(doubt))
        pooled = functional.avg_pool2d(weight, LATENT_PX)
        mean = functional.avg_pool2d(weight * residual, LATENT_PX) / pooled.clamp_min(1e-6)
        anchors = torch.stack((mean, (pooled * LATENT_PX**2).clamp(max=2.0)), dim=1)
        inputs = NetworkInputs(
            image_latents=image_latents,
            prior_latents=prior_latents,
            doubt=doubt,
            anchors=anchors,
            pixels=pixels,
            matching=matching,
            geometry=_geometry(poses, intrinsics, unit, height, width),
            has_prior=has_prior,
            log_depth=log_depth,
            log_sigma=log_sigma,
            features=None if self.depth_network is None else _depth_features(self.depth_network, images, intrinsics),
            motion=None if self.network.motion is None else frame_motion(images),
        )
        return inputs, scale

    @torch.no_grad()
    def refine(
        self, images: torch.Tensor, intrinsics: torch.Tensor, prior: PointmapPrior | None, *, passes: int = 2
    ) -> PointmapPrediction:
        """Refines a prior, without noise.

        Args:
            images: (b, F, 3, H, W) in [-1, 1]; H and W multiples of 16; trained with 13 frames of about 12 000 pixels.
            intrinsics: (b, 4).
            prior: the prior; None = depth without one, of mean about 1, each frame from the others' images alone.
            passes: how often; later passes match frames around the depth of the one before.

        Returns:
            Depth in the scale of the prior. Its points are at the poses of the prior.

        Raises:
            InputError: a shape is another, or `passes` is below 1.
        """
        if passes < 1:
            raise InputError(f"passes is {passes}; at least 1 was expected.")
        latents = None
        for index in range(passes):
            inputs, _ = self.prepare(images, intrinsics, prior, image_latents=latents)
            latents = inputs.image_latents
            level = torch.ones(len(images), device=images.device)
            _, prediction = self.network(torch.zeros_like(latents), level, inputs)
            if prior is None or index == passes - 1:
                break
            prior = prior.refined(prediction)
        return prediction

    @torch.no_grad()
    def sample(
        self,
        images: torch.Tensor,
        intrinsics: torch.Tensor,
        prior: PointmapPrior | None = None,
        *,
        steps: int = 1,
        generator: torch.Generator | None = None,
    ) -> WorldPointmaps:
        """Samples world point maps by the rectified flow and decodes them: the published form.

        Args:
            images, intrinsics, prior: see `refine`; without a prior points have a mean distance of about 1.
            steps: steps of the sampler; one step is without noise.
            generator: for the noise.

        Raises:
            InputError: a shape is another, or `steps` is below 1.
        """
        inputs, scale = self.prepare(images, intrinsics, prior)
        latents = sample_latents(self.network, inputs, steps, generator)
        points, log_scale, valid = self.autoencoder.decode_pointmaps(latents)
        return WorldPointmaps(points * scale.view(-1, 1, 1, 1, 1), log_scale, valid)

    def save(self, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        """Writes network and autoencoder, each with its `config.json`."""
        for name, part in ((NETWORK_FOLDER, self.network), (AUTOENCODER_FOLDER, self.autoencoder)):
            save_part(folder / name, part, part.state_dict(), dtype)


def sample_latents(
    network: PointmapNetwork, inputs: NetworkInputs, steps: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Samples point-map latents (b, z, F, h, w) with Euler steps; a single step starts from 0 instead of noise.

    Raises:
        InputError: `steps` is below 1.
    """
    if steps < 1:
        raise InputError(f"steps is {steps}; at least 1 was expected.")
    like = inputs.image_latents
    latents = torch.zeros_like(like) if steps == 1 else torch.randn(like.shape, generator=generator, device=like.device)
    even = [1 - index / steps for index in range(steps + 1)]
    levels = [LEVEL_SHIFT * t / (1 + (LEVEL_SHIFT - 1) * t) for t in even]
    for level, end in itertools.pairwise(levels):
        velocity, _ = network(latents, torch.full((len(like),), level, device=like.device), inputs)
        latents = latents + (end - level) * velocity
    return latents


def _geometry(
    poses: torch.Tensor, intrinsics: torch.Tensor, unit: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    """(b, F, GEOMETRY_CHANNELS, H / 4, W / 4): rays in the world and in the camera, and the camera's place."""
    rows, columns = height // PATCH_PX, width // PATCH_PX
    rays = pixel_rays(intrinsics, rows, columns, PATCH_PX)
    b, f = poses.shape[:2]
    world = torch.einsum("bfij,bjhw->bfihw", poses[:, :, :3, :3], functional.normalize(rays, dim=1))
    centre = (poses[:, :, :3, 3] / unit[..., 0])[..., None, None].expand(b, f, 3, rows, columns)
    return torch.cat((world, centre, rays[:, None, :2].expand(b, f, 2, rows, columns)), dim=2)


def _depth_features(network: DepthNetwork, images: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
    """Features (b, F, C, H / 4, W / 4) of a depth network."""
    centres = intrinsics[:, None, 2:].expand(-1, images.shape[1], -1).flatten(0, 1)
    parts = zip(
        images.flatten(0, 1).to(network.dtype).split(ENCODE_BATCH_SIZE), centres.split(ENCODE_BATCH_SIZE), strict=True
    )
    features = torch.cat([network.features(some, centre) for some, centre in parts])
    return features.float().unflatten(0, images.shape[:2])


def save_part(folder: Path, model: Any, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Writes `config.json` and weights of one network.

    Args:
        folder: folder to write to.
        model: the network, for its configuration.
        tensors: its weights, or an average of them.
        dtype: dtype of the written weights.
    """
    content = {k: v for k, v in model.config.items() if not k.startswith("_")}
    save_weights(folder, BASE_STEM, {name: tensor.to(dtype) for name, tensor in tensors.items()})
    write_json(folder / "config.json", {"_class_name": type(model).__name__, **content})


def load_pointmap_model(
    folder: Path,
    image_autoencoder: ImageAutoencoder,
    device: torch.device | str = "cpu",
    depth_network: DepthNetwork | None = None,
) -> PointmapModel:
    """Loads a model of `PointmapModel.save`, in evaluation mode, without gradients, in float32.

    Args:
        folder: folder of the model.
        image_autoencoder: autoencoder of images that it was trained with, on the same device.
        device: device to load it to.
        depth_network: the depth network that it was trained with, on the same device; for networks that read it.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit the configuration.
        InputError: the autoencoder of images has other latents, or the depth network other features.
    """
    parts = {}
    for name, kind in ((NETWORK_FOLDER, PointmapNetwork), (AUTOENCODER_FOLDER, PointmapAutoencoder)):
        file = folder / name / "config.json"
        config = read_json(file)
        if config.get("_class_name") != kind.__name__:
            raise CheckpointError(f"{folder / name} has a {config.get('_class_name')}; a {kind.__name__} was expected.")
        check_numbers(file, config)
        check_latent_statistics(file, config)
        model = build_on_meta(kind, file, config, "point-map model")
        load_weights(model, open_weights(folder / name, BASE_STEM), torch.device(device), torch.float32)
        parts[name] = model.requires_grad_(False).eval()
    network, autoencoder = parts[NETWORK_FOLDER], parts[AUTOENCODER_FOLDER]
    expected, got = network.config.latent_channels, image_autoencoder.latent_channels
    if got != expected or autoencoder.latent_channels != expected:
        raise InputError(
            f"The latents of images have {got} channels and those of point maps {autoencoder.latent_channels}; "
            f"{expected} were expected by the network."
        )
    if not (channels := network.config.depth_channels):
        return PointmapModel(network, autoencoder, image_autoencoder)
    if depth_network is None or depth_network.config.widths[0] != channels:
        has = "none was given" if depth_network is None else f"this one has {depth_network.config.widths[0]}"
        raise InputError(f"The network reads {channels} features of a depth network; {has}.")
    return PointmapModel(network, autoencoder, image_autoencoder, depth_network)
