"""Perspective views of a panorama: their directions, and that every pixel shows the right direction."""

import numpy as np
import pytest
from helpers.panoramas import sphere_directions
from safetensors.numpy import load_file

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose, pose_from_quaternion
from worldstereo_ros.imaging.codecs import ImageError
from worldstereo_ros.io.images import read_image
from worldstereo_ros.panorama.perspective_views import (
    PUBLISHED_WORLD_FROM_PANORAMA,
    bank_camera,
    bank_poses,
    observation_poses,
    panorama_views,
    pose_from_angles,
)

HEIGHT = 256


def _as_colour(directions: np.ndarray) -> np.ndarray:
    return np.rint((directions + 1) * 127).astype(np.uint8)


def _expected(view, panorama_from_camera: np.ndarray) -> np.ndarray:
    rays = view.camera.rays() @ panorama_from_camera[:3, :3].T
    return (rays / np.linalg.norm(rays, axis=-1, keepdims=True) + 1) * 127


def test_bank_poses_equal_the_published_banks(shared_golden):
    golden = load_file(shared_golden / "geometry.safetensors")
    ours = PUBLISHED_WORLD_FROM_PANORAMA @ bank_poses()
    np.testing.assert_allclose(ours, invert_pose(golden["ret.bank_w2c"].astype(np.float64)), atol=1e-6)
    K = bank_camera().matrix
    K[:2, 2] += 0.5  # published pixel coordinates begin at the corner of the image
    np.testing.assert_allclose(golden["ret.bank_K"], np.repeat(K[None], 27, axis=0), atol=1e-4)


def test_pose_from_angles_turns_right_and_up():
    np.testing.assert_allclose(pose_from_angles(np.pi / 2, 0)[:3, 2], [1, 0, 0], atol=1e-12)  # to the right
    np.testing.assert_allclose(pose_from_angles(0, np.pi / 2)[:3, 2], [0, -1, 0], atol=1e-12)  # up
    axes = bank_poses()[:, :3, 2]
    assert len(np.unique(np.round(axes, 6), axis=0)) == 27
    # The views cover all directions outside the caps around the poles.
    directions = sphere_directions(48)
    covered = np.zeros(directions.shape[:2], dtype=bool)
    for pose in bank_poses():
        x, y, z = np.moveaxis(directions @ pose[:3, :3], -1, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            covered |= (z > 0) & (np.abs(x / z) <= np.tan(np.pi / 3)) & (np.abs(y / z) <= 1)
    elevation = np.degrees(np.arcsin(-directions[..., 1]))
    assert covered[np.abs(elevation) < 71].all()
    assert not covered[np.abs(elevation) > 84].any()


def test_pixels_show_their_direction():
    panorama = _as_colour(sphere_directions(HEIGHT))
    views = list(panorama_views(panorama, camera=bank_camera(208, 120)))
    assert len(views) == 27
    for view, pose in zip(views, bank_poses(), strict=True):
        error = np.abs(view.image - _expected(view, pose))
        # One step of a panorama of 256 rows is 1.6 of 255: rounding twice and a thirty-second of a pixel stay below.
        assert error.max() < 1.6


@pytest.mark.parametrize(("right", "up"), [(np.pi, 0.0), (np.pi - 0.3, 0.4), (0.7, np.pi / 2), (2.0, -np.pi / 2)])
def test_views_are_continuous_at_the_seam_and_the_poles(right, up):
    """Views of the seam or of a pole have no edge, even for a coarse panorama."""
    height = 32
    panorama = _as_colour(sphere_directions(height))
    camera = Camera.from_fov(101, 101, np.radians(60))
    (view,) = panorama_views(panorama, camera=camera, panorama_from_camera=pose_from_angles(right, up)[None])
    error = np.abs(view.image - _expected(view, pose_from_angles(right, up)))
    # Bilinear over 5.6 degrees: the chord lies below the arc by 0.3, and rounding adds up to 1.
    assert error.max() < 2.5


def test_fine_patterns_do_not_alias():
    """Stripes of one pixel in a panorama eight times finer than the view are grey, not a pattern of their own."""
    height = 1024
    stripes = np.zeros((height, 2 * height, 3), np.uint8)
    stripes[:, ::2] = 255
    camera = Camera.from_fov(64, 48, np.radians(70))
    (view,) = panorama_views(stripes, camera=camera, panorama_from_camera=np.eye(4)[None])
    assert abs(float(view.image.mean()) - 127.5) < 3
    assert view.image.astype(float).std() < 12


def test_distances_become_depth_along_the_optical_axis():
    """Inside a box, depth reproduces the planes of its walls."""
    directions = sphere_directions(HEIGHT)
    half = np.array([3.0, 1.5, 2.0])
    with np.errstate(divide="ignore"):
        distance = (half / np.abs(directions)).min(axis=-1).astype(np.float32)
    distance[:4] = 0  # unknown straight up
    distance[100, 30] = np.nan
    panorama = _as_colour(directions)
    (ahead,) = panorama_views(panorama, distance, panorama_from_camera=np.eye(4)[None])
    middle = ahead.depth[200:280, 400:432]
    np.testing.assert_allclose(middle, 2.0, atol=0.01)
    views = panorama_views(panorama, distance, camera=bank_camera(104, 60))
    for view, pose in zip(views, bank_poses(), strict=True):
        points = (view.camera.rays() * view.depth[..., None])[view.depth > 0] @ pose[:3, :3].T
        off = np.abs(np.abs(points) / half - 1).min(axis=1)
        assert np.quantile(off, 0.99) < 0.03
        assert np.isfinite(view.depth).all()


def test_views_have_the_position_of_the_panorama():
    origin = pose_from_quaternion((1, 2, 3), (0, 0, np.sin(0.3), np.cos(0.3)))
    panorama = _as_colour(sphere_directions(16))
    views = list(panorama_views(panorama, world_from_camera=origin, camera=bank_camera(26, 15), stamp_ns=7))
    for view, pose in zip(views, bank_poses(), strict=True):
        np.testing.assert_allclose(view.world_from_camera, origin @ pose, atol=1e-12)
        assert view.stamp_ns == 7
        assert view.depth is None
        assert view.observed is None


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((100, 150, 3), np.uint8), "is 150x100; .* twice as wide as high"),
        (np.zeros((100, 200), np.uint8), "uint8 .* was expected"),
        (np.zeros((100, 200, 3), np.float32), "is float32"),
        (np.zeros((2, 4, 3), np.uint8), "4x2"),
        (np.zeros((1, 2, 3), np.uint8), "2x1"),
    ],
)
def test_panorama_views_rejects_partial_panoramas_immediately(image, message):
    with pytest.raises(ImageError, match=message):
        panorama_views(image)
    with pytest.raises(ImageError, match="distances have shape"):
        panorama_views(np.zeros((100, 200, 3), np.uint8), np.zeros((100, 100)))


def test_overlapping_views_of_a_real_panorama_agree(shared_data):
    """Overlapping views of a real panorama agree where they see the same directions."""
    panorama = read_image(shared_data / "panorama_braunschweig" / "panorama.jpg")
    views = list(panorama_views(panorama, panorama_from_camera=bank_poses()[[0, 3, 7]]))
    a, b = views[0], views[1]
    rays = a.camera.rays() @ (b.world_from_camera[:3, :3].T @ a.world_from_camera[:3, :3]).T
    x, y = rays[..., 0] / rays[..., 2], rays[..., 1] / rays[..., 2]
    column, row = x * b.camera.fx + b.camera.cx, y * b.camera.fy + b.camera.cy
    inside = (rays[..., 2] > 0) & (column > 0) & (column < 831) & (row > 0) & (row < 479)
    assert inside.mean() > 0.4
    import cv2

    seen = cv2.remap(b.image, column.astype(np.float32), row.astype(np.float32), cv2.INTER_LINEAR)
    error = np.abs(seen.astype(int) - a.image.astype(int))[inside]
    assert error.mean() < 6
    unrelated = np.abs(views[2].image.astype(int) - a.image.astype(int)).mean()
    assert unrelated > 5 * error.mean()


def test_observed_views_cover_the_sphere():
    directions = sphere_directions(48)
    covered = np.zeros(directions.shape[:2], dtype=bool)
    poses = observation_poses()
    np.testing.assert_array_equal(poses[:27], bank_poses())
    for pose in poses:
        x, y, z = np.moveaxis(directions @ pose[:3, :3], -1, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            covered |= (z > 0) & (np.abs(x / z) <= np.tan(np.pi / 3)) & (np.abs(y / z) <= 1)
    assert covered.all()


def test_estimated_distances_label_the_views():
    panorama = _as_colour(sphere_directions(64))
    distance = np.full((32, 64), 2, np.float32)
    confidence = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(32, axis=0)
    poses = bank_poses()[[0, 3]]
    for view, measured in zip(
        panorama_views(panorama, distance, panorama_from_camera=poses, estimated=True, confidence=confidence),
        panorama_views(panorama, distance, panorama_from_camera=poses),
        strict=True,
    ):
        assert view.is_observation
        assert view.estimated_mask.all()
        assert not view.observed_mask.any()
        np.testing.assert_array_equal(view.depth, measured.depth)
        assert measured.observed_mask.all()
        assert 0 <= view.depth_confidence.min() < view.depth_confidence.max() <= 1
    with pytest.raises(ImageError, match="confidence"):
        panorama_views(panorama, distance, confidence=confidence[:5])
