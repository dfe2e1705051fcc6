"""Keyframes: memory's conditioning of a clip at the size and in the conventions of the WorldStereo transformer.

A clip of F - 1 views becomes F keyframes. The first is the start view from its own camera, without holes; the others
are the cloud rendered along the path. Images are stretched to the nearest size that the model was trained with, and
the intrinsics with them, as in its training. Only this module converts the conventions of this package (pixel centres
at integers, `world_from_camera`, `covered`) to those of the published weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.view_overlap import retrieval_scores
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.resizing import resize_image
from worldstereo_ros.models.worldstereo.camera_embedding import normalise_cameras, plucker_embedding, pose_vectors
from worldstereo_ros.pipelines.base import Conditioning
from worldstereo_ros.pipelines.geometric.layout import Layout
from worldstereo_ros.pipelines.geometric.plane_extrapolation import render_layout
from worldstereo_ros.pipelines.geometric.warped_view import WarpedView

MIN_COVERAGE = 0.5  # fraction of a pixel; a pixel that is covered less is a hole


@dataclass(frozen=True)
class Keyframes:
    """b clips of F keyframes and R references at the size of the model; float32 tensors on its device.

    Attributes:
        start: (b, 3, H, W) start views in [-1, 1].
        holes: (b, 1, F, H, W), 1 = hole, nothing was rendered there; 0 in the first frame.
        plucker: (b, 6, F, H, W) Plücker rays of the normalised cameras.
        poses: (b, F, 7) quaternions and translations of the normalised cameras.
        references: (b, 3, R, H, W) in [-1, 1]; R may be 0.
        reference_index: (R,) int64, the view of the path (0..F-2) that each reference belongs to.
        reference_poses: (b, R, 7).
        renders: (b, 3, F - 1, H, W) memory rendered along the path, in [-1, 1]; holes are 0, or filled from memory.
            None without control branch.
        layouts: (b, 3, F - 1, H, W) renders whose holes show extrapolated planes, in [-1, 1]; None without layout.
        plane_channels: (b, 4, F, H / 8, W / 8), see `plane_extrapolation.LayoutRender`; None without layout.
        reference_points: (b, F, rows, columns, R, 2) where target tokens lie in the references, for models that attend
            by correspondence; else None.
    """

    start: torch.Tensor
    holes: torch.Tensor
    plucker: torch.Tensor
    poses: torch.Tensor
    references: torch.Tensor
    reference_index: torch.Tensor
    reference_poses: torch.Tensor
    renders: torch.Tensor | None = None
    layouts: torch.Tensor | None = None
    plane_channels: torch.Tensor | None = None
    reference_points: torch.Tensor | None = None

    @property
    def count(self) -> int:
        """F, the start view among them."""
        return self.poses.shape[1]


def make_keyframes(
    conditioning: Conditioning,
    size: tuple[int, int],
    device: torch.device,
    *,
    use_references: bool = True,
    min_count: int | None = None,
    correspondence_tokens: tuple[int, int] | None = None,
    warped_views: Sequence[WarpedView] | None = None,
    layout: Layout | None = None,
    threads: int = 1,
) -> Keyframes:
    """The keyframes of one clip, b = 1.

    Args:
        conditioning: what memory holds about the clip.
        size: (height, width) of the model's images in pixels.
        device: where the tensors go.
        use_references: whether the model takes references.
        min_count: a shorter clip is extended to this many keyframes by repeating its last view; None: as many as there
            are.
        correspondence_tokens: (rows, columns) of tokens, for models that attend by correspondence.
        warped_views: views that the geometric pipeline filled from memory. They replace the renders with grey holes;
            `holes` stays the same.
        layout: extrapolate its planes into the holes, in addition; needs `warped_views`.
        threads: number of threads that render the layout.
    """
    height, width = size
    renders = conditioning.renders
    start = conditioning.start_view.resized(width, height)
    if warped_views is None:
        images, holes = fit_renders(renders.colour, renders.covered, size)
    else:
        resized = [resize_image(warped.image, width, height) for warped in warped_views]
        images = torch.stack([_to_tensor(image, renders.colour.device) for image in resized])
        holes = (_fit(renders.covered[:, None].float(), size) < MIN_COVERAGE)[:, 0].float()
    poses = np.concatenate([conditioning.start_view.world_from_camera[None], conditioning.world_from_camera])
    camera = conditioning.camera.resized(width, height)
    cameras = [start.camera] + [camera] * len(conditioning.world_from_camera)
    layouts = plane_channels = None
    if layout is not None and warped_views is not None:
        layout_render = render_layout(layout, warped_views, camera, conditioning.world_from_camera, threads=threads)
        layouts = torch.from_numpy(layout_render.images) * 2 - 1
        plane_channels = torch.from_numpy(layout_render.plane_channels)
    missing = max(0, (min_count or 0) - len(poses))
    if missing:
        poses = np.concatenate([poses, np.repeat(poses[-1:], missing, axis=0)])
        cameras += [camera] * missing
        images, holes = _repeat_last(images, missing), _repeat_last(holes, missing)
        layouts = None if layouts is None else _repeat_last(layouts, missing)
        plane_channels = None if plane_channels is None else _repeat_last(plane_channels, missing)

    chosen, reference_index = attach_references(conditioning) if use_references else ([], [])
    references = [view.resized(width, height) for view in chosen]
    targets, normalised_references = normalise_cameras(
        invert_pose(poses),
        invert_pose(np.stack([view.world_from_camera for view in references])) if references else None,
    )
    points = None
    if correspondence_tokens is not None and references:
        points = _reference_points(conditioning, start, cameras, poses, references, size, correspondence_tokens, device)
    plucker = plucker_embedding(targets, np.stack([published_matrix(c) for c in cameras]), height, width)
    return Keyframes(
        start=_to_tensor(start.image, device)[None],
        holes=torch.cat((torch.zeros_like(holes[:1]), holes))[None, None].to(device),
        plucker=torch.from_numpy(plucker)[None].to(device),
        poses=torch.from_numpy(pose_vectors(targets))[None].to(device),
        references=_to_clip(torch.stack([_to_tensor(view.image, device) for view in references]))
        if references
        else torch.zeros(1, 3, 0, *size, device=device),
        reference_index=torch.tensor(reference_index, dtype=torch.int64, device=device),
        reference_poses=torch.from_numpy(
            pose_vectors(normalised_references) if normalised_references is not None else np.zeros((0, 7), np.float32)
        )[None].to(device),
        renders=_to_clip(images.to(device)),
        layouts=None if layouts is None else _to_clip(layouts.to(device)),
        plane_channels=None
        if plane_channels is None
        else _to_clip(torch.cat((torch.zeros_like(plane_channels[:1]), plane_channels)).to(device)),
        reference_points=points,
    )


def attach_references(conditioning: Conditioning) -> tuple[list[View], list[int]]:
    """The distinct references that were retrieved, and the view of the path that each belongs to.

    A reference that was retrieved for several views belongs to the one with the highest retrieval score.

    Returns:
        (R views, R indices of views of the path).
    """
    index = np.asarray(conditioning.reference_index)
    distinct = [int(i) for i in np.unique(index[index >= 0])]
    views = [conditioning.references[i] for i in distinct]
    if not views:
        return [], []
    camera = conditioning.camera
    scores, _ = retrieval_scores(
        invert_pose(conditioning.world_from_camera),
        invert_pose(np.stack([view.world_from_camera for view in views])),
        camera.matrix,
        np.stack([view.camera.resized(camera.width, camera.height).matrix for view in views]),
        camera.width,
        camera.height,
    )
    scores = np.where(index[:, None] == np.array(distinct), scores, -1.0)
    return views, [int(i) for i in scores.argmax(axis=0)]


def fit_renders(
    colour: torch.Tensor, covered: torch.Tensor, size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Renders at the size of the model. Only covered pixels contribute to a colour, never the grey of holes.

    Args:
        colour: (F, h, w, 3) uint8.
        covered: (F, h, w) bool.
        size: (height, width).

    Returns:
        Images (F, 3, height, width) float32 in [-1, 1], 0 in holes; holes (F, height, width) float32, 1 = hole.
    """
    weight = covered[:, None].float()
    values, weight = (_fit(t, size) for t in ((colour.permute(0, 3, 1, 2).float() / 127.5 - 1) * weight, weight))
    hole = weight < MIN_COVERAGE
    values = torch.where(hole, 0.0, values / weight.clamp(min=MIN_COVERAGE))
    return values.clamp(-1, 1), hole[:, 0].float()


def published_matrix(camera: Camera) -> np.ndarray:
    """(3, 3) intrinsics in the pixel grid of the published weights: the corner of the first pixel is the origin.

    In this package the centre of the first pixel is the origin.
    """
    matrix = camera.matrix
    matrix[:2, 2] += 0.5
    return matrix


def _fit(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(images.shape[2:]) == tuple(size):
        return images
    return functional.interpolate(images, size, mode="bilinear", antialias=True)


def _to_tensor(image: np.ndarray, device: torch.device) -> torch.Tensor:
    """(H, W, 3) uint8 to (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1).float() / 127.5 - 1


def _to_clip(frames: torch.Tensor) -> torch.Tensor:
    """(F, C, H, W) to (1, C, F, H, W)."""
    return frames.transpose(0, 1)[None]


def _repeat_last(frames: torch.Tensor, count: int) -> torch.Tensor:
    """(F, ...) to (F + count, ...)."""
    return torch.cat((frames, frames[-1:].expand(count, *frames.shape[1:])))


def _reference_points(
    conditioning: Conditioning,
    start: View,
    cameras: list[Camera],
    poses: np.ndarray,
    references: list[View],
    size: tuple[int, int],
    tokens: tuple[int, int],
    device: torch.device,
) -> torch.Tensor:
    """(1, F, rows, columns, R, 2), see `models.worldstereo.correspondence.reference_points`."""
    from worldstereo_ros.models import reference_points

    depth = functional.interpolate(conditioning.renders.depth[:, None].float(), size, mode="nearest-exact")[:, 0]
    depth = torch.cat((depth, depth[-1:].expand(len(poses) - 1 - len(depth), *size)))
    first = torch.zeros(size) if start.depth is None else torch.from_numpy(np.ascontiguousarray(start.depth))
    reference_depth = [np.zeros(size, np.float32) if view.depth is None else view.depth for view in references]
    points = reference_points(
        torch.cat((first[None].to(depth), depth)).to(device),
        torch.from_numpy(np.stack([camera.matrix for camera in cameras])),
        torch.from_numpy(poses),
        torch.from_numpy(np.stack([view.camera.matrix for view in references])),
        torch.from_numpy(np.stack([view.world_from_camera for view in references])),
        *tokens,
        reference_depth=torch.from_numpy(np.stack(reference_depth)),
    )
    return points[None]
