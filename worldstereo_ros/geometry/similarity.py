"""Similarity transforms between two reconstructions of one place, and the errors that are left after the best one.

Reconstructions from photographs have an origin, a rotation and a unit of length of their own. A similarity, a rotation
with a translation and one scale, takes one to another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldstereo_ros.utils.errors import InputError

MIN_SPREAD = 1e-9  # of points relative to their distance from the origin; less is one point up to rounding


@dataclass(frozen=True)
class Similarity:
    """target = scale * rotation @ source + translation.

    Attributes:
        scale: positive; length in the target of a unit length of the source.
        rotation: (3, 3) float64.
        translation: (3,) float64, in the target's unit.
    """

    scale: float
    rotation: np.ndarray
    translation: np.ndarray

    @classmethod
    def identity(cls) -> Similarity:
        """The similarity that changes nothing."""
        return cls(1.0, np.eye(3), np.zeros(3))

    def points(self, points: np.ndarray) -> np.ndarray:
        """Moves points (..., 3) of the source; returns (..., 3) float64."""
        return self.scale * np.asarray(points, np.float64) @ self.rotation.T + self.translation

    def poses(self, world_from_camera: np.ndarray) -> np.ndarray:
        """Moves poses (..., 4, 4) of the source; returns (..., 4, 4) float64, which are rigid: the scale moves centres.

        Depths along the optical axis become `scale` times as large.
        """
        poses = np.array(world_from_camera, np.float64)
        poses[..., :3, 3] = self.points(poses[..., :3, 3])
        poses[..., :3, :3] = self.rotation @ poses[..., :3, :3]
        return poses

    def inverse(self) -> Similarity:
        """The similarity from the target to the source."""
        rotation = self.rotation.T
        return Similarity(1 / self.scale, rotation, -rotation @ self.translation / self.scale)

    def after(self, first: Similarity) -> Similarity:
        """This similarity applied to what `first` returns."""
        rotation = self.rotation @ first.rotation
        return Similarity(self.scale * first.scale, rotation, self.points(first.translation))


def align_points(source: np.ndarray, target: np.ndarray, weights: np.ndarray | None = None) -> Similarity:
    """Least-squares similarity between corresponding points (Umeyama, PAMI 1991, equations 34 to 42).

    Args:
        source, target: (N, 3), N >= 3, not on one line.
        weights: (N,) non-negative; None = equal ones.

    Raises:
        InputError: the shapes differ, or the points do not determine a rotation.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 3 or len(source) < 3:
        raise InputError(
            f"The points have shapes {source.shape} and {target.shape}; (N, 3) of both, N >= 3, were expected."
        )
    share = np.full(len(source), 1 / len(source)) if weights is None else np.asarray(weights, np.float64)
    total = float(share.sum())
    if not (np.isfinite(source).all() and np.isfinite(target).all() and (share >= 0).all() and total > 0):
        raise InputError("The points to align are not finite, or their weights are not positive.")
    share = share / total
    middle_source, middle_target = share @ source, share @ target
    around_source, around_target = source - middle_source, target - middle_target
    u, singular, vt = np.linalg.svd(around_target.T @ (share[:, None] * around_source))
    variance = float(share @ (around_source**2).sum(axis=1))
    if singular[1] <= MIN_SPREAD * max(float(singular[0]), np.finfo(float).tiny) or variance <= 0:
        raise InputError("The points to align lie on one line, which leaves the rotation about it open.")
    sign = np.ones(3)
    sign[2] = np.sign(np.linalg.det(u) * np.linalg.det(vt))
    rotation = u @ np.diag(sign) @ vt
    scale = float(singular @ sign) / variance
    return Similarity(scale, rotation, middle_target - scale * rotation @ middle_source)


def align_poses(source: np.ndarray, target: np.ndarray) -> Similarity:
    """Similarity between corresponding camera poses; two of them, or a straight walk, suffice.

    The rotation is the chordal mean of the relative rotations of the cameras (Hartley et al., IJCV 2013), which the
    centres of two cameras leave open; scale and translation are the least squares of the centres under this rotation.

    Args:
        source, target: (N, 4, 4) world_from_camera, N >= 2, at two places at least.

    Raises:
        InputError: the shapes differ, or all cameras are at one place, which leaves the scale open.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if source.shape != target.shape or source.ndim != 3 or source.shape[1:] != (4, 4) or len(source) < 2:
        raise InputError(
            f"The poses have shapes {source.shape} and {target.shape}; (N, 4, 4) of both, N >= 2, were expected."
        )
    rotation = mean_rotation(target[:, :3, :3] @ np.swapaxes(source[:, :3, :3], 1, 2))
    turned, centres = source[:, :3, 3] @ rotation.T, target[:, :3, 3]
    around, around_target = turned - turned.mean(axis=0), centres - centres.mean(axis=0)
    spread = float((around**2).sum())
    if spread <= (MIN_SPREAD * max(1.0, float(np.abs(turned).max()))) ** 2:
        raise InputError("All cameras to align are at one place, which leaves the scale open.")
    scale = float((around * around_target).sum()) / spread
    if not scale > 0:
        raise InputError("The camera centres to align contradict the rotations of the cameras.")
    return Similarity(scale, rotation, centres.mean(axis=0) - scale * turned.mean(axis=0))


def mean_rotation(rotations: np.ndarray) -> np.ndarray:
    """(3, 3) chordal mean of rotations (N, 3, 3): the rotation nearest to the mean matrix."""
    u, _, vt = np.linalg.svd(np.asarray(rotations, np.float64).mean(axis=0))
    return u @ np.diag([1, 1, np.sign(np.linalg.det(u) * np.linalg.det(vt))]) @ vt


@dataclass(frozen=True)
class PoseErrors:
    """Errors of estimated poses after the similarity that fits their centres best to the reference.

    Attributes:
        similarity: reference from estimate.
        positions: (N,) distance of the centres in the unit of the reference.
        degrees: (N,) angle between the rotations.
        ate_percent: root mean square of `positions` in per cent of the diameter of the reference path: the largest
            distance of two of its centres.
    """

    similarity: Similarity
    positions: np.ndarray
    degrees: np.ndarray
    ate_percent: float


def pose_errors(estimated: np.ndarray, reference: np.ndarray) -> PoseErrors:
    """Absolute trajectory error and rotation error (Sturm et al., IROS 2012, with scale).

    Args:
        estimated, reference: (N, 4, 4) world_from_camera of the same cameras. Where centres lie on one line, or there
            are two, the rotations of the cameras take part in the fit.

    Raises:
        InputError: see `align_poses`.
    """
    estimated, reference = np.asarray(estimated, np.float64), np.asarray(reference, np.float64)
    try:
        similarity = align_points(estimated[:, :3, 3], reference[:, :3, 3])
    except InputError:
        similarity = align_poses(estimated, reference)
    moved = similarity.poses(estimated)
    positions = np.linalg.norm(moved[:, :3, 3] - reference[:, :3, 3], axis=1)
    degrees = np.degrees(rotation_angles(moved[:, :3, :3], reference[:, :3, :3]))
    centres = reference[:, :3, 3]
    diameter = float(np.linalg.norm(centres[:, None] - centres[None], axis=-1).max())
    ate = 100 * float(np.sqrt((positions**2).mean())) / diameter if diameter > 0 else float("nan")
    return PoseErrors(similarity, positions, degrees, ate)


def rotation_angles(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(...) angles in radians between rotations (..., 3, 3), precise for small ones."""
    chord = np.linalg.norm(np.asarray(one) - np.asarray(other), axis=(-2, -1))
    return 2 * np.arcsin(np.clip(chord / np.sqrt(8), 0, 1))
