"""Batches for the point-map network: clips from the pool, as cameras see them, with simulated priors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch.nn import functional

from worldstereo_ros.models.depth_network import DepthNetwork
from worldstereo_ros.models.pointmaps.geometry import mean_distance, world_points
from worldstereo_ros.models.pointmaps.model import PointmapModel
from worldstereo_ros.models.pointmaps.network import NetworkInputs
from worldstereo_ros.models.pointmaps.types import PointmapPrior
from worldstereo_ros.training.data.dataset import augment_colours
from worldstereo_ros.training.data.moving_walks import MovingClips, WalkSource
from worldstereo_ros.training.data.prior_simulation import SimulatedPrior, simulate_prior
from worldstereo_ros.training.data.walk_feed import WalkFeed
from worldstereo_ros.training.pointmap_settings import PointmapTraining


def camera_looks(images: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Images (b, F, 3, h, w) in [0, 1] of clips as cameras would take them, in [-1, 1].

    Each clip has its own hue, blur and camera; exposure drifts from frame to frame.
    """
    b, f = images.shape[:2]

    def tensor(values: np.ndarray, *shape: int) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(images.device).view(*shape)

    angles = np.where(random.random(b) < 0.6, random.normal(0, 0.2, b), random.uniform(-np.pi, np.pi, b))
    hue = Rotation.from_rotvec(angles[:, None] * np.ones(3) / math.sqrt(3)).as_matrix()
    grey = (random.random(b) < 0.1)[:, None, None]
    colours = tensor(np.where(grey, np.full((3, 3), 1 / 3), hue), b, 3, 3)
    out = torch.einsum("nij,nfjhw->nfihw", colours, images)
    drift = np.cumsum(random.normal(0, 0.03, (b, f)), axis=1) * (random.random((b, 1)) < 0.5)
    out = out * tensor(np.exp(drift), b, f, 1, 1, 1)
    soft = functional.avg_pool2d(out.flatten(0, 1), 3, 1, 1, count_include_pad=False).view_as(out)
    amount = tensor(random.uniform(0, 1, b) * (random.random(b) < 0.3), b, 1, 1, 1, 1)
    return augment_colours(torch.lerp(out, soft, amount).clamp(0, 1), random)


@dataclass(frozen=True)
class ValidationClips:
    """Clips with their images and priors, the same at each validation."""

    clips: MovingClips
    images: torch.Tensor
    prior: SimulatedPrior


@dataclass(frozen=True)
class Batch:
    """Clips of a step, with what the network gets.

    Attributes:
        clips, images: the truth, and images in [-1, 1].
        simulated: priors of all clips.
        has_prior: (b,) bool; those without come first.
        inputs: of the network.
        unit: (b,) scale that points are divided by.
        scale: (b,) units of the prior per metre; without a prior such that the mean distance is 1.
    """

    clips: MovingClips
    images: torch.Tensor
    simulated: SimulatedPrior
    has_prior: torch.Tensor
    inputs: NetworkInputs
    unit: torch.Tensor
    scale: torch.Tensor

    @property
    def hit(self) -> torch.Tensor:
        """(b, F, H, W) bool, where there is a surface."""
        return self.clips.depth > 0

    def log_depth(self) -> torch.Tensor:
        """(b, F, H, W) true log depth in the scale of the inputs."""
        return self.clips.depth.clamp_min(1e-2).log() + self.scale.log().view(-1, 1, 1, 1)

    def poses(self) -> torch.Tensor:
        """(b, F, 4, 4) true poses, for points that are divided by `unit`."""
        poses = self.clips.poses.clone()
        poses[:, :, :3, 3] *= (self.scale / self.unit).view(-1, 1, 1)
        return poses

    def points(self) -> torch.Tensor:
        """(b, F, 3, H, W) true points divided by `unit`."""
        depth = self.clips.depth * (self.scale / self.unit).view(-1, 1, 1, 1)
        # Without a surface: a direction alone, which `coded` moves far away.
        return world_points(torch.where(self.hit, depth, torch.ones_like(depth)), self.poses(), self.clips.intrinsics)


class ClipFeed(WalkFeed):
    """Gives batches while walks are rendered.

    Args:
        settings: how to train.
        model: makes the inputs.
        depth_network: gives the depth of priors.
        source: renders walks.
    """

    def __init__(
        self, settings: PointmapTraining, model: PointmapModel, depth_network: DepthNetwork, source: WalkSource
    ) -> None:
        super().__init__(settings, source, model.device)
        self.model, self.depth_network = model, depth_network
        self._kept: Batch | None = None
        self._uses = 0

    def render_validation(self, overdue: Callable[[], bool]) -> list[ValidationClips]:
        """Renders validation worlds with two to four moving things, and their priors, until it is too late."""
        found: list[ValidationClips] = []
        random = np.random.default_rng(17)
        for clips in self.render_validation_clips(overdue):
            images = augment_colours(clips.images, random, strength=0.3)
            found.append(ValidationClips(clips, images, simulate_prior(clips, images, self.depth_network, random)))
        return found

    def draw(self) -> Batch:
        """A batch with priors; a share of the clips has none. Some in succession are the same (`reuse`)."""
        if self._kept is None or self._uses >= self.settings.reuse:
            self._kept, self._uses = self._draw(), 0
        self._uses += 1
        return self._kept

    @torch.no_grad()
    def _draw(self) -> Batch:
        clips = self.draw_clips(self.batch)
        images = camera_looks(clips.images, self.random)
        simulated = simulate_prior(clips, images, self.depth_network, self.random)
        b = len(images)
        dropped = min(b - 1, int(self.settings.prior_drop * b + self.random.random()))  # that share in the mean
        has_prior = torch.arange(b, device=self.device) >= dropped
        return self.make_batch(clips, images, simulated, has_prior, simulated.prior, None)

    def make_batch(
        self,
        clips: MovingClips,
        images: torch.Tensor,
        simulated: SimulatedPrior,
        has_prior: torch.Tensor,
        prior: PointmapPrior,
        image_latents: torch.Tensor | None,
    ) -> Batch:
        """A batch with a given prior."""
        inputs, unit = self.model.prepare(images, clips.intrinsics, prior, has_prior, image_latents)
        hit = clips.depth > 0
        true_mean = mean_distance(world_points(clips.depth, clips.poses, clips.intrinsics), hit)
        scale = torch.where(has_prior, simulated.scale, 1 / true_mean)
        return Batch(clips, images, simulated, has_prior, inputs, unit, scale)


def true_points(clips: MovingClips) -> tuple[torch.Tensor, torch.Tensor]:
    """True points (b, F, 3, H, W) over their mean distance, and where there is a surface."""
    hit = clips.depth > 0
    points = world_points(torch.where(hit, clips.depth, torch.ones_like(clips.depth)), clips.poses, clips.intrinsics)
    return points / mean_distance(points, hit).view(-1, 1, 1, 1, 1), hit
