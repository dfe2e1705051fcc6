"""A photograph that was placed, as a view for memory: its depth by comparison with the captures around it.

None of this depth counts as measured: it rests on a pose that follows from the pictures, and fewer views confirm it
than in a reconstruction of a whole place. It is *estimated*, and a sensor that measures the place replaces it.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from worldstereo_ros.depth.alignment import MIN_KNOWN_PX, DepthError, complete_depth
from worldstereo_ros.depth.estimators import DepthEstimator, estimate_depth
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.photos import reduced_size
from worldstereo_ros.reconstruction.dense import DEFAULT_PIXELS
from worldstereo_ros.reconstruction.neighbours import FAR_MARGIN, MAX_RATIO, NEAR_MARGIN
from worldstereo_ros.reconstruction.placement import Placement
from worldstereo_ros.reconstruction.plane_sweep import SweepView, cross_check, sweep
from worldstereo_ros.utils.errors import InputError

COMPARED = 4  # captures that the photograph is compared with
CHECKING = 2  # captures whose own depth has to confirm that of the photograph
SWEPT_CONFIDENCE = 0.97  # share of swept depth within 2 % on real photographs, before any check


def placed_view(
    photograph: np.ndarray,
    camera: Camera,
    placement: Placement,
    captures: Sequence[View],
    *,
    stamp_ns: int = 0,
    metric: bool = True,
    estimator: DepthEstimator | None = None,
    device: str | torch.device = "cpu",
) -> View:
    """A placed photograph with depth, all of it labelled as estimated.

    The depth is that of a plane sweep over the captures that share most with it, where one of them confirms it; holes
    get the estimator's depth, scaled to it.

    Args:
        photograph: (H, W, 3) uint8 RGB.
        camera: its intrinsics.
        placement: where it was taken.
        captures: those that it was placed among.
        stamp_ns: time of the photograph.
        metric: lengths are metres.
        estimator: depth estimator for holes; None = they stay unknown.
        device: torch device of the sweep.

    Raises:
        InputError: the photograph has no pose.
    """
    if placement.world_from_camera is None:
        raise InputError(f"The photograph has no pose. {placement.reason}")
    view = View(photograph, camera, placement.world_from_camera, stamp_ns=stamp_ns, metric=metric)
    depth = _swept(view, placement, captures, device)
    confidence = np.where(depth > 0, np.float32(SWEPT_CONFIDENCE), np.float32(0))
    if estimator is not None and (depth > 0).sum() >= MIN_KNOWN_PX:
        depth, confidence = _filled(view, depth, confidence, estimator)
    everywhere = np.ones(depth.shape, bool)
    return View(
        photograph, camera, placement.world_from_camera, depth, stamp_ns=stamp_ns, estimated=everywhere,
        depth_confidence=confidence, metric=metric,
    )  # fmt: skip


def _swept(view: View, placement: Placement, captures: Sequence[View], device: str | torch.device) -> np.ndarray:
    """(H, W) float32 depth by comparison with the captures, of the size of the view; 0 where none confirms it."""
    depth = placement.points @ invert_pose(view.world_from_camera)[2, :3] + invert_pose(view.world_from_camera)[2, 3]
    near, far = np.percentile(depth[depth > 0], (0.5, 99.5)) * (NEAR_MARGIN, FAR_MARGIN)
    far = min(float(far), float(near) * MAX_RATIO)
    chosen = [captures[i].resized(*_size(captures[i])) for i in placement.neighbours[:COMPARED]]
    small = view.resized(*_size(view))
    own, others = SweepView.of(small), [SweepView.of(one) for one in chosen]
    found, _ = sweep(own, others, float(near), far, device=device)
    checks = []
    for number, one in enumerate(chosen):
        measured = None if one.depth is None else np.where(one.estimated_mask, np.float32(0), one.depth)
        if measured is None or not (measured > 0).any():
            if number >= CHECKING:
                continue
            rest = [own, *(other for k, other in enumerate(others) if k != number)]
            measured, _ = sweep(others[number], rest, float(near), far, device=device)
        checks.append((measured.astype(np.float32), others[number]))
    confirmed, _ = cross_check(found, own, checks, needed=1)
    if confirmed.shape == view.image.shape[:2]:
        return confirmed
    return cv2.resize(confirmed, (view.camera.width, view.camera.height), interpolation=cv2.INTER_NEAREST_EXACT)


def _size(view: View) -> tuple[int, int]:
    return reduced_size((view.camera.width, view.camera.height), DEFAULT_PIXELS)


def _filled(
    view: View, depth: np.ndarray, confidence: np.ndarray, estimator: DepthEstimator
) -> tuple[np.ndarray, np.ndarray]:
    """Depth and confidence with holes filled by the estimator; sky, which has no depth, stays unknown."""
    try:
        estimate = estimate_depth(estimator, view.image, view.camera)
    except DepthError:  # such as an image that is all sky to the network
        return depth, confidence
    holes = (depth <= 0) & (estimate.depth > 0)
    completed = np.where(holes, complete_depth(depth, estimate.depth), depth).astype(np.float32)
    guessed = np.zeros_like(confidence) if estimate.confidence is None else estimate.confidence
    return completed, np.where(holes, guessed, confidence).astype(np.float32)
