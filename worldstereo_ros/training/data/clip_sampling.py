"""What memory would say about a clip: clouds as bad as real ones, rendered; references that overlap; cameras.

Everything goes through the functions that the pipeline itself uses: `pipelines/conditioning.py`, and the
`GeometricPipeline` that paints from memory what the model is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional

from worldstereo_ros.geometry.cameras import Camera, unproject
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.view_overlap import retrieval_scores
from worldstereo_ros.geometry.views import View
from worldstereo_ros.models.worldstereo.camera_embedding import normalise_cameras, plucker_embedding, pose_vectors
from worldstereo_ros.pipelines.base import Conditioning
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.pipelines.geometric.plane_extrapolation import estimate_layout, render_layout
from worldstereo_ros.pipelines.worldstereo.conditioning import fit_renders, published_matrix
from worldstereo_ros.rendering.splatting import render
from worldstereo_ros.training.data.dataset import WorldDataset, augment_colours
from worldstereo_ros.training.data.world_files import FINE, FINE_EVERY, RenderedWorld

FAULTLESS = 0.3  # share of the clips whose sensors do not err
BLEEDING, FLOATERS = 0.5, 0.1  # shares of the views whose depth bleeds over edges, or is blurred into thin air
LEAST_OVERLAP, MOST_OVERLAP = 0.3, 0.9  # of a reference with its target
# Share of the batches whose references are the views that the cloud is made of, as in use before anything is imagined.
REMEMBERED = 0.65
RETURNS = 0.6  # share of the other references that look from where the keyframe does, as on a path that comes back
IMAGINED = 0.4  # share of these that are as blurred as imagined views are
FIRST = 0.6  # how often a single reference stands beside the first view, as the seed mostly does
JUMP = 0.3  # share of the clips whose seed was taken somewhere else than at the start of the path
OTHER_VIEWS = (0.35, 0.2, 0.15, 0.15, 0.15)  # how likely the cloud has so many views beside the seed: 0, 1, ...


@dataclass
class ClipBatch:
    """b clips of F keyframes, float32 on the training's device; pictures in [-1, 1].

    Attributes:
        images: (b, 3, F, H, W), what the model should paint; the first is the seed.
        renders: (b, 3, F, H, W), the path as memory paints it, without holes; the first is the seed.
        layouts: (b, 3, F, H, W), the same with large flat surfaces gone on with, see `pipelines/layout.py`.
        plane_channels: (b, 4, F, H / 8, W / 8), what is said of these; 0 in the first.
        holes: (b, 1, F, H, W), 1 where nothing was rendered.
        plucker: (b, 6, F, H, W).
        poses: (b, F, 7).
        references: (b, 3, R, H, W), R may be 0.
        reference_index: (R,).
        reference_poses: (b, R, 7).
    """

    images: torch.Tensor
    renders: torch.Tensor
    layouts: torch.Tensor
    plane_channels: torch.Tensor
    holes: torch.Tensor
    plucker: torch.Tensor
    poses: torch.Tensor
    references: torch.Tensor
    reference_index: torch.Tensor
    reference_poses: torch.Tensor


def draw_clips(
    dataset: WorldDataset,
    count: int,
    frames: int,
    random: np.random.Generator,
    device: torch.device,
    *,
    renders: bool = True,
    references: int = 0,
    clean: bool = False,
) -> ClipBatch:
    """Clips of one size.

    Args:
        dataset: the worlds.
        count: clips.
        frames: keyframes of each, the seed's among them.
        random: draws.
        device: where the tensors go.
        renders: False leaves out clouds and cameras, which the backbone alone does not see.
        references: how many, for every clip.
        clean: no sensor noise and no degraded depth: for validation.
    """
    keyframes = np.sort(random.choice(np.arange(1, frames), size=min(references, frames - 1), replace=False))
    if len(keyframes) == 1 and random.random() < FIRST:
        keyframes[0] = 1
    remembered = random.random() < REMEMBERED
    clips = [
        _draw_clip(
            world, frames, random, device, renders=renders, keyframes=keyframes, remembered=remembered, clean=clean
        )
        for world in dataset.of_one_size(count, random)
    ]
    pictures, guides, layouts, marks, holes, rays, poses, looks, look_poses = (
        torch.stack(column).to(device) for column in zip(*clips, strict=True)
    )
    beside = torch.from_numpy(keyframes - 1).to(device)
    return ClipBatch(pictures, guides, layouts, marks, holes, rays, poses, looks, beside, look_poses)


def _draw_clip(
    world: RenderedWorld,
    frames: int,
    random: np.random.Generator,
    device: torch.device,
    *,
    renders: bool,
    keyframes: np.ndarray,
    remembered: bool,
    clean: bool,
) -> tuple[torch.Tensor, ...]:
    if not clean:
        world = world.mirrored() if random.random() < 0.5 else world
        clean = random.random() < FAULTLESS
    path = _path(world, frames, random)
    camera, poses = world.camera, world.pose.double().numpy()
    shown = [_unit(world.image[path])]
    holes = torch.zeros(frames, *world.image.shape[-2:])
    sources = _sources(world, path, random, least=len(keyframes) if remembered else 1)
    if renders:
        views = [_remembered(world, view, random, clean, first=view == path[0]) for view in sources]
        painted, guessed, marks, holes[1:] = _painted(views, camera, poses[path[1:]], device)
        shown += [painted, guessed]
    if remembered:
        chosen = _assigned(world, path[keyframes], sources)
    else:
        chosen = [_reference(world, int(path[k]), random) for k in keyframes]
    if chosen:
        shown.append(_unit(world.image[chosen]))
    together = torch.cat(shown)[None]
    together = (together * 2 - 1 if clean else augment_colours(together, random))[0]
    pictures = together[:frames]
    targets, others = normalise_cameras(invert_pose(poses[path]), invert_pose(poses[chosen]) if chosen else None)
    pose = torch.from_numpy(pose_vectors(targets))
    if not renders:
        nothing = torch.zeros(0)
        return (*_first((pictures,)), *(nothing,) * 5, pose, torch.zeros(3, 0, *pictures.shape[-2:]), nothing)
    guide, layout = (torch.cat((pictures[:1], part)) for part in together[frames : 3 * frames - 2].split(frames - 1))
    marks = torch.cat((torch.zeros_like(marks[:1]), marks))
    rays = plucker_embedding(targets, published_matrix(camera), camera.height, camera.width)
    looks = together[3 * frames - 2 :]
    if chosen and not clean:
        looks = torch.stack([_worn(look, random, imagined=not remembered) for look in looks])
    reference_poses = pose_vectors(others) if others is not None else np.zeros((0, 7), np.float32)
    return (
        *_first((pictures, guide, layout, marks)),
        holes[None],
        torch.from_numpy(rays),
        pose,
        *_first((looks,)),
        torch.from_numpy(reference_poses),
    )


def _first(stacks: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """(F, 3, H, W) to (3, F, H, W)."""
    return tuple(stack.transpose(0, 1).contiguous() for stack in stacks)


def _unit(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 255


def _path(world: RenderedWorld, frames: int, random: np.random.Generator) -> np.ndarray:
    """Views of a clip: the seed, then part of a walk, forwards or backwards, at one of several paces."""
    walks = world.walk.numpy()
    views = np.flatnonzero(walks == random.choice(np.unique(walks)))
    if random.random() < 0.5:
        views = views[::-1]
    most = max(1, (len(views) - 1) // (frames - 1))
    pace = int(random.integers(1, most + 1))
    # Only views that are there at twice the size can be seeds.
    fine = np.isin(views, world.fine.numpy())
    starts = np.flatnonzero(fine[: len(views) - pace * (frames - 1)])
    start = int(random.choice(starts)) if len(starts) else 0
    path = views[start : start + pace * (frames - 1) + 1 : pace].copy()
    if not len(starts) or random.random() < JUMP:
        path[0] = random.choice(world.fine.numpy())
    return path


def _sources(world: RenderedWorld, path: np.ndarray, random: np.random.Generator, least: int) -> list[int]:
    """The seed and the views that the cloud is made of beside it, most of them near the path; `least` in all."""
    fine = world.fine.numpy()
    low, high = path[1:].min() - 3 * FINE_EVERY, path[1:].max() + 3 * FINE_EVERY
    near = fine[(fine >= low) & (fine <= high) & (fine != path[0])]
    others = max(int(random.choice(len(OTHER_VIEWS), p=OTHER_VIEWS)), least - 1)
    chosen = [int(random.choice(near if len(near) and random.random() < 0.75 else fine)) for _ in range(others)]
    return list(dict.fromkeys([int(path[0]), *chosen]))


def _remembered(world: RenderedWorld, view: int, random: np.random.Generator, clean: bool, *, first: bool) -> View:
    """One view at `FINE` size with the faults of real depth, 0 where the sensor is blind."""
    at = int(np.flatnonzero(world.fine.numpy() == view)[0])
    depth = world.fine_depth[at].float().numpy()
    image = world.fine_image[at].permute(1, 2, 0).numpy()
    camera = world.camera.resized(depth.shape[1], depth.shape[0])
    keep = depth > 0
    if not clean:
        kind = random.random()
        if kind < BLEEDING:
            factor = int(random.integers(2, 5))
            small = cv2.resize(depth, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_LINEAR)
            depth = cv2.resize(small, depth.shape[::-1], interpolation=cv2.INTER_LINEAR)
        elif kind < BLEEDING + FLOATERS:
            depth = cv2.GaussianBlur(depth, (0, 0), float(random.uniform(0.8, 2.5)))
        if random.random() < 0.3:
            depth = depth * np.float32(np.exp(random.normal(0, 0.03)))
        keep &= random.random(depth.shape) > random.uniform(0, 0.3)
        if random.random() < 0.3:  # a sensor is blind somewhere
            hole = random.random((4, 6)).astype(np.float32)
            keep &= cv2.resize(hole, depth.shape[::-1], interpolation=cv2.INTER_CUBIC) > random.uniform(0, 0.35)
        keep &= depth < random.uniform(6, 40)
        if not first:
            gain = np.exp(random.normal(0, 0.08) + random.normal(0, 0.02, size=3))
            image = np.clip(image * gain, 0, 255).astype(np.uint8)
    keep &= depth > 0
    pose = world.pose[view].double().numpy()
    return View(np.ascontiguousarray(image), camera, pose, np.where(keep, depth, np.float32(0)))


def _painted(views: list[View], camera: Camera, poses: np.ndarray, device: torch.device) -> tuple[torch.Tensor, ...]:
    """What memory paints of (F, 4, 4) poses, what the layout adds to it, and where the cloud has holes.

    Returns:
        (pictures (F, 3, H, W) in [0, 1], pictures and marks of the layout, holes (F, H, W)), at the camera's size, on
        the CPU.
    """
    fine = camera.resized(camera.width * FINE, camera.height * FINE)
    known = [view.depth > 0 for view in views if view.depth is not None]
    depths = [view.depth for view in views if view.depth is not None]
    points = [
        unproject(depth, view.camera, view.world_from_camera)[keep].astype(np.float32)
        for view, depth, keep in zip(views, depths, known, strict=True)
    ]
    colours = [view.image[keep] for view, keep in zip(views, known, strict=True)]
    spacing = [
        (depth[keep] / np.float32(fine.fx)).astype(np.float32) for depth, keep in zip(depths, known, strict=True)
    ]
    cloud = np.concatenate(points)
    rendering = render(
        cloud, np.concatenate(colours), np.ones(len(cloud), bool), np.concatenate(spacing), fine, poses,
        device=device, near=0.03,
    )  # fmt: skip
    _, missing = fit_renders(rendering.colour, rendering.covered, (camera.height, camera.width))
    memory = Conditioning(views[0], rendering, fine, poses, views, np.full(len(poses), -1))
    paintings = GeometricPipeline().warp_all(memory, lambda *_: None)
    images = torch.from_numpy(np.stack([painting.image for painting in paintings]))
    pictures = functional.avg_pool2d(images.permute(0, 3, 1, 2).float() / 255, FINE)
    guess = render_layout(estimate_layout(views), paintings, camera, poses)
    return pictures, torch.from_numpy(guess.images), torch.from_numpy(guess.plane_channels), missing.cpu()


def overlap(world: RenderedWorld, target: int, step: int = 8) -> np.ndarray:
    """(N,) share of what view `target` shows that each view of the world shows too."""
    depth = world.depth[target].float().numpy()
    camera = world.camera
    rows, columns = np.mgrid[step // 2 : camera.height : step, step // 2 : camera.width : step]
    z = depth[rows, columns].ravel()
    rays = np.stack([(columns.ravel() - camera.cx) / camera.fx, (rows.ravel() - camera.cy) / camera.fy], axis=1)
    known = z > 0
    if not known.any():
        return np.zeros(len(world.image))
    local = np.concatenate([rays[known] * z[known, None], z[known, None]], axis=1)
    poses = world.pose.double().numpy()
    points = local @ poses[target, :3, :3].T + poses[target, :3, 3]
    seen = invert_pose(poses)
    there = np.einsum("nij,pj->npi", seen[:, :3, :3], points) + seen[:, None, :3, 3]
    far = np.maximum(there[..., 2], 1e-6)
    u = np.rint(there[..., 0] / far * camera.fx + camera.cx).astype(int)
    v = np.rint(there[..., 1] / far * camera.fy + camera.cy).astype(int)
    inside = (there[..., 2] > 0.05) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    u, v = u.clip(0, camera.width - 1), v.clip(0, camera.height - 1)
    there_depth = world.depth.float().numpy()[np.arange(len(poses))[:, None], v, u]
    return (inside & (np.abs(there_depth - far) < 0.05 * far + 0.05)).mean(axis=1)


def _assigned(world: RenderedWorld, targets: np.ndarray, sources: list[int]) -> list[int]:
    """For every target one of the sources, by the scores that memory retrieves by; another for each while they last."""
    if not len(targets):
        return []
    seen, camera = invert_pose(world.pose.double().numpy()), world.camera
    scores, _ = retrieval_scores(
        seen[targets], seen[sources], camera.matrix, camera.matrix, camera.width, camera.height
    )
    best = scores.argmax(axis=1)
    rows, columns = linear_sum_assignment(scores, maximize=True)
    best[rows] = columns
    return [sources[int(column)] for column in best]


def _reference(world: RenderedWorld, target: int, random: np.random.Generator) -> int:
    """A view of memory for a keyframe: nearly the same, or one that overlaps it well and is another picture."""
    walk = world.walk.numpy()
    if random.random() < RETURNS:
        near = np.arange(max(0, target - 2), min(len(walk), target + 3))
        return int(random.choice(near[walk[near] == walk[target]]))
    shares = overlap(world, target)
    shares[np.abs(np.arange(len(shares)) - target) < 2] = -1
    good = np.flatnonzero((shares >= LEAST_OVERLAP) & (shares <= MOST_OVERLAP))
    if random.random() < 0.1:  # memory does not always have something that fits
        return int(random.integers(len(shares)))
    return int(random.choice(good)) if len(good) else int(shares.argmax())


def _worn(look: torch.Tensor, random: np.random.Generator, *, imagined: bool) -> torch.Tensor:
    """A reference (3, H, W) of another exposure, sometimes taken in motion, or blurred as if it had been imagined."""
    gain = torch.from_numpy(np.exp(random.normal(0, 0.07, size=(3, 1, 1)))).float()
    look = ((look * 0.5 + 0.5) * gain).clamp(0, 1) * 2 - 1
    if imagined and random.random() < IMAGINED:
        sigma = float(random.uniform(0.8, 4.0))
        blurred = cv2.GaussianBlur(look.permute(1, 2, 0).numpy(), (0, 0), sigma)
        return torch.from_numpy(blurred).permute(2, 0, 1)
    if random.random() < 0.25:
        length = int(random.integers(2, 6))
        kernel = np.zeros((length, length), np.float32)
        (kernel[length // 2, :] if random.random() < 0.7 else kernel[:, length // 2])[:] = 1 / length
        picture = cv2.filter2D(look.permute(1, 2, 0).numpy(), -1, kernel, borderType=cv2.BORDER_REFLECT)
        look = torch.from_numpy(picture).permute(2, 0, 1)
    return look
