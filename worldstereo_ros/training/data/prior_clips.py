"""Clips of procedural worlds with their geometric priors and the matching around them, for the point-map refiner.

Of three clips, one has the prior of the method map, with all its faults: tracks, joint solve, spread anchors. That is
what the refiner gets in use, but the solve takes most of the time; the others have simulated priors
(`prior_simulation`). A clip is made once and read many times.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from worldstereo_ros.depth.estimators import DepthEstimator
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.models.depth_network import DepthNetwork
from worldstereo_ros.models.pointmaps.sweep import sweep
from worldstereo_ros.models.pointmaps.types import PointmapPrior
from worldstereo_ros.pipelines.pointmaps.dense_depth import network_clip, work_size
from worldstereo_ros.pipelines.pointmaps.estimate import Window, prior_of_window
from worldstereo_ros.scenes import add_moving_objects, clearance, make_path, make_scene, pack, render_batch, seed_of
from worldstereo_ros.scenes.raytracing.primitives import Random
from worldstereo_ros.training.data.array_files import ArrayFields
from worldstereo_ros.training.data.moving_walks import FRAME_S, MAX_MOVERS, MIN_CLEARANCE_M, PATH_KINDS, MovingClips
from worldstereo_ros.training.data.prior_simulation import simulate_prior
from worldstereo_ros.utils.errors import InputError

FRAMES = 17  # as in use
KINDS = {"room": 0.35, "corridor": 0.15, "warehouse": 0.25, "lot": 0.25}
# Twice the size that networks work at, so that tracks have pixels to find.
SIZES = ((192, 256),) * 5 + ((160, 288),) * 2 + ((128, 384),)
FOV_DEG = (50.0, 92.0)
STEP_M, TURN_RAD = (0.04, 0.14), (0.03, 0.13)  # range of the longest step between frames
SOFT_SHADOW_PROB = 0.4
SOLVED_EVERY = 3
MIN_HIT_SHARE = 0.05


@dataclass(frozen=True)
class PriorClip(ArrayFields):
    """One clip of F frames, as arrays that are small enough to keep hundreds.

    Attributes:
        image: (F, 3, h, w) uint8.
        depth: (F, h, w) float16 true metres, 0 = no surface.
        moving: (F, h, w) bool.
        intrinsics: (4,) float32.
        log_depth, log_sigma, anchor_residual, anchor_weight: (F, h, w) float16 of the prior.
        poses: (F, 4, 4) float32 of the prior.
        matching: (F, SWEEP_CHANNELS, h / 2, w / 2) float16, see `sweep`.
    """

    image: np.ndarray
    depth: np.ndarray
    moving: np.ndarray
    intrinsics: np.ndarray
    log_depth: np.ndarray
    log_sigma: np.ndarray
    anchor_residual: np.ndarray
    anchor_weight: np.ndarray
    poses: np.ndarray
    matching: np.ndarray

    @property
    def usable(self) -> bool:
        """Whether it shows enough surfaces, and all numbers are finite."""
        finite = all(
            np.isfinite(getattr(self, f.name)).all() for f in fields(self) if f.name not in ("image", "moving")
        )
        return finite and float((self.depth > 0).mean()) >= MIN_HIT_SHARE

    def prior(self) -> PointmapPrior:
        """The prior, (1, F, ...)."""
        maps = (self.log_depth, self.log_sigma, self.poses, self.anchor_residual, self.anchor_weight)
        return PointmapPrior(*(torch.from_numpy(each.astype(np.float32))[None] for each in maps))


def world_clips(
    split: str, index: int, network: DepthNetwork, estimator: DepthEstimator, *, solved_every: int = SOLVED_EVERY,
    sizes: Sequence[tuple[int, int]] = SIZES, frames: int = FRAMES,
) -> Iterator[PriorClip]:  # fmt: skip
    """Clips of world `index` of a split: one of a handheld camera and one on the ground, where there is room.

    Args:
        split: training or validation.
        index: number of the world; all else follows from it.
        network: the depth network, of simulated priors.
        estimator: the same, of solved ones.
        solved_every: of so many clips one has the prior of the method map; 1 = all.
        sizes: (height, width) of rendered images; the clips are about half as large.
        frames: of a clip.
    """
    random, numbers = Random(9_173 * index + 31), np.random.default_rng((index, len(split)))
    cumulative = np.cumsum(list(KINDS.values()))
    kind = list(KINDS)[min(int(np.searchsorted(cumulative, random.uniform(0, 1))), len(KINDS) - 1)]
    height, width = random.choice(list(sizes))
    camera = Camera.from_fov(width, height, math.radians(random.uniform(*FOV_DEG)))
    scene = make_scene(kind, seed_of(split, index))
    for count in range(int(random.uniform(0, MAX_MOVERS + 0.99)), 0, -1):
        try:
            scene = add_moving_objects(scene, count)
            break
        except InputError:  # no room for so many
            continue
    packed = pack([scene], device="cpu", light="soft" if random.chance(SOFT_SHADOW_PROB) else "plain")
    ids = [mover.instance for mover in scene.moving_objects]
    for number, path in enumerate(PATH_KINDS):
        step, turn = random.uniform(*STEP_M), random.uniform(*TURN_RAD)
        times = random.uniform(0, 20) + FRAME_S * np.arange(frames)
        try:
            poses = make_path(scene, path, frames, seed=index, step=step, turn=turn)
        except ValueError:  # no free path
            continue
        if ids and clearance(scene, poses[:, :3, 3], times).min() < MIN_CLEARANCE_M:
            continue
        rendered = render_batch(packed, camera, poses[None], times=times[None], supersample=1)
        images = camera_look(rendered.image[0].numpy(), numbers)
        truth = MovingClips(*_truth(images, rendered.depth[0].numpy(), np.isin(rendered.instance[0].numpy(), ids),
                                    invert_pose(poses[0]) @ poses, camera))  # fmt: skip
        if (2 * index + number) % solved_every == 0:
            clip, intrinsics, prior = prior_of_window(Window(images, camera), estimator)
        else:
            clip, intrinsics = truth.images * 2 - 1, truth.intrinsics
            prior = simulate_prior(truth, clip, network, numbers).prior
        made = _pack_clip(clip, intrinsics, prior, truth)
        if made.usable:
            yield made


def _truth(
    images: np.ndarray, depth: np.ndarray, moving: np.ndarray, poses: np.ndarray, camera: Camera
) -> tuple[torch.Tensor, ...]:
    """The fields of `MovingClips` at the size that networks work at."""
    rows, columns = work_size(*images.shape[1:3])
    clip, intrinsics = network_clip(images, camera, rows, columns)

    def nearest(array: np.ndarray) -> torch.Tensor:
        small = [cv2.resize(one, (columns, rows), interpolation=cv2.INTER_NEAREST_EXACT) for one in array]
        return torch.from_numpy(np.stack(small))[None]

    return (
        (clip + 1) / 2, nearest(depth.astype(np.float32)), nearest(moving.astype(np.uint8)) > 0,
        torch.from_numpy(poses.astype(np.float32))[None], intrinsics,
    )  # fmt: skip


def _pack_clip(clip: torch.Tensor, intrinsics: torch.Tensor, prior: PointmapPrior, truth: MovingClips) -> PriorClip:
    matching = sweep(clip, prior.log_depth, prior.poses, intrinsics)

    def half(tensor: torch.Tensor) -> np.ndarray:
        return tensor[0].numpy().astype(np.float16)

    return PriorClip(
        ((clip[0] + 1) * 127.5).round().clamp(0, 255).byte().numpy(), half(truth.depth), truth.moving[0].numpy(),
        intrinsics[0].numpy(), half(prior.log_depth), half(prior.log_sigma), half(prior.anchor_residual),
        half(prior.anchor_weight), prior.poses[0].numpy(), half(matching),
    )  # fmt: skip


def camera_look(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Images (F, H, W, 3) uint8 of a clip as some camera takes them: hue, gamma, exposure that drifts, blur, noise."""
    x = images.astype(np.float32) / 255
    if random.random() < 0.5:
        angle = random.normal(0, 0.25) if random.random() < 0.7 else random.uniform(-np.pi, np.pi)
        mix = Rotation.from_rotvec(np.ones(3) / math.sqrt(3) * angle).as_matrix()
        if random.random() < 0.12:
            mix = np.full((3, 3), 1 / 3)
        x = np.clip(x @ mix.T.astype(np.float32), 0, 1)
    gains = np.exp(random.normal(0, 0.2) + random.normal(0, 0.06, 3))
    x = x ** np.float32(np.exp(random.normal(0, 0.25))) * gains.astype(np.float32)
    if random.random() < 0.5:
        drift = np.exp(np.cumsum(random.normal(0, 0.02, len(x))))
        x = x * drift[:, None, None, None].astype(np.float32)
    if random.random() < 0.3:
        sigma = random.uniform(0.5, 1.1)
        x = np.stack([cv2.GaussianBlur(one, (0, 0), sigma) for one in x])
    if random.random() < 0.6:
        x = x + random.normal(0, random.uniform(0.003, 0.03), x.shape).astype(np.float32)
    return (np.clip(x, 0, 1) * 255).round().astype(np.uint8)
