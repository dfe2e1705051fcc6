"""The joint solve: derivatives against differences, exact data, outliers, and what stays fixed."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.similarity import pose_errors
from worldstereo_ros.pipelines.pointmaps.joint_solve import Observations, SolveSettings, _Problem, solve_jointly

CAMERA = Camera.from_fov(320, 240, np.radians(70))
FRAMES, POINTS = 5, 60


def scene(noise_px: float = 0.0, outliers: int = 0, bend: float = 0.0, seed: int = 0):
    """(observations, true poses, true log depths) of random points that begin in the first three frames."""
    random = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (FRAMES, 1, 1))
    for f in range(1, FRAMES):
        poses[f, :3, :3] = Rotation.from_rotvec(random.normal(0, 0.03, 3) * f).as_matrix()
        poses[f, :3, 3] = [0.15 * f, 0.02 * f, 0.05 * f]
    anchor = np.arange(POINTS) % 3
    pixel = random.uniform([20, 20], [300, 220], (POINTS, 2))
    depth = random.uniform(2, 6, POINTS)
    rays = np.stack([(pixel[:, 0] - CAMERA.cx) / CAMERA.fx, (pixel[:, 1] - CAMERA.cy) / CAMERA.fy, np.ones(POINTS)], 1)
    world = np.einsum("nij,nj->ni", poses[anchor, :3, :3], rays * depth[:, None]) + poses[anchor, :3, 3]
    point, frame = np.nonzero(np.arange(FRAMES)[None] != anchor[:, None])
    local = np.einsum("mij,mj->mi", invert_pose(poses)[frame, :3, :3], world[point]) + invert_pose(poses)[frame, :3, 3]
    seen = local[:, :2] / local[:, 2:] * [CAMERA.fx, CAMERA.fy] + [CAMERA.cx, CAMERA.cy]
    seen += random.normal(0, 1, seen.shape) * noise_px
    seen[random.permutation(len(seen))[:outliers]] += random.uniform(20, 60, (outliers, 2))
    prior = np.log(depth) + bend * (pixel[:, 0] / 160 - 1)
    prior[::7] = np.nan
    fixed = np.arange(FRAMES) == 0
    observations = Observations(anchor, pixel, prior, np.full(POINTS, 0.2), point, frame, seen, fixed)
    return observations, poses, np.log(depth)


def disturbed(poses: np.ndarray, size: float = 0.03, seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    out = poses.copy()
    for f in range(1, len(poses)):
        out[f, :3, :3] = Rotation.from_rotvec(random.normal(0, size, 3)).as_matrix() @ poses[f, :3, :3]
        out[f, :3, 3] += random.normal(0, size, 3)
    return out


@pytest.mark.parametrize("with_focal", [False, True])
def test_the_gradient_is_that_of_the_cost(with_focal):
    observations, poses, logs = scene(noise_px=1.0, outliers=10, bend=0.1)
    problem = _Problem(observations, CAMERA, SolveSettings(solve_focal=with_focal))
    state = problem.start(disturbed(poses), logs + 0.1)
    state = replace(state, log_focal=0.05 if with_focal else 0.0, log_scale=np.linspace(-0.1, 0.2, FRAMES))
    system = problem.linearise(state)
    from worldstereo_ros.pipelines.pointmaps.joint_solve import _exponential

    def cost_at(column: int, step: float) -> float:
        moves = np.zeros((FRAMES, 6))
        scale, focal = state.log_scale.copy(), state.log_focal
        if column < 6 * FRAMES:
            moves[column // 6, column % 6] = step
        elif column < 7 * FRAMES:
            scale[column - 6 * FRAMES] += step
        else:
            focal += step
        return problem.cost(replace(state, poses=_exponential(moves) @ state.poses, log_scale=scale, log_focal=focal))

    columns = [*range(6, 7 * FRAMES), *([7 * FRAMES] if with_focal else [])]
    for column in columns:
        numeric = (cost_at(column, 1e-6) - cost_at(column, -1e-6)) / 2e-6
        assert numeric == pytest.approx(-2 * system.camera_right[column], rel=1e-4, abs=0.05), column
    for point in (0, 7, 20):
        up, down = (replace(state, log_depth=state.log_depth + h * (np.arange(POINTS) == point)) for h in (1e-6, -1e-6))
        numeric = (problem.cost(up) - problem.cost(down)) / 2e-6
        assert numeric == pytest.approx(-2 * system.depth_right[point], rel=1e-4, abs=0.05)


def test_the_reduced_system_gives_the_step_of_the_full_one():
    observations, poses, logs = scene(noise_px=0.5)
    problem = _Problem(observations, CAMERA, SolveSettings())
    system = problem.linearise(problem.start(disturbed(poses), logs))
    reduced, right, depth = problem._reduced(system, 0.0)
    free = problem.free
    step = np.linalg.solve(reduced[np.ix_(free, free)], right[free])
    full = np.block([[system.camera, system.cross], [system.cross.T, np.diag(system.depth)]])
    keep = np.r_[free, np.ones(POINTS, bool)]
    both = np.linalg.solve(full[np.ix_(keep, keep)], np.r_[system.camera_right, system.depth_right][keep])
    np.testing.assert_allclose(step, both[: free.sum()], rtol=1e-5, atol=1e-7)
    assert (depth > 0).all()


def test_exact_data_are_solved_exactly():
    observations, poses, logs = scene()
    found = solve_jointly(
        observations, CAMERA, disturbed(poses), logs + np.random.default_rng(2).normal(0, 0.2, POINTS)
    )
    assert np.median(found.errors_px) < 0.01
    assert pose_errors(found.world_from_camera, poses).positions.max() < 1e-3
    np.testing.assert_allclose(found.log_depth, logs, atol=0.02)
    np.testing.assert_array_equal(found.world_from_camera[0], np.eye(4))


def test_outliers_and_a_bent_prior_do_not_pull():
    observations, poses, logs = scene(noise_px=0.3, outliers=30, bend=0.3)
    found = solve_jointly(observations, CAMERA, disturbed(poses), logs)
    assert pose_errors(found.world_from_camera, poses).positions.max() < 0.01
    assert (found.errors_px > 10).sum() >= 25
    assert found.cost < found.cost_before


def test_the_prior_alone_tells_the_scale():
    observations, poses, logs = scene()
    grown = replace(observations, prior=observations.prior + np.log(2))
    start = disturbed(poses)
    found = solve_jointly(grown, CAMERA, start, logs, SolveSettings(sigma_scale=0.01))
    np.testing.assert_allclose(found.log_depth - logs, np.log(2), atol=0.05)
    np.testing.assert_allclose(found.world_from_camera[:, :3, 3], 2 * poses[:, :3, 3], atol=0.03)


def test_fixed_poses_stay():
    observations, poses, logs = scene(noise_px=0.3)
    held = replace(observations, fixed=np.ones(FRAMES, bool))
    found = solve_jointly(held, CAMERA, poses, logs + 0.3)
    np.testing.assert_allclose(found.world_from_camera, poses, atol=1e-9)
    np.testing.assert_allclose(found.log_depth, logs, atol=0.1)


def test_a_wrong_focal_length_is_found():
    observations, poses, logs = scene()
    wrong = Camera(320, 240, CAMERA.fx * 1.2, CAMERA.fy * 1.2, CAMERA.cx, CAMERA.cy)
    settings = SolveSettings(solve_focal=True, iterations=100, tolerance=1e-9)
    found = solve_jointly(observations, wrong, poses, logs, settings)
    assert found.focal_factor == pytest.approx(1 / 1.2, rel=0.03)


def test_the_covariance_grows_with_noise_of_fewer_points():
    observations, poses, logs = scene()
    every = solve_jointly(observations, CAMERA, poses, logs)
    few = np.isin(observations.point, np.arange(0, POINTS, 4))
    fewer = replace(
        observations, point=observations.point[few], frame=observations.frame[few], seen_at=observations.seen_at[few]
    )
    part = solve_jointly(fewer, CAMERA, poses, logs)
    assert (np.trace(part.covariance[1:], axis1=1, axis2=2) > np.trace(every.covariance[1:], axis1=1, axis2=2)).all()
    assert not every.covariance[0].any()
