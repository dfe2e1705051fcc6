"""Poses, depths of points and scales of depth maps, solved together from tracks and a depth prior.

A point lies on the ray of its first observation; its logarithmic depth is its only unknown. The cost is

    sum over observations of  cauchy(reprojection error / sigma_px)
  + sum over points of        cauchy((log z - log z_prior - a_k) / sigma_prior)
  + sum over frames of        ((a_k - a_(k-1)) / sigma_walk)^2,   a_0 / sigma_scale

where a_k is the scale of the depth map of the frame that a point begins in. Derivatives are analytic; the depths are
eliminated by the Schur complement (Triggs et al., Bundle Adjustment - A Modern Synthesis, 2000, section 6), so that a
step solves for 6 numbers a pose and one a scale. Robust costs are reweighted (IRLS) in a Levenberg-Marquardt loop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose

MIN_DEPTH_RATIO = 0.02  # of a point's depth in its first frame; nearer to another camera it is as good as behind it
MAX_RESIDUAL = 1e3


@dataclass(frozen=True)
class SolveSettings:
    """What the solver assumes.

    Attributes:
        sigma_px: standard deviation of a tracked position.
        cauchy: residuals, in standard deviations, from where on they count less.
        sigma_walk: of the logarithmic scale from one depth map to the next.
        sigma_scale: of the logarithmic scale of the first depth map.
        iterations: most steps.
        tolerance: relative decrease of the cost that ends the loop.
        solve_focal: the focal length is unknown, too.
        sigma_focal: of its logarithm about the one given.
    """

    sigma_px: float = 0.5
    cauchy: float = 2.0
    sigma_walk: float = 0.05
    sigma_scale: float = 0.5
    iterations: int = 40
    tolerance: float = 1e-5
    solve_focal: bool = False
    sigma_focal: float = 0.3


@dataclass(frozen=True)
class Observations:
    """N points seen M times in other frames than their first.

    Attributes:
        anchor: (N,) frame in which a point begins.
        pixel: (N, 2) where it begins.
        prior: (N,) log of the depth that the depth map has there; NaN without one.
        sigma: (N,) standard deviation of that.
        point, frame: (M,) which point is seen, and in which frame.
        seen_at: (M, 2) pixel where.
        fixed: (F,) bool, poses that stay as they are; at least one.
    """

    anchor: np.ndarray
    pixel: np.ndarray
    prior: np.ndarray
    sigma: np.ndarray
    point: np.ndarray
    frame: np.ndarray
    seen_at: np.ndarray
    fixed: np.ndarray


@dataclass(frozen=True)
class Solution:
    """What was solved.

    Attributes:
        world_from_camera: (F, 4, 4).
        log_depth: (N,) of the points in the frame where they begin.
        log_scale: (F,) of the depth maps.
        focal_factor: of both focal lengths; 1 where they are known.
        errors_px: (M,) reprojection errors; inf for points behind a camera.
        prior_errors: (N,) errors of the prior after its scale, in logarithms; NaN without one.
        cost_before, cost: robust cost at the start and at the end.
        iterations: number of steps.
        covariance: (F, 6, 6) of each pose: rotation and translation of camera_from_world, from the left.
    """

    world_from_camera: np.ndarray
    log_depth: np.ndarray
    log_scale: np.ndarray
    focal_factor: float
    errors_px: np.ndarray
    prior_errors: np.ndarray
    cost_before: float
    cost: float
    iterations: int
    covariance: np.ndarray


def solve_jointly(
    observations: Observations,
    camera: Camera,
    world_from_camera: np.ndarray,
    log_depth: np.ndarray,
    settings: SolveSettings | None = None,
) -> Solution:
    """Minimises the cost of the module from a start.

    Args:
        observations: what is seen.
        camera: intrinsics.
        world_from_camera: (F, 4, 4) start.
        log_depth: (N,) start.
        settings: assumptions.
    """
    problem = _Problem(observations, camera, settings or SolveSettings())
    state = problem.start(world_from_camera, log_depth)
    cost = before = problem.cost(state)
    damping, steps = 1e-3, 0
    for _ in range(problem.settings.iterations):
        steps += 1
        system = problem.linearise(state)
        improved = False
        for _ in range(8):
            trial = problem.stepped(state, system, damping)
            new = problem.cost(trial) if trial is not None else np.inf
            if new < cost:
                improved = True
                break
            damping = min(damping * 8, 1e8)
        if not improved:
            break
        assert trial is not None
        decrease = (cost - new) / max(cost, 1e-12)
        state, cost, damping = trial, new, max(damping / 5, 1e-9)
        if decrease < problem.settings.tolerance:
            break
    return problem.solution(state, before, cost, steps)


@dataclass(frozen=True)
class _State:
    poses: np.ndarray  # camera_from_world
    log_depth: np.ndarray
    log_scale: np.ndarray
    log_focal: float


@dataclass(frozen=True)
class _System:
    camera: np.ndarray  # (D, D) normal matrix of poses, scales and focal length
    camera_right: np.ndarray
    cross: np.ndarray  # (D, N)
    depth: np.ndarray  # (N,) diagonal
    depth_right: np.ndarray


class _Problem:
    def __init__(self, observations: Observations, camera: Camera, settings: SolveSettings) -> None:
        order = np.lexsort((observations.frame, observations.anchor[observations.point]))
        self.order = order
        self.obs, self.camera, self.settings = observations, camera, settings
        self.point, self.frame = observations.point[order], observations.frame[order]
        self.seen_at = observations.seen_at[order]
        self.first = observations.anchor[self.point]
        self.frames, self.points = len(observations.fixed), len(observations.anchor)
        self.size = 7 * self.frames + 1
        pairs = self.first * self.frames + self.frame
        self.pair_start = np.flatnonzero(np.r_[True, np.diff(pairs) > 0]) if len(pairs) else np.zeros(0, np.int64)
        self.pair = pairs[self.pair_start] if len(pairs) else pairs
        self.has_prior = np.isfinite(observations.prior)
        self.centred = observations.pixel - [camera.cx, camera.cy]
        free = np.ones(self.size, bool)
        free[: 6 * self.frames] = np.repeat(~observations.fixed, 6)
        free[-1] = settings.solve_focal
        self.free = free

    def start(self, world_from_camera: np.ndarray, log_depth: np.ndarray) -> _State:
        scale = np.zeros(self.frames)
        # Each scale starts at the median of what the points that begin there say.
        difference = log_depth - self.obs.prior
        last = 0.0
        for frame in range(self.frames):
            rows = self.has_prior & (self.obs.anchor == frame)
            last = float(np.median(difference[rows])) if rows.sum() >= 5 else last
            scale[frame] = last
        return _State(invert_pose(world_from_camera), np.asarray(log_depth, np.float64).copy(), scale, 0.0)

    # --- cost ---

    def _rays(self, log_focal: float) -> np.ndarray:
        factor = np.exp(-log_focal)
        x, y = self.centred[:, 0] / self.camera.fx * factor, self.centred[:, 1] / self.camera.fy * factor
        return np.stack([x, y, np.ones(len(x))], axis=1)

    def _project(self, state: _State) -> tuple[np.ndarray, ...]:
        """Points in their first camera (N, 3); in the other one (M, 3); rotations between (M, 3, 3); residuals."""
        local = self._rays(state.log_focal) * np.exp(state.log_depth)[:, None]
        relative = np.einsum("fij,gkj->gfik", state.poses[:, :3, :3], state.poses[:, :3, :3])  # [first, frame]
        offset = state.poses[None, :, :3, 3] - np.einsum("gfij,gj->gfi", relative, state.poses[:, :3, 3])
        turn, shift = relative[self.first, self.frame], offset[self.first, self.frame]
        there = np.einsum("mij,mj->mi", turn, local[self.point]) + shift
        z = there[:, 2]
        ahead = z > MIN_DEPTH_RATIO * local[self.point, 2]
        depth = np.where(ahead, z, 1.0)
        factor = np.exp(state.log_focal)
        focal = np.array([self.camera.fx, self.camera.fy]) * factor
        image = there[:, :2] / depth[:, None] * focal + [self.camera.cx, self.camera.cy]
        residual = np.where(ahead[:, None], (image - self.seen_at) / self.settings.sigma_px, MAX_RESIDUAL)
        return local, there, turn, residual, ahead

    def _prior_residual(self, state: _State) -> np.ndarray:
        residual = (state.log_depth - self.obs.prior - state.log_scale[self.obs.anchor]) / self.obs.sigma
        return np.where(self.has_prior, residual, 0.0)

    def _robust(self, squared: np.ndarray) -> np.ndarray:
        c2 = self.settings.cauchy**2
        return c2 * np.log1p(squared / c2)

    def cost(self, state: _State) -> float:
        *_, residual, _ = self._project(state)
        total = self._robust((residual**2).sum(axis=1)).sum() + self._robust(self._prior_residual(state) ** 2).sum()
        walk = np.diff(state.log_scale) / self.settings.sigma_walk
        total += (walk**2).sum() + (state.log_scale[0] / self.settings.sigma_scale) ** 2
        if self.settings.solve_focal:
            total += (state.log_focal / self.settings.sigma_focal) ** 2
        return float(total)

    # --- one step ---

    def linearise(self, state: _State) -> _System:
        F, N = self.frames, self.points
        local, there, turn, residual, ahead = self._project(state)
        c2 = self.settings.cauchy**2
        weight = np.where(ahead, 1 / (1 + (residual**2).sum(axis=1) / c2), 0.0)
        factor = np.exp(state.log_focal)
        z = np.where(ahead, there[:, 2], 1.0)
        scale = np.array([self.camera.fx, self.camera.fy]) * factor / self.settings.sigma_px
        image = np.zeros((len(z), 2, 3))
        image[:, 0, 0], image[:, 1, 1] = scale[0] / z, scale[1] / z
        image[:, 0, 2], image[:, 1, 2] = -scale[0] * there[:, 0] / z**2, -scale[1] * there[:, 1] / z**2
        turned = np.einsum("mij,mjk->mik", image, turn)  # derivative by the point in its first camera
        begun = local[self.point]
        # Columns: first camera (rotation, translation), other camera, depth, focal length.
        J = np.empty((len(z), 2, 14))
        J[:, :, 0:3] = np.einsum("mij,mjk->mik", turned, _cross(begun))
        J[:, :, 3:6] = -turned
        J[:, :, 6:9] = -np.einsum("mij,mjk->mik", image, _cross(there))
        J[:, :, 9:12] = image
        J[:, :, 12] = np.einsum("mij,mj->mi", turned, begun)
        on_axis = begun * [1.0, 1.0, 0.0]
        J[:, :, 13] = there[:, :2] / z[:, None] * scale - np.einsum("mij,mj->mi", turned, on_axis)
        weighted = J * weight[:, None, None]
        blocks = np.einsum("mri,mrj->mij", weighted, J)
        right = -np.einsum("mri,mr->mi", weighted, residual)
        H, g = np.zeros((self.size, self.size)), np.zeros(self.size)
        cross, diagonal, depth_right = np.zeros((self.size, N)), np.zeros(N), np.zeros(N)
        if len(z):
            sums, rights = np.add.reduceat(blocks, self.pair_start), np.add.reduceat(right, self.pair_start)
            for pair, block, vector in zip(self.pair, sums, rights, strict=True):
                one, other = divmod(int(pair), F)
                columns = np.r_[6 * one : 6 * one + 6, 6 * other : 6 * other + 6, self.size - 1]
                parts = np.r_[0:12, 13]
                H[np.ix_(columns, columns)] += block[np.ix_(parts, parts)]
                g[columns] += vector[parts]
            np.add.at(diagonal, self.point, blocks[:, 12, 12])
            np.add.at(depth_right, self.point, right[:, 12])
            six = np.arange(6)
            rows = 6 * self.first[:, None] + six
            np.add.at(cross, (rows, self.point[:, None]), blocks[:, 0:6, 12])
            rows = 6 * self.frame[:, None] + six
            cross[rows, self.point[:, None]] += blocks[:, 6:12, 12]  # each pair of frame and point occurs once
            np.add.at(cross[-1], self.point, blocks[:, 13, 12])
        prior = self._prior_residual(state)
        information = np.where(self.has_prior, 1 / (1 + prior**2 / c2) / self.obs.sigma**2, 0.0)
        pull = information * prior * self.obs.sigma
        at = 6 * F + self.obs.anchor
        diagonal += information
        depth_right -= pull
        np.add.at(H, (at, at), information)
        np.add.at(g, at, pull)
        cross[at, np.arange(N)] -= information
        self._add_walk(H, g, state)
        return _System(H, g, cross, diagonal, depth_right)

    def _add_walk(self, H: np.ndarray, g: np.ndarray, state: _State) -> None:
        F, s = self.frames, self.settings
        base = 6 * F
        weight = 1 / s.sigma_walk**2
        for k in range(1, F):
            difference = state.log_scale[k] - state.log_scale[k - 1]
            i, j = base + k - 1, base + k
            H[i, i] += weight
            H[j, j] += weight
            H[i, j] -= weight
            H[j, i] -= weight
            g[i] += weight * difference
            g[j] -= weight * difference
        H[base, base] += 1 / s.sigma_scale**2
        g[base] -= state.log_scale[0] / s.sigma_scale**2
        if s.solve_focal:
            H[-1, -1] += 1 / s.sigma_focal**2
            g[-1] -= state.log_focal / s.sigma_focal**2

    def _reduced(self, system: _System, damping: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        depth = system.depth * (1 + damping) + 1e-9
        scaled = system.cross / depth
        S = system.camera - scaled @ system.cross.T
        S[np.diag_indices_from(S)] += damping * np.diag(system.camera) + 1e-9
        return S, system.camera_right - scaled @ system.depth_right, depth

    def stepped(self, state: _State, system: _System, damping: float) -> _State | None:
        S, right, depth = self._reduced(system, damping)
        free = self.free
        try:
            part = np.linalg.solve(S[np.ix_(free, free)], right[free])
        except np.linalg.LinAlgError:
            return None
        step = np.zeros(self.size)
        step[free] = part
        deeper = (system.depth_right - system.cross.T @ step) / depth
        if not (np.isfinite(step).all() and np.isfinite(deeper).all()):
            return None
        F = self.frames
        moves = _exponential(step[: 6 * F].reshape(F, 6))
        return _State(
            moves @ state.poses,
            state.log_depth + np.clip(deeper, -1.0, 1.0),
            state.log_scale + np.clip(step[6 * F : 7 * F], -1.0, 1.0),
            state.log_focal + float(np.clip(step[-1], -0.3, 0.3)),
        )

    def solution(self, state: _State, before: float, cost: float, iterations: int) -> Solution:
        *_, residual, ahead = self._project(state)
        errors = np.empty(len(residual))
        errors[self.order] = np.where(ahead, np.linalg.norm(residual, axis=1) * self.settings.sigma_px, np.inf)
        prior = self._prior_residual(state) * self.obs.sigma
        S, _, _ = self._reduced(self.linearise(state), 0.0)
        covariance = np.zeros((self.frames, 6, 6))
        free = np.flatnonzero(self.free)
        try:
            inverse = np.zeros((self.size, self.size))
            inverse[np.ix_(free, free)] = np.linalg.inv(S[np.ix_(free, free)])
            for frame in range(self.frames):
                covariance[frame] = inverse[6 * frame : 6 * frame + 6, 6 * frame : 6 * frame + 6]
        except np.linalg.LinAlgError:
            covariance[~self.obs.fixed] = np.inf
        poses = _orthonormal(state.poses)
        return Solution(
            invert_pose(poses), state.log_depth, state.log_scale, float(np.exp(state.log_focal)), errors,
            np.where(self.has_prior, prior, np.nan), before, cost, iterations, covariance,
        )  # fmt: skip


def _cross(vectors: np.ndarray) -> np.ndarray:
    """(N, 3, 3) matrices of the cross product with vectors (N, 3)."""
    out = np.zeros((len(vectors), 3, 3))
    x, y, z = vectors.T
    out[:, 0, 1], out[:, 0, 2], out[:, 1, 2] = -z, y, -x
    out[:, 1, 0], out[:, 2, 0], out[:, 2, 1] = z, -y, x
    return out


def _exponential(steps: np.ndarray) -> np.ndarray:
    """(F, 4, 4) rigid motions of steps (F, 6), rotation before translation; both act at once, to first order."""
    from scipy.spatial.transform import Rotation

    out = np.tile(np.eye(4), (len(steps), 1, 1))
    out[:, :3, :3] = Rotation.from_rotvec(steps[:, :3]).as_matrix()
    out[:, :3, 3] = steps[:, 3:]
    return out


def _orthonormal(poses: np.ndarray) -> np.ndarray:
    """Poses with rotations that are orthonormal again after many products."""
    out = poses.copy()
    u, _, vt = np.linalg.svd(poses[:, :3, :3])
    out[:, :3, :3] = u @ vt
    return out
