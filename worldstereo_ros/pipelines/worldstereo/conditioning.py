"""From what memory says about a clip to what the WorldStereo transformer takes, in the layout it was trained on.

A clip of F views becomes F + 1 keyframes: the first is the seed's own picture from its own camera, where nothing is a
hole; the others are the cloud seen from the path. Pictures are stretched to the nearest size the model knows and the
intrinsics with them, as in its training. Here are the only places where this project's conventions (pixel centres at
integers, `world_from_camera`, `covered`) become those of the published weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch.nn import functional

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.view_overlap import retrieval_scores
from worldstereo_ros.geometry.views import View
from worldstereo_ros.models.worldstereo.camera_embedding import normalise_cameras, plucker_embedding, pose_vectors
from worldstereo_ros.pipelines.base import Conditioning
from worldstereo_ros.pipelines.geometric.plane_extrapolation import Layout, render_layout
from worldstereo_ros.pipelines.geometric.warped_view import WarpedView

LEAST_COVER = 0.5  # of a pixel; what is covered less is a hole


@dataclass(frozen=True)
class Keyframes:
    """F keyframes and R references at the size of the model; tensors on its device, float32.

    Attributes:
        images: (F, 3, H, W) in [-1, 1]: the seed, then the renders; holes are 0.
        holes: (1, 1, F, H, W), 1 where nothing was rendered; all 0 in the first.
        plucker: (1, 6, F, H, W) Plücker rays of the normalised cameras.
        poses: (1, F, 7) quaternion and translation of the normalised cameras.
        references: (R, 3, H, W) in [-1, 1].
        reference_index: (R,) the view of the path (0..F-2) that each reference stands beside.
        reference_poses: (1, R, 7).
        reference_points: where tokens land in the references, for models that attend by correspondence; else None.
        guessed: (F, 3, H, W) in [-1, 1], pictures with large flat surfaces gone on with; None where not asked for.
        plane_channels: (1, 4, F, H / 8, W / 8), what is said of these, see `layout.LayoutRender`.
    """

    images: torch.Tensor
    holes: torch.Tensor
    plucker: torch.Tensor
    poses: torch.Tensor
    references: torch.Tensor
    reference_index: torch.Tensor
    reference_poses: torch.Tensor
    reference_points: torch.Tensor | None = None
    guessed: torch.Tensor | None = None
    plane_channels: torch.Tensor | None = None


def make_keyframes(
    conditioning: Conditioning,
    size: tuple[int, int],
    device: torch.device,
    *,
    remembers: bool = True,
    count: int | None = None,
    correspondence: tuple[int, int] | None = None,
    painted: Sequence[WarpedView] | None = None,
    layout: Layout | None = None,
) -> Keyframes:
    """The keyframes of a clip.

    Args:
        conditioning: what memory says.
        size: (height, width) of the model's pictures.
        device: where the tensors go.
        remembers: whether the model takes references.
        count: make up so many keyframes by standing still at the end of the path; None: as many as there are.
        correspondence: (rows, columns) of tokens, for models that attend by correspondence.
        painted: the views as memory alone paints them, without holes, to be shown instead of renders whose holes are
            grey; the holes are marked all the same.
        layout: show how the planes that memory has seen go on, too; needs `painted`.
    """
    height, width = size
    renders = conditioning.renders
    seed = conditioning.start_view.resized(width, height)
    if painted is None:
        colour, holes = fit_renders(renders.colour, renders.covered, size)
    else:
        colour = torch.stack([_picture(_shrunk(p.image, width, height), renders.colour.device) for p in painted])
        holes = (_fitted(renders.covered[:, None].float(), size) < LEAST_COVER)[:, 0].float()
    poses = np.concatenate([conditioning.start_view.world_from_camera[None], conditioning.world_from_camera])
    camera = conditioning.camera.resized(width, height)
    cameras = [seed.camera] + [camera] * len(conditioning.world_from_camera)
    guessed = marks = None
    if layout is not None and painted is not None:
        guess = render_layout(layout, painted, camera, conditioning.world_from_camera)
        guessed, marks = torch.from_numpy(guess.images) * 2 - 1, torch.from_numpy(guess.plane_channels)
    missing = max(0, (count or 0) - len(poses))
    if missing:
        poses = np.concatenate([poses, np.repeat(poses[-1:], missing, axis=0)])
        cameras += [camera] * missing
        colour, holes = _stood_still(colour, missing), _stood_still(holes, missing)
        guessed = None if guessed is None else _stood_still(guessed, missing)
        marks = None if marks is None else _stood_still(marks, missing)

    chosen, beside = attach_references(conditioning) if remembers else ([], [])
    views = [view.resized(width, height) for view in chosen]
    reference_poses = np.stack([view.world_from_camera for view in views]) if views else None
    targets, references = normalise_cameras(
        invert_pose(poses), None if reference_poses is None else invert_pose(reference_poses)
    )
    points = None
    if correspondence is not None and views:
        points = _points(conditioning, seed, cameras, poses, views, size, correspondence, device)
    rays = plucker_embedding(targets, np.stack([published_matrix(c) for c in cameras]), height, width)
    return Keyframes(
        images=torch.cat((_picture(seed.image, device)[None], colour.to(device))),
        holes=torch.cat((torch.zeros_like(holes[:1]), holes))[None, None].to(device),
        plucker=torch.from_numpy(rays)[None].to(device),
        poses=torch.from_numpy(pose_vectors(targets))[None].to(device),
        references=torch.stack([_picture(view.image, device) for view in views])
        if views
        else torch.zeros(0, 3, *size, device=device),
        reference_index=torch.tensor(beside, dtype=torch.int64, device=device),
        reference_poses=torch.from_numpy(
            pose_vectors(references) if references is not None else np.zeros((0, 7), np.float32)
        )[None].to(device),
        reference_points=points,
        guessed=None if guessed is None else torch.cat((_picture(seed.image, device)[None], guessed.to(device))),
        plane_channels=None
        if marks is None
        else torch.cat((torch.zeros_like(marks[:1]), marks)).transpose(0, 1)[None].to(device),
    )


def _stood_still(views: torch.Tensor, count: int) -> torch.Tensor:
    """(F, ...) with the last view `count` times more."""
    return torch.cat((views, views[-1:].expand(count, *views.shape[1:])))


def published_matrix(camera: Camera) -> np.ndarray:
    """(3, 3) intrinsics as the published weights count: the image begins at 0, half a pixel before ours."""
    matrix = camera.matrix
    matrix[:2, 2] += 0.5
    return matrix


def fit_renders(
    colour: torch.Tensor, covered: torch.Tensor, size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Renders at the size of the model: colours of covered pixels alone, none of a hole's grey in them.

    Args:
        colour: (F, h, w, 3) uint8.
        covered: (F, h, w) bool.
        size: (height, width).

    Returns:
        (pictures (F, 3, height, width) in [-1, 1], 0 in holes; holes (F, height, width), 1 = hole), float32.
    """
    weight = covered[:, None].float()
    values, weight = (_fitted(t, size) for t in ((colour.permute(0, 3, 1, 2).float() / 127.5 - 1) * weight, weight))
    hole = weight < LEAST_COVER
    values = torch.where(hole, 0.0, values / weight.clamp(min=LEAST_COVER))
    return values.clamp(-1, 1), hole[:, 0].float()


def _fitted(pictures: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(pictures.shape[2:]) == tuple(size):
        return pictures
    return functional.interpolate(pictures, size, mode="bilinear", antialias=True)


def attach_references(conditioning: Conditioning) -> tuple[list[View], list[int]]:
    """The distinct views that were retrieved, and beside which view of the path each one stands.

    A view that serves several stands beside the one it serves best.
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
    served = np.where(index[:, None] == np.array(distinct), scores, -1.0)
    return views, [int(i) for i in served.argmax(axis=0)]


def _shrunk(image: np.ndarray, width: int, height: int) -> np.ndarray:
    shrinks = width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _picture(image: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1).float() / 127.5 - 1


def _points(
    conditioning: Conditioning,
    seed: View,
    cameras: list[Camera],
    poses: np.ndarray,
    views: list[View],
    size: tuple[int, int],
    tokens: tuple[int, int],
    device: torch.device,
) -> torch.Tensor:
    from worldstereo_ros.models import reference_points

    depth = functional.interpolate(conditioning.renders.depth[:, None].float(), size, mode="nearest-exact")[:, 0]
    depth = torch.cat((depth, depth[-1:].expand(len(poses) - 1 - len(depth), *size)))
    first = torch.zeros(size) if seed.depth is None else torch.from_numpy(np.ascontiguousarray(seed.depth))
    known = [np.zeros(size, np.float32) if view.depth is None else view.depth for view in views]
    points = reference_points(
        torch.cat((first[None].to(depth), depth)).to(device),
        torch.from_numpy(np.stack([camera.matrix for camera in cameras])),
        torch.from_numpy(poses),
        torch.from_numpy(np.stack([view.camera.matrix for view in views])),
        torch.from_numpy(np.stack([view.world_from_camera for view in views])),
        *tokens,
        reference_depth=torch.from_numpy(np.stack(known)),
    )
    return points[None]
