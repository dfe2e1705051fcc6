"""Dense depth of a clip: the depth network's, moved by what the tracks say, and what the point-map network makes of it.

This is the one place where the geometric prior leaves and a refined one comes back: a `Refiner` gets the prior of a
window at the size that networks work at, and returns depth, its uncertainty, and what moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import cv2
import numpy as np

from worldstereo_ros.depth.estimators import BUNDLED_NETWORK, DepthEstimator, estimate_depth
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.imaging.resizing import resize_image
from worldstereo_ros.pipelines.pointmaps.visual_odometry import log_depth_of

if TYPE_CHECKING:
    import torch

    from worldstereo_ros.models.pointmaps.types import PointmapPrediction, PointmapPrior

    # Called with images (1, F, 3, h, w) in [-1, 1], intrinsics (1, 4) and the prior or None; `PointmapModel.refine`.
    Refiner = Callable[[torch.Tensor, torch.Tensor, PointmapPrior | None], PointmapPrediction]

WORK_PIXELS, WORK_MULTIPLE = 12_288, 16  # of the frames that dense priors are computed on
OTHER_SIGMA = 0.25  # of the log depth of estimators that do not say it
SENSOR_SIGMA = 0.02  # of measured depth
MIN_SIGMA, MAX_SIGMA = 0.02, 1.0
ANCHOR_ERROR, ANCHOR_PIXEL_ERROR = 0.01, 0.6  # of an anchor's log depth: constant, and pixels over parallax
SURE_ANCHOR, MIN_ANCHOR_WEIGHT = 0.05, 0.15
HELD_OUT, MIN_HELD_OUT = 4, 50  # one point of so many is kept from the refiner, to test it; fewer anchors tell nothing


@dataclass(frozen=True)
class DepthMaps:
    """Depth of F frames with its uncertainty.

    Attributes:
        depth: (F, H, W) float32, 0 = unknown.
        sigma: (F, H, W) float32, expected error of its logarithm.
        measured: (F,) bool, a sensor measured it.
    """

    depth: np.ndarray
    sigma: np.ndarray
    measured: np.ndarray


@dataclass(frozen=True)
class Anchors:
    """Depths of tracked points in the frames that see them.

    Attributes:
        frame: (A,) frames.
        pixel: (A, 2) where.
        log_depth: (A,) there.
        parallax: (A,) pixels that the point moved by the camera's translation.
        point: (A,) number of the point.
    """

    frame: np.ndarray
    pixel: np.ndarray
    log_depth: np.ndarray
    parallax: np.ndarray
    point: np.ndarray

    def select(self, kept: np.ndarray) -> Anchors:
        """Those that (A,) bool says."""
        return Anchors(*(getattr(self, each.name)[kept] for each in fields(self)))


def predict_depth(
    images: np.ndarray, camera: Camera, given: np.ndarray | None, estimator: DepthEstimator | None
) -> DepthMaps:
    """Depth of frames before anything is known of their motion.

    Args:
        images: (F, H, W, 3) uint8.
        camera: intrinsics.
        given: (F, H, W) measured depth, 0 = unknown; frames without any are estimated.
        estimator: depth estimator; may be None if all frames have depth.

    Raises:
        DepthError: the estimator is unavailable.
    """
    from worldstereo_ros.depth.alignment import DepthError
    from worldstereo_ros.utils.single_thread import single_thread

    shape = images.shape[:3]
    depth, sigma = np.zeros(shape, np.float32), np.full(shape, OTHER_SIGMA, np.float32)
    measured = np.zeros(shape[0], bool)
    for f, image in enumerate(images):
        if given is not None and (given[f] > 0).any():
            depth[f], sigma[f], measured[f] = np.where(np.isfinite(given[f]), given[f], 0), SENSOR_SIGMA, True
            continue
        if estimator is None:
            raise DepthError(f"Frame {f} has no depth, and there is no depth estimator; {BUNDLED_NETWORK} is one.")
        predict = getattr(estimator, "predict", None)
        found = None
        if predict is not None and hasattr(estimator, "familiarity"):  # a small network
            with single_thread():
                found = predict(image, camera)
        if found is not None:
            depth[f], sigma[f] = found.depth, found.scale
        else:
            try:
                depth[f] = estimate_depth(estimator, image, camera).depth
            except DepthError:  # all of it is sky to the estimator
                depth[f] = 0
    return DepthMaps(depth, np.clip(sigma, MIN_SIGMA, MAX_SIGMA), measured)


def work_size(height: int, width: int, pixels: int = WORK_PIXELS) -> tuple[int, int]:
    """(rows, columns) that dense priors are computed at, of about so many pixels."""
    factor = math.sqrt(pixels / (height * width))
    rows, columns = (max(WORK_MULTIPLE, round(n * factor / WORK_MULTIPLE) * WORK_MULTIPLE) for n in (height, width))
    return rows, columns


def correct_depth(
    maps: DepthMaps,
    anchors: Anchors,
    poses: np.ndarray,
    camera: Camera,
    images: np.ndarray,
    refiner: Refiner | None = None,
    *,
    log_scale: np.ndarray | None = None,
) -> tuple[DepthMaps, np.ndarray | None]:
    """Moves the depth of a clip to anchors by a smooth field, and lets a refiner change the result.

    The refiner does not get all anchors: those held out tell how far it is to be followed, see `held_out.refined`.

    Args:
        maps: depth of the frames.
        anchors: depths of tracked points, of the scale of the poses.
        poses: (F, 4, 4) world_from_camera.
        camera: intrinsics.
        images: (F, H, W, 3) uint8.
        refiner: network that refines the prior; None for the prior itself.
        log_scale: (F,) of each depth map, from the joint solve; measured depth gets no field beyond it.

    Returns:
        Depth at the size of the frames, and (F, H, W) float32 probability that a pixel moves, by the refiner; None
        where it does not know.
    """
    import torch

    from worldstereo_ros.pipelines.pointmaps.held_out import refined
    from worldstereo_ros.utils.single_thread import single_thread

    height, width = maps.depth.shape[1:]
    with single_thread():
        prior, small = dense_prior(maps, anchors, poses, log_scale)
    change = prior.log_depth[0].numpy() - small
    log_sigma, dynamic = prior.log_sigma[0].numpy(), None
    if refiner is not None:
        out = held_out(anchors)
        with single_thread():
            part = dense_prior(maps, anchors.select(~out), poses, log_scale)[0] if out.any() else prior
        test = anchor_maps(anchors.select(out), small.shape, (height, width))
        clip = network_clip(images, camera, *small.shape[1:])
        prediction = refined(refiner(*clip, part), prior, part, clip[1], *test)
        change = prediction.log_depth[0].float().cpu().numpy() - small
        log_sigma = prediction.log_scale[0].float().cpu().numpy()
        if prediction.knows_moving:
            dynamic = np.stack(
                [_enlarged(one, width, height) for one in torch.sigmoid(prediction.dynamic[0].float()).cpu().numpy()]
            )
    moved = np.stack([_enlarged(one, width, height) for one in change])
    sigma = np.stack([_enlarged(np.exp(one), width, height) for one in log_sigma])
    logs, filled = _filled_logs(maps, log_scale)
    kept = maps.measured[:, None, None]
    depth = np.where(np.isfinite(logs), np.exp(np.where(kept, filled, filled + moved)), 0).astype(np.float32)
    sigma = np.where(kept, maps.sigma, np.clip(sigma, MIN_SIGMA, MAX_SIGMA)).astype(np.float32)
    return DepthMaps(depth, sigma, maps.measured), dynamic


def dense_prior(
    maps: DepthMaps, anchors: Anchors, poses: np.ndarray, log_scale: np.ndarray | None = None
) -> tuple[PointmapPrior, np.ndarray]:
    """The geometric prior of a clip at the working size, and the log depth (F, h, w) that it moves.

    Arguments are those of `correct_depth`.
    """
    import torch

    from worldstereo_ros.models.pointmaps.prior import anchored_prior

    frames, height, width = maps.depth.shape
    rows, columns = work_size(height, width)
    _, filled = _filled_logs(maps, log_scale)
    small = np.stack([resize_image(one.astype(np.float32), columns, rows) for one in filled])
    doubt = np.stack([resize_image(np.log(one), columns, rows) for one in maps.sigma])
    target, weight = anchor_maps(anchors, (frames, rows, columns), (height, width))
    first = np.linalg.inv(poses[0]) @ poses
    tensors = (
        torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None]
        for array in (small, doubt, first, target, weight)
    )
    return anchored_prior(*tensors), small


def held_out(anchors: Anchors) -> np.ndarray:
    """(A,) bool, anchors of one point in `HELD_OUT`, in all frames that see it; none where they would be too few."""
    out = anchors.point % HELD_OUT == 0
    return out if out.sum() >= MIN_HELD_OUT else np.zeros_like(out)


def network_clip(images: np.ndarray, camera: Camera, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (1, F, 3, rows, columns) in [-1, 1] and intrinsics (1, 4) of a clip, for networks."""
    import torch

    pictures = np.stack([resize_image(image, columns, rows) for image in images])
    clip = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2) / 127.5 - 1, dtype=np.float32))[None]
    reduced = camera.resized(columns, rows)
    return clip, torch.tensor([[reduced.fx, reduced.fy, reduced.cx, reduced.cy]], dtype=torch.float32)


def _filled_logs(maps: DepthMaps, log_scale: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Scaled log depth (F, H, W), NaN or infinite where it is unknown, and the same with the median there."""
    scale = np.zeros(len(maps.depth)) if log_scale is None else log_scale
    logs = log_depth_of(maps.depth) + scale[:, None, None]
    return logs, np.where(np.isfinite(logs), logs, _middle(logs))


def _middle(logs: np.ndarray) -> float:
    known = logs[np.isfinite(logs)]
    return float(np.median(known)) if known.size else 0.0


def _enlarged(values: np.ndarray, width: int, height: int) -> np.ndarray:
    return cv2.resize(values.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)


def anchor_maps(anchors: Anchors, shape: tuple[int, int, int], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Log depth and weight (F, h, w) of anchors at the working size; of two in a pixel the surer one."""
    target, weight = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    if not len(anchors.frame):
        return target, weight
    error = np.minimum(ANCHOR_ERROR + ANCHOR_PIXEL_ERROR / np.maximum(anchors.parallax, 0.5), 0.6)
    sure = np.clip(SURE_ANCHOR / np.maximum(error, SURE_ANCHOR), MIN_ANCHOR_WEIGHT, 1.0)
    scale = np.array([shape[2] / size[1], shape[1] / size[0]])
    at = np.rint((anchors.pixel + 0.5) * scale - 0.5).astype(np.int64)
    column, row = np.clip(at[:, 0], 0, shape[2] - 1), np.clip(at[:, 1], 0, shape[1] - 1)
    order = np.argsort(sure, kind="stable")
    target[anchors.frame[order], row[order], column[order]] = anchors.log_depth[order]
    weight[anchors.frame[order], row[order], column[order]] = sure[order]
    return target, weight
