"""Priors with realistic errors, computed on the training device from clips with the truth.

The prior of a real video is made of tracks: they give poses, and the depth of sparse points (anchors), to which the
depth network's depth is moved. Here the network's depth is the real one; poses and anchors are the truth with the
errors of tracks: those of anchors grow with depth and fall with parallax, some are outliers, those on moving things are
wrong, some clips have none, and scales are arbitrary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from worldstereo_ros.models.depth_network import CANONICAL_FOCAL_PX, SMOOTHING_SIGMA_PX, DepthNetwork
from worldstereo_ros.models.pointmaps.geometry import gaussian_blur
from worldstereo_ros.models.pointmaps.prior import anchor_weight, anchored_prior
from worldstereo_ros.models.pointmaps.types import PointmapPrior
from worldstereo_ros.training.data.moving_walks import MovingClips

MAX_ANCHORS = 128  # of a frame
NO_ANCHORS_PROB = 0.15
MIN_PARALLAX_PX = 2.0
TRACK_FRAMES = 6  # frames before and after, in which a point is tracked
PIXEL_ERROR = (0.3, 1.2)  # of tracks
OUTLIER_PROB, OUTLIER_LOG = 0.06, 0.6
MOVING_KEPT = 0.3  # share of the anchors on moving things that are not found out
ROTATION_DEG = (0.03, 0.5)
DRIFT = (0.005, 0.05)  # of the travelled distance
SCALE_LOG = 0.5  # standard deviation of the scale of a clip
LOOSE_SCALE_LOG = 0.2  # between poses and depth, without anchors
DEPTH_BATCH_SIZE = 256


@dataclass(frozen=True)
class SimulatedPrior:
    """A prior and its scale.

    Attributes:
        prior: the prior.
        scale: (b,) units of the prior's poses per metre.
        depth_log: (b, F, H, W) log depth of the depth network alone, in metres.
    """

    prior: PointmapPrior
    scale: torch.Tensor
    depth_log: torch.Tensor


@torch.no_grad()
def network_depth(
    network: DepthNetwork, images: torch.Tensor, intrinsics: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log depth in metres and log scale (b, F, H, W) of images (b, F, 3, H, W) in [-1, 1], as `DepthNetwork.predict`.

    For images of about the size that the network was trained with; they are not resized.
    """
    b, f = images.shape[:2]
    centre = intrinsics[:, None, 2:].expand(b, f, 2).flatten(0, 1)
    frames = images.flatten(0, 1)
    parts = [
        network(frames[i : i + DEPTH_BATCH_SIZE].to(network.dtype), centre[i : i + DEPTH_BATCH_SIZE])
        for i in range(0, len(frames), DEPTH_BATCH_SIZE)
    ]
    log_depth = torch.cat([p.log_depth for p in parts]).unflatten(0, (b, f)).float()
    log_scale = torch.cat([p.log_scale for p in parts]).unflatten(0, (b, f)).float()
    focal = (intrinsics[:, 0] * intrinsics[:, 1]).sqrt()
    log_depth = gaussian_blur(log_depth, SMOOTHING_SIGMA_PX) + (focal / CANONICAL_FOCAL_PX).log().view(-1, 1, 1, 1)
    return log_depth, log_scale


@torch.no_grad()
def simulate_prior(
    clips: MovingClips, images: torch.Tensor, network: DepthNetwork, random: np.random.Generator
) -> SimulatedPrior:
    """Simulates the prior of clips.

    Args:
        clips: the truth.
        images: (b, F, 3, H, W) in [-1, 1], as the camera would see them.
        network: the depth network, on the same device.
        random: random number generator.
    """
    b, _f, _height, _width = clips.depth.shape
    device = clips.depth.device
    generator = torch.Generator(device).manual_seed(int(random.integers(2**62)))

    def per_clip(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.asarray(values, dtype=np.float32)).to(device).view(b, 1, 1, 1)

    depth_log, depth_scale = network_depth(network, images, clips.intrinsics)
    hit = clips.depth > 0
    truth = clips.depth.clamp_min(1e-2).log()
    # Anchors: corners, random places or both, where the camera moved far enough.
    places = _places(images, hit, random, generator)
    parallax = _parallax(clips)
    pixel_error = per_clip(_log_uniform(random, PIXEL_ERROR, b))
    error = (0.01 + pixel_error / parallax.clamp_min(0.5)).clamp(max=0.6)
    noise = torch.randn(truth.shape, generator=generator, device=device)
    uniform = torch.rand(truth.shape, generator=generator, device=device)
    outlier = uniform < OUTLIER_PROB
    kept = places & hit & (parallax > MIN_PARALLAX_PX)
    kept &= ~clips.moving | (torch.rand(truth.shape, generator=generator, device=device) < MOVING_KEPT)
    wrong = outlier | clips.moving
    without = per_clip(random.random(b) < NO_ANCHORS_PROB) > 0
    kept &= ~without
    weight = kept * anchor_weight(error)
    loose = per_clip(random.normal(0, LOOSE_SCALE_LOG, b)) * without
    scale_log = per_clip(random.normal(0, SCALE_LOG, b) * (random.random(b) < 0.7))
    # Where there are no anchors, tracks were lifted by the network's own depth, and the scale is its own.
    own = _clip_median(depth_log - truth, hit).view(b, 1, 1, 1)
    scale_log = torch.where(without, own + loose, scale_log)
    anchor_log = truth + scale_log + noise * torch.where(wrong, OUTLIER_LOG * torch.ones_like(error), error)
    poses = _noisy_poses(clips.poses, random, scale_log.flatten())
    prior = anchored_prior(depth_log, depth_scale, poses, anchor_log, weight)
    return SimulatedPrior(prior, scale_log.flatten().exp(), depth_log)


def _places(
    images: torch.Tensor, hit: torch.Tensor, random: np.random.Generator, generator: torch.Generator
) -> torch.Tensor:
    """(b, F, H, W) bool, places of tracks: corners in some clips, random ones in others."""
    b, f, _, height, width = images.shape
    grey = images.mean(2)
    dx, dy = torch.zeros_like(grey), torch.zeros_like(grey)
    dx[..., 1:-1] = grey[..., 2:] - grey[..., :-2]
    dy[..., 1:-1, :] = grey[..., 2:, :] - grey[..., :-2, :]
    # The smaller eigenvalue of the structure tensor (Shi and Tomasi 1994).
    xx, yy, xy = (gaussian_blur(x, 1.5) for x in (dx * dx, dy * dy, dx * dy))
    corner = 0.5 * (xx + yy - ((xx - yy).square() + 4 * xy.square()).sqrt())
    gumbel = -torch.log(
        -torch.log(torch.rand(grey.shape, generator=generator, device=grey.device).clamp(1e-6, 1 - 1e-6))
    )
    strength = torch.from_numpy(random.choice([0.0, 0.5, 1.0, 1.5], size=b).astype(np.float32)).to(grey.device)
    score = strength.view(b, 1, 1, 1) * (corner.clamp_min(0) + 1e-5).log() + gumbel
    score = score.masked_fill(~hit, -1e4).flatten(2)
    best = score.topk(MAX_ANCHORS, dim=2).indices
    count = np.exp(random.uniform(math.log(4), math.log(MAX_ANCHORS), size=(b, 1))) * random.uniform(0.5, 1, (b, f))
    number = torch.from_numpy(count.astype(np.float32)).to(grey.device)
    chosen = torch.arange(MAX_ANCHORS, device=grey.device) < number[..., None]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(2, best, chosen).view(b, f, height, width)


def _parallax(clips: MovingClips) -> torch.Tensor:
    """(b, F, H, W) pixels that a point moves by the camera's translation alone, over the frames it is tracked in."""
    f = clips.depth.shape[1]
    centres = clips.poses[:, :, :3, 3]
    apart = (centres[:, :, None] - centres[:, None]).norm(dim=-1)  # (b, F, F)
    frame = torch.arange(f, device=centres.device)
    near = (frame[:, None] - frame).abs() <= TRACK_FRAMES
    baseline = (apart * near).amax(2)
    # Motion along the optical axis gives less; a third is about the mean over the image.
    forward = clips.poses[:, :, :3, 2]
    step = torch.zeros_like(centres)
    step[:, 1:] = centres[:, 1:] - centres[:, :-1]
    step[:, :1] = step[:, 1:2]
    along = (step * forward).sum(-1).abs() / step.norm(dim=-1).clamp_min(1e-6)
    baseline = baseline * (1 - 0.65 * along.clamp(0, 1))
    focal = clips.intrinsics[:, 0].view(-1, 1, 1, 1)
    return focal * baseline[:, :, None, None] / clips.depth.clamp_min(0.05)


def _noisy_poses(poses: torch.Tensor, random: np.random.Generator, scale_log: torch.Tensor) -> torch.Tensor:
    """Poses (b, F, 4, 4) of another scale, with a drift in rotation and translation."""
    b, f = poses.shape[:2]
    device = poses.device

    def walk(size: np.ndarray) -> torch.Tensor:
        steps = random.normal(size=(b, f, 3)) * size[:, None, None] / math.sqrt(f)
        steps[:, 0] = 0
        both = (
            np.cumsum(steps, axis=1)
            + 0.3 * random.normal(size=(b, f, 3)) * size[:, None, None] * (np.arange(f) > 0)[None, :, None]
        )
        return torch.from_numpy(both.astype(np.float32)).to(device)

    angles = walk(np.radians(_log_uniform(random, ROTATION_DEG, b)))
    drift = walk(_log_uniform(random, DRIFT, b))
    centres = poses[:, :, :3, 3]
    travelled = (centres[:, 1:] - centres[:, :-1]).norm(dim=-1).sum(1).view(b, 1, 1)
    x, y, z = angles.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    noisy = poses.clone()
    noisy[:, :, :3, :3] = poses[:, :, :3, :3] @ torch.linalg.matrix_exp(skew)
    noisy[:, :, :3, 3] = (centres + drift * travelled) * scale_log.exp().view(b, 1, 1)
    return noisy


def _clip_median(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Median (b,) of masked values (b, ...); 0 where there is none."""
    masked = torch.where(mask, values, torch.full_like(values, torch.nan))
    return masked.flatten(1)[:, ::7].nanmedian(dim=1).values.nan_to_num(0.0)


def _log_uniform(random: np.random.Generator, bounds: tuple[float, float], count: int) -> np.ndarray:
    return np.exp(random.uniform(math.log(bounds[0]), math.log(bounds[1]), size=count))
