"""How precisely a bundle adjustment determines its poses: what the errors of the features leave open.

The covariance of the poses follows from the normal equations of the adjustment, with the points eliminated (Schur
complement; Triggs et al., Bundle Adjustment - A Modern Synthesis, 1999, sections 6 and 9). A reconstruction from
photographs alone has no frame and no unit, so that its errors are those that are left after the similarity that fits
its poses best.

Errors of features are not independent: a feature is off in the same way in several photographs. `CORRELATION` is
measured for that. What no covariance shows is another solution; `restarts.py` looks for those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import block_diag, csr_matrix

from worldstereo_ros.reconstruction.sparse_model import SparseModel

# Errors of poses over those that features with independent errors give: of the fox 2.2 with known and 2.8 with
# estimated intrinsics, of a walk through an office about 5, with the errors of its own truth; photographs that are
# placed have 2.6.
CORRELATION = 8**0.5
# Of a camera that is not known: relative change of its focal length, radial distortion, and the principal point, which
# is in the middle of the picture up to this share of its size.
INTRINSICS, CENTRE_SHIFT = 4, 0.015
MIN_VARIANCE_PX2 = 0.01  # of a coordinate of a feature; simulated pictures have less, real ones do not
DAMPING = 1e-9  # of the diagonal of a point, whose rays may be parallel
SAID_SHARE, SAID_DEG = 0.01, 1.0  # uncertainties that are said
# Differences to other solutions, or uncertainties of a whole, with which poses are not accepted. Share of the diameter.
MAX_SHARE, MAX_DEG = 0.05, 5.0


@dataclass(frozen=True)
class PosePrecision:
    """Standard deviations of the poses of a model, up to a similarity.

    Attributes:
        positions: (N,) of the centres, in the unit of the model.
        degrees: (N,) of the rotations.
        share: root mean square of `positions` over the diameter of the walk: the largest distance of two centres.
    """

    positions: np.ndarray
    degrees: np.ndarray
    share: float

    @property
    def rotation(self) -> float:
        """Root mean square of `degrees`."""
        return float(np.sqrt((self.degrees**2).mean()))


def pose_precision(model: SparseModel, intrinsics_known: Sequence[bool]) -> PosePrecision | None:
    """Standard deviations of poses by the covariance of their adjustment.

    Args:
        model: adjusted poses, points and intrinsics. Its reprojection errors say how precise the features are.
        intrinsics_known: whether the intrinsics of each photograph are known; those of others were estimated, one set
            for all photographs with the same values.

    Returns:
        None if the model does not determine its poses at all.
    """
    count, points = len(model), len(model.points)
    cameras = [c.camera for c in model.calibrations]
    focal = np.array([camera.fx for camera in cameras])
    groups = _groups(model, intrinsics_known)
    size = 6 * count + INTRINSICS * (max(groups) + 1 if groups else 0)
    rows, of_point = model.observed_by, model.observed_point
    rotations, centres = model.world_from_camera[:, :3, :3], model.world_from_camera[:, :3, 3]
    local = np.einsum("mji,mj->mi", rotations[rows], model.points[of_point] - centres[rows])  # in the camera
    if 2 * len(rows) <= size - 7 + 3 * points or not (local[:, 2] > 0).all() or not _diameter(model) > 0:
        return None
    depth = local[:, 2]
    x, y = local[:, 0] / depth, local[:, 1] / depth
    # d(pixel) = f / z [[1, 0, -x], [0, 1, -y]] d(local)
    by_local = np.zeros((len(rows), 2, 3))
    by_local[:, 0, 0] = by_local[:, 1, 1] = 1
    by_local[:, 0, 2], by_local[:, 1, 2] = -x, -y
    by_local *= (focal[rows] / depth)[:, None, None]
    by_point = by_local @ rotations[rows].transpose(0, 2, 1)
    by_rotation = by_local @ _cross_matrices(local)  # of a turn about the axes of the camera
    columns = [6 * rows[:, None] + np.arange(6)]
    values = [np.concatenate([by_rotation, -by_point], axis=2)]
    numbers = np.array(groups)[rows]
    if (numbers >= 0).any():
        radius = x**2 + y**2
        lens = (focal[rows] * (numbers >= 0))[:, None] * np.stack([x, y], axis=1)
        centre = (numbers >= 0)[:, None, None] * np.eye(2)
        columns.append(6 * count + INTRINSICS * np.maximum(numbers, 0)[:, None] + np.arange(INTRINSICS))
        values.append(np.concatenate([np.stack([lens, lens * radius[:, None]], axis=2), centre], axis=2))
    jacobian = _sparse(np.concatenate(columns, axis=1), np.concatenate(values, axis=2), size)
    point_jacobian = _sparse(3 * of_point[:, None] + np.arange(3), by_point, 3 * points)
    blocks = np.zeros((points, 3, 3))
    np.add.at(blocks, of_point, by_point.transpose(0, 2, 1) @ by_point)
    blocks += DAMPING * np.trace(blocks, axis1=1, axis2=2)[:, None, None] * np.eye(3)
    inverse = block_diag(list(np.linalg.inv(blocks)), format="csr")
    coupling = jacobian.T @ point_jacobian
    normal = (jacobian.T @ jacobian - coupling @ inverse @ coupling.T).toarray()
    variance = _variance(model, size, points)
    for number in set(groups) - {-1}:
        camera = cameras[groups.index(number)]
        middle = 6 * count + INTRINSICS * number + 2
        for offset, length in enumerate((camera.width, camera.height)):
            normal[middle + offset, middle + offset] += variance / (CENTRE_SHIFT * length) ** 2
    covariance = _without_gauge(normal, centres, rotations)
    if covariance is None:
        return None
    diagonal = np.maximum(np.diag(covariance)[: 6 * count].reshape(count, 6), 0) * variance * CORRELATION**2
    squares = np.stack([diagonal[:, 3:].sum(axis=1), np.degrees(1) ** 2 * diagonal[:, :3].sum(axis=1)], axis=1)
    if model.other_answers is not None:
        squares += model.other_answers**2
    share = float(np.sqrt(squares[:, 0].mean())) / _diameter(model)
    deviations = np.sqrt(squares)
    return PosePrecision(deviations[:, 0], deviations[:, 1], share)


def describe_precision(precision: PosePrecision | None) -> list[str]:
    """A sentence for the user if poses are uncertain; none if they are well determined, or came along."""
    if precision is None or (precision.share < SAID_SHARE and precision.rotation < SAID_DEG):
        return []
    return [
        f"The photographs determine their poses within {100 * precision.share:.1f} % of the extent of the walk and "
        f"{precision.rotation:.1f} degrees (one standard deviation), so that surfaces of different photographs may not "
        "meet. More photographs in between, with more overlap and taken from other places, make it less."
    ]


def open_photographs(model: SparseModel, intrinsics_known: Sequence[bool]) -> tuple[SparseModel, dict[int, str], str]:
    """Leaves out photographs that another solution, which explains the matches nearly as well, has elsewhere.

    Args:
        model, intrinsics_known: see `pose_precision`.

    Returns:
        (the model without them, number of a photograph -> why it is left out, why the whole model is refused: most of
        it is open; else empty).
    """
    precision = pose_precision(replace(model, other_answers=None), intrinsics_known)
    if precision is not None and (precision.share > MAX_SHARE or precision.rotation > MAX_DEG):
        return (
            model,
            {},
            (
                f"They leave their poses open by {precision.share:.0%} of the extent of the walk and "
                f"{precision.rotation:.0f} degrees."
            ),
        )
    if model.other_answers is None or not (diameter := _diameter(model)) > 0:
        return model, {}, ""
    share, degrees = model.other_answers[:, 0] / diameter, model.other_answers[:, 1]
    is_open = (share > MAX_SHARE) | (degrees > MAX_DEG)
    if 2 * is_open.sum() >= len(model):
        return (
            model,
            {},
            (
                f"Two solutions explain them about as well, which differ by {np.median(degrees):.0f} degrees and "
                f"{np.median(share):.0%} of the extent of the walk, as where most of what they show is one wall."
            ),
        )
    reasons = {
        int(model.photographs[row]): (
            f"Another solution explains the photographs about as well and has it {degrees[row]:.0f} degrees and "
            f"{share[row]:.0%} of the extent of the walk elsewhere. Take more photographs around it."
        )
        for row in np.flatnonzero(is_open)
    }
    return model.subset(np.flatnonzero(~is_open)), reasons, ""


def _diameter(model: SparseModel) -> float:
    centres = model.world_from_camera[:, :3, 3]
    return float(np.linalg.norm(centres[:, None] - centres[None], axis=-1).max())


def _groups(model: SparseModel, intrinsics_known: Sequence[bool]) -> list[int]:
    """Number of the estimated intrinsics of each photograph, -1 = known ones."""
    numbers: dict[tuple[float, ...], int] = {}
    groups = []
    for calibration, known in zip(model.calibrations, intrinsics_known, strict=True):
        camera = calibration.camera
        key = (camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy, *calibration.coefficients)
        groups.append(-1 if known else numbers.setdefault(key, len(numbers)))
    return groups


def _variance(model: SparseModel, size: int, points: int) -> float:
    """Variance of a coordinate of a feature in square pixels, by the reprojection errors."""
    seen = np.bincount(model.observed_point, minlength=points)
    # The mean error of a point is that of distances: of two independent coordinates, sqrt(pi / 2) standard deviations.
    squares = float((seen * model.errors**2).sum()) / (np.pi / 2) * 2
    return max(squares / max(1, 2 * len(model.observed_by) - size - 3 * points), MIN_VARIANCE_PX2)


def _cross_matrices(vectors: np.ndarray) -> np.ndarray:
    """(M, 3, 3) matrices whose product with w is v x w, of (M, 3) v: how v changes when its frame turns by w."""
    x, y, z = vectors.T
    zero = np.zeros(len(vectors))
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)


def _sparse(columns: np.ndarray, values: np.ndarray, width: int) -> csr_matrix:
    """(2 M, width) matrix of (M, K) columns and (M, 2, K) values."""
    count, of_each = columns.shape
    indices = np.repeat(columns[:, None], 2, axis=1)
    pointers = np.arange(0, 2 * count * of_each + 1, of_each)
    return csr_matrix((values.ravel(), indices.ravel(), pointers), shape=(2 * count, width))


def _without_gauge(normal: np.ndarray, centres: np.ndarray, rotations: np.ndarray) -> np.ndarray | None:
    """Covariance, in units of the variance of a feature, after the similarity of `align_poses`.

    Args:
        normal: (6 N + I, 6 N + I) reduced normal matrix: rotation in the camera and centre in the world of each
            photograph, then intrinsics.
        centres, rotations: (N, 3) and (N, 3, 3) world from camera.
    """
    count, size = len(centres), len(normal)
    middle = centres.mean(axis=0)
    spread = float(np.sqrt(((centres - middle) ** 2).sum(axis=1).mean()))
    if not spread > 0:
        return None
    gauge = np.zeros((size, 7))  # changes of the parameters by a shift, a turn and a scale of everything
    per_camera = gauge[: 6 * count].reshape(count, 6, 7)
    per_camera[:, 3:, :3] = np.eye(3)
    per_camera[:, :3, 3:6] = rotations.transpose(0, 2, 1)
    per_camera[:, 3:, 3:6] = -_cross_matrices(centres - middle)
    per_camera[:, 3:, 6] = centres - middle
    fit = np.zeros((7, size))  # the shift, turn and scale of a change
    of_cameras = fit[:, : 6 * count].reshape(7, count, 6)
    of_cameras[:3, :, 3:] = np.eye(3)[:, None] / count
    of_cameras[3:6, :, :3] = rotations.transpose(1, 0, 2) / count
    of_cameras[6, :, 3:] = (centres - middle) / (count * spread**2)
    scale = np.sqrt(np.maximum(np.diag(normal), 1e-12))
    scaled = normal / np.outer(scale, scale)
    basis = np.linalg.qr(gauge * scale[:, None])[0]
    try:
        factor = cho_factor(scaled + basis @ basis.T)
    except np.linalg.LinAlgError:
        return None
    covariance = cho_solve(factor, np.eye(size)) / np.outer(scale, scale)
    removed = np.eye(size) - gauge @ fit  # what of a change is no similarity (an S-transformation, Baarda 1973)
    return removed @ covariance @ removed.T
