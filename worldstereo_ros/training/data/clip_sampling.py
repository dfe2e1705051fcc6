"""Video clips for training: views along a path, what memory renders there, reference views and cameras.

Clouds get the noise of real depth cameras. Conditioning and rendering are those of inference: the functions of
`pipelines.worldstereo.conditioning`, and the warping of `GeometricPipeline`.
"""

from __future__ import annotations

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
from worldstereo_ros.pipelines.geometric.layout import estimate_layout
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.pipelines.geometric.plane_extrapolation import render_layout
from worldstereo_ros.pipelines.worldstereo.conditioning import fit_renders, published_matrix
from worldstereo_ros.rendering.splatting import Rendering, render
from worldstereo_ros.training.data.dataset import WorldDataset, augment_colours
from worldstereo_ros.training.data.world_files import FINE_SCALE, FINE_STRIDE, RenderedWorld

NOISE_FREE_PROB = 0.3  # probability that a clip has no sensor noise
# Probabilities that the depth of a view is blurred over edges, or over everything, which gives floating points.
EDGE_BLUR_PROB, FLOATING_POINTS_PROB = 0.5, 0.1
# Probability that the references of a batch are the views that the cloud is made of, as at inference before anything
# was imagined.
CLOUD_REFERENCES_PROB = 0.65
REVISIT_PROB = 0.6  # of the other references: taken near the keyframe, as on a way back
BLURRED_PROB = 0.4  # of the other references: blurred like imagined views
MIN_OVERLAP, MAX_OVERLAP = 0.3, 0.9  # of a reference with its keyframe, else
FIRST_KEYFRAME_PROB = 0.6  # probability that a single reference belongs to the first keyframe after the start
JUMP_PROB = 0.3  # probability that the start view is not at the start of the path
CLOUD_VIEWS_PROB = (0.35, 0.2, 0.15, 0.15, 0.15)  # of 0, 1, ... views of the cloud in addition to the start view
NEAR_PLANE_M = 0.03
OVERLAP_STRIDE_PX = 8


@dataclass
class ClipBatch:
    """b clips of F keyframes, float32 on the training device; images in [-1, 1].

    Attributes:
        images: (b, 3, F, H, W), ground truth; the first is the start view.
        renders: (b, 3, F, H, W), views warped from memory with holes inpainted; the first is the start view.
        layouts: (b, 3, F, H, W), the same with planes extrapolated into holes (`geometric.plane_extrapolation`).
        plane_channels: (b, 4, F, H / 8, W / 8), description of the extrapolated planes; 0 in the first frame.
        holes: (b, 1, F, H, W), 1 = not rendered.
        plucker: (b, 6, F, H, W), Plücker embedding of the cameras.
        poses: (b, F, 7), see `pose_vectors`.
        references: (b, 3, R, H, W), reference views; R may be 0.
        reference_index: (R,), the keyframe of each reference, from 0 for the first after the start view.
        reference_poses: (b, R, 7).
        cameras: (b, F, 4, 4) float64, normalised camera_from_world, from which `plucker` and `poses` follow.
        intrinsics: (b, 3, 3) float64, in pixels, principal point as `plucker_embedding` expects it.
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
    cameras: torch.Tensor
    intrinsics: torch.Tensor


def sample_clips(
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
    """Samples clips of one size.

    Args:
        dataset: the worlds.
        count: number of clips.
        frames: keyframes of each, the start view included.
        random: random number generator.
        device: device of the tensors.
        renders: False leaves out renders and cameras, which the backbone does not use.
        references: reference views of every clip.
        clean: no sensor noise and no errors of depth, for validation.
    """
    keyframes = np.sort(random.choice(np.arange(1, frames), size=min(references, frames - 1), replace=False))
    if len(keyframes) == 1 and random.random() < FIRST_KEYFRAME_PROB:
        keyframes[0] = 1
    from_cloud = random.random() < CLOUD_REFERENCES_PROB
    clips = [
        _sample_clip(
            world, frames, random, device, renders=renders, keyframes=keyframes, from_cloud=from_cloud, clean=clean
        )
        for world in dataset.sample_worlds(count, random)
    ]
    columns = {name: torch.stack([clip[name] for clip in clips]).to(device) for name in clips[0]}
    return ClipBatch(**columns, reference_index=torch.from_numpy(keyframes - 1).to(device))


def _sample_clip(
    world: RenderedWorld,
    frames: int,
    random: np.random.Generator,
    device: torch.device,
    *,
    renders: bool,
    keyframes: np.ndarray,
    from_cloud: bool,
    clean: bool,
) -> dict[str, torch.Tensor]:
    """One clip: the fields of `ClipBatch` without the batch dimension and `reference_index`."""
    if not clean:
        world = world.mirrored() if random.random() < 0.5 else world
        clean = random.random() < NOISE_FREE_PROB
    path = sample_path(world, frames, random)
    cloud_views = choose_cloud_views(world, path, random, min_count=len(keyframes) if from_cloud else 1)
    memory = None
    if renders:
        views = [_noisy_view(world, view, random, clean, start=view == path[0]) for view in cloud_views]
        memory = views, _render_points(views, world.camera, world.pose.double().numpy()[path[1:]], device)
    if from_cloud:
        chosen = assign_references(world, path[keyframes], cloud_views)
    else:
        chosen = [choose_reference(world, int(path[k]), random) for k in keyframes]
    return assemble_clip(world, path, memory, chosen, random, clean=clean, imagined_references=not from_cloud)


def assemble_clip(
    world: RenderedWorld,
    path: np.ndarray,
    memory: tuple[list[View], Rendering] | None,
    chosen: list[int],
    random: np.random.Generator,
    *,
    clean: bool,
    imagined_references: bool,
) -> dict[str, torch.Tensor]:
    """The tensors of a clip: the fields of `ClipBatch` without the batch dimension and `reference_index`.

    Args:
        world: the rendered world.
        path: (F,) its views, the start view first.
        memory: the views that memory holds, the start view first, and its cloud rendered by the fine camera from all
            views but the start view; None leaves out renders, cameras and references.
        chosen: views of the world that are the references.
        random: random number generator.
        clean: no noise.
        imagined_references: whether some references are blurred, as imagined views are.
    """
    camera, poses, frames = world.camera, world.pose.double().numpy(), len(path)
    parts = [_as_float(world.image[path])]
    holes = torch.zeros(frames, *world.image.shape[-2:])
    if memory is not None:
        warped, layouts, plane_channels, holes[1:] = _warp_memory(*memory, camera, poses[path[1:]])
        parts += [warped, layouts]
    if chosen:
        parts.append(_as_float(world.image[chosen]))
    # All images of a clip come from one camera and get the same augmentation.
    images = torch.cat(parts)[None]
    images = (images * 2 - 1 if clean else augment_colours(images, random))[0]
    truth = images[:frames]
    targets, others = normalise_cameras(invert_pose(poses[path]), invert_pose(poses[chosen]) if chosen else None)
    matrix = published_matrix(camera)
    empty = torch.zeros(0)
    clip = {
        "images": _channels_first(truth),
        "poses": torch.from_numpy(pose_vectors(targets)),
        "cameras": torch.from_numpy(targets),
        "intrinsics": torch.from_numpy(np.asarray(matrix, np.float64)),
    }
    if memory is None:
        unused = ("renders", "layouts", "plane_channels", "holes", "plucker", "reference_poses")
        return clip | dict.fromkeys(unused, empty) | {"references": torch.zeros(3, 0, *truth.shape[-2:])}
    warped, layouts = (torch.cat((truth[:1], part)) for part in images[frames : 3 * frames - 2].split(frames - 1))
    references = images[3 * frames - 2 :]
    if chosen and not clean:
        references = torch.stack([augment_reference(view, random, imagined=imagined_references) for view in references])
    reference_poses = pose_vectors(others) if others is not None else np.zeros((0, 7), np.float32)
    return clip | {
        "renders": _channels_first(warped),
        "layouts": _channels_first(layouts),
        "plane_channels": _channels_first(torch.cat((torch.zeros_like(plane_channels[:1]), plane_channels))),
        "holes": holes[None],
        "plucker": torch.from_numpy(plucker_embedding(targets, matrix, camera.height, camera.width)),
        "references": _channels_first(references),
        "reference_poses": torch.from_numpy(reference_poses),
    }


def _channels_first(frames: torch.Tensor) -> torch.Tensor:
    """(F, C, H, W) to (C, F, H, W)."""
    return frames.transpose(0, 1).contiguous()


def _as_float(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 255


def sample_path(world: RenderedWorld, frames: int, random: np.random.Generator) -> np.ndarray:
    """Views of a clip: the start view, then a part of a walk, forwards or backwards, at a random stride."""
    walks = world.walk.numpy()
    views = np.flatnonzero(walks == random.choice(np.unique(walks)))
    if random.random() < 0.5:
        views = views[::-1]
    max_stride = max(1, (len(views) - 1) // (frames - 1))
    stride = int(random.integers(1, max_stride + 1))
    # The start view needs a fine view, of which the cloud is made.
    has_fine = np.isin(views, world.fine.numpy())
    starts = np.flatnonzero(has_fine[: len(views) - stride * (frames - 1)])
    start = int(random.choice(starts)) if len(starts) else 0
    path = views[start : start + stride * (frames - 1) + 1 : stride].copy()
    if not len(starts) or random.random() < JUMP_PROB:
        path[0] = random.choice(world.fine.numpy())
    return path


def choose_cloud_views(
    world: RenderedWorld, path: np.ndarray, random: np.random.Generator, min_count: int
) -> list[int]:
    """Views that the cloud is made of: the start view and others, most of them near the path.

    Args:
        world: the rendered world.
        path: (F,) views of the clip.
        random: random number generator.
        min_count: minimum number of sampled views; fewer are returned if views are sampled twice.
    """
    fine = world.fine.numpy()
    low, high = path[1:].min() - 3 * FINE_STRIDE, path[1:].max() + 3 * FINE_STRIDE
    near = fine[(fine >= low) & (fine <= high) & (fine != path[0])]
    count = max(int(random.choice(len(CLOUD_VIEWS_PROB), p=CLOUD_VIEWS_PROB)), min_count - 1)
    chosen = [int(random.choice(near if len(near) and random.random() < 0.75 else fine)) for _ in range(count)]
    return list(dict.fromkeys([int(path[0]), *chosen]))


def _noisy_view(world: RenderedWorld, view: int, random: np.random.Generator, clean: bool, *, start: bool) -> View:
    """A fine view with the noise of a depth camera: blurred edges, scale error, missing pixels, exposure."""
    at = int(np.flatnonzero(world.fine.numpy() == view)[0])
    depth = world.fine_depth[at].float().numpy()
    image = world.fine_image[at].permute(1, 2, 0).numpy()
    camera = world.camera.resized(depth.shape[1], depth.shape[0])
    valid = depth > 0
    if not clean:
        kind = random.random()
        if kind < EDGE_BLUR_PROB:
            factor = int(random.integers(2, 5))
            small = cv2.resize(depth, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_LINEAR)
            depth = cv2.resize(small, depth.shape[::-1], interpolation=cv2.INTER_LINEAR)
        elif kind < EDGE_BLUR_PROB + FLOATING_POINTS_PROB:
            depth = cv2.GaussianBlur(depth, (0, 0), float(random.uniform(0.8, 2.5)))
        if random.random() < 0.3:
            depth = depth * np.float32(np.exp(random.normal(0, 0.03)))
        valid &= random.random(depth.shape) > random.uniform(0, 0.3)
        if random.random() < 0.3:  # larger regions without depth
            noise = random.random((4, 6)).astype(np.float32)
            valid &= cv2.resize(noise, depth.shape[::-1], interpolation=cv2.INTER_CUBIC) > random.uniform(0, 0.35)
        valid &= depth < random.uniform(6, 40)
        if not start:
            gain = np.exp(random.normal(0, 0.08) + random.normal(0, 0.02, size=3))
            image = np.clip(image * gain, 0, 255).astype(np.uint8)
    valid &= depth > 0
    pose = world.pose[view].double().numpy()
    return View(np.ascontiguousarray(image), camera, pose, np.where(valid, depth, np.float32(0)))


def fine_camera(camera: Camera) -> Camera:
    """The camera that memory is rendered by: that of fine views."""
    return camera.resized(camera.width * FINE_SCALE, camera.height * FINE_SCALE)


def _render_points(views: list[View], camera: Camera, poses: np.ndarray, device: torch.device) -> Rendering:
    """The points of views, rendered by the fine camera from (F, 4, 4) poses."""
    fine = fine_camera(camera)
    with_depth = [(view, view.depth) for view in views if view.depth is not None]
    points = [
        unproject(depth, view.camera, view.world_from_camera)[depth > 0].astype(np.float32)
        for view, depth in with_depth
    ]
    colours = [view.image[depth > 0] for view, depth in with_depth]
    spacing = [(depth[depth > 0] / np.float32(fine.fx)).astype(np.float32) for _, depth in with_depth]
    cloud = np.concatenate(points)
    return render(
        cloud, np.concatenate(colours), np.ones(len(cloud), bool), np.concatenate(spacing), fine, poses,
        device=device, near=NEAR_PLANE_M,
    )  # fmt: skip


def _warp_memory(
    views: list[View], rendering: Rendering, camera: Camera, poses: np.ndarray
) -> tuple[torch.Tensor, ...]:
    """Warps memory to (F, 4, 4) poses, as the pipeline does at inference.

    Returns:
        On the CPU, at the camera's size: images warped from memory (F, 3, H, W) in [0, 1], the same with extrapolated
        planes, their channels (F, 4, H / 8, W / 8), and holes of the cloud (F, H, W).
    """
    _, holes = fit_renders(rendering.colour, rendering.covered, (camera.height, camera.width))
    memory = Conditioning(views[0], rendering, fine_camera(camera), poses, views, np.full(len(poses), -1))
    warped_views = GeometricPipeline().warp_all(memory, lambda *_: None)
    images = torch.from_numpy(np.stack([warped.image for warped in warped_views]))
    images = functional.avg_pool2d(images.permute(0, 3, 1, 2).float() / 255, FINE_SCALE)
    layout = render_layout(estimate_layout(views), warped_views, camera, poses)
    return images, torch.from_numpy(layout.images), torch.from_numpy(layout.plane_channels), holes.cpu()


def visible_fraction(world: RenderedWorld, target: int) -> np.ndarray:
    """(N,) fraction of the surface in view `target` that is visible in each view of the world."""
    depth = world.depth[target].float().numpy()
    camera = world.camera
    first = OVERLAP_STRIDE_PX // 2
    rows, columns = np.mgrid[first : camera.height : OVERLAP_STRIDE_PX, first : camera.width : OVERLAP_STRIDE_PX]
    z = depth[rows, columns].ravel()
    rays = np.stack([(columns.ravel() - camera.cx) / camera.fx, (rows.ravel() - camera.cy) / camera.fy], axis=1)
    valid = z > 0
    if not valid.any():
        return np.zeros(len(world.image))
    local = np.concatenate([rays[valid] * z[valid, None], z[valid, None]], axis=1)
    poses = world.pose.double().numpy()
    points = local @ poses[target, :3, :3].T + poses[target, :3, 3]
    camera_from_world = invert_pose(poses)
    in_view = np.einsum("nij,pj->npi", camera_from_world[:, :3, :3], points) + camera_from_world[:, None, :3, 3]
    z_in_view = np.maximum(in_view[..., 2], 1e-6)
    u = np.rint(in_view[..., 0] / z_in_view * camera.fx + camera.cx).astype(int)
    v = np.rint(in_view[..., 1] / z_in_view * camera.fy + camera.cy).astype(int)
    inside = (in_view[..., 2] > 0.05) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    u, v = u.clip(0, camera.width - 1), v.clip(0, camera.height - 1)
    depth_in_view = world.depth.float().numpy()[np.arange(len(poses))[:, None], v, u]
    return (inside & (np.abs(depth_in_view - z_in_view) < 0.05 * z_in_view + 0.05)).mean(axis=1)


def assign_references(world: RenderedWorld, keyframes: np.ndarray, candidates: list[int]) -> list[int]:
    """Assigns a candidate view to each keyframe by retrieval score; different ones as long as there are enough."""
    if not len(keyframes):
        return []
    camera_from_world, camera = invert_pose(world.pose.double().numpy()), world.camera
    scores, _ = retrieval_scores(
        camera_from_world[keyframes],
        camera_from_world[candidates],
        camera.matrix,
        camera.matrix,
        camera.width,
        camera.height,
    )
    best = scores.argmax(axis=1)
    rows, columns = linear_sum_assignment(scores, maximize=True)
    best[rows] = columns
    return [candidates[int(column)] for column in best]


def choose_reference(world: RenderedWorld, keyframe: int, random: np.random.Generator) -> int:
    """Samples a reference for a keyframe: a view from nearly the same pose, or one that overlaps it in part."""
    walk = world.walk.numpy()
    if random.random() < REVISIT_PROB:
        near = np.arange(max(0, keyframe - 2), min(len(walk), keyframe + 3))
        return int(random.choice(near[walk[near] == walk[keyframe]]))
    overlap = visible_fraction(world, keyframe)
    overlap[np.abs(np.arange(len(overlap)) - keyframe) < 2] = -1
    suitable = np.flatnonzero((overlap >= MIN_OVERLAP) & (overlap <= MAX_OVERLAP))
    if random.random() < 0.1:  # memory does not always have a suitable view
        return int(random.integers(len(overlap)))
    return int(random.choice(suitable)) if len(suitable) else int(overlap.argmax())


def augment_reference(image: torch.Tensor, random: np.random.Generator, *, imagined: bool) -> torch.Tensor:
    """A reference (3, H, W) in [-1, 1] with other exposure, and sometimes motion blur or the blur of imagined views."""
    gain = torch.from_numpy(np.exp(random.normal(0, 0.07, size=(3, 1, 1)))).float()
    image = ((image * 0.5 + 0.5) * gain).clamp(0, 1) * 2 - 1
    if imagined and random.random() < BLURRED_PROB:
        sigma = float(random.uniform(0.8, 4.0))
        blurred = cv2.GaussianBlur(image.permute(1, 2, 0).numpy(), (0, 0), sigma)
        return torch.from_numpy(blurred).permute(2, 0, 1)
    if random.random() < 0.25:
        length = int(random.integers(2, 6))
        kernel = np.zeros((length, length), np.float32)
        (kernel[length // 2, :] if random.random() < 0.7 else kernel[:, length // 2])[:] = 1 / length
        blurred = cv2.filter2D(image.permute(1, 2, 0).numpy(), -1, kernel, borderType=cv2.BORDER_REFLECT)
        image = torch.from_numpy(blurred).permute(2, 0, 1)
    return image
