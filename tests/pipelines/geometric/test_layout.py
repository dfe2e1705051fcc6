"""Planes and their extrapolation, in a box-shaped room with known walls. Closing it: test_room_closing.py."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.geometric import layout
from worldstereo_ros.pipelines.geometric.layout import Layout, LayoutEstimator, estimate_layout
from worldstereo_ros.pipelines.geometric.plane_extrapolation import LATENT_PX, PLANE_CHANNELS, render_layout
from worldstereo_ros.pipelines.geometric.registration import Registration
from worldstereo_ros.pipelines.geometric.warped_view import WarpedView

CAMERA = Camera.from_fov(160, 120, np.radians(75))
LOW, HIGH = np.array([-2.5, -1.5, -1.0]), np.array([2.5, 1.0, 4.0])  # corners of the room; y points down
COLOURS = np.array(
    [[200, 60, 60], [60, 200, 60], [240, 240, 240], [110, 80, 40], [30, 30, 30], [60, 60, 200]], np.uint8
)


def room(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth (H, W) and which of the six walls (H, W): x low, x high, y low, y high, z low, z high."""
    rays = CAMERA.rays() @ pose[:3, :3].T
    with np.errstate(divide="ignore"):
        z = np.where(rays > 0, (HIGH - pose[:3, 3]) / rays, (LOW - pose[:3, 3]) / rays)
    axis = z.argmin(axis=-1)
    sign = np.take_along_axis(rays, axis[..., None], axis=-1)[..., 0] > 0
    return z.min(axis=-1).astype(np.float32), 2 * axis + sign


def observe(pose: np.ndarray, board: bool = False, noise: float = 0.0, **changes) -> View:
    """A view of the room, optionally with a grey board before its far wall."""
    depth, wall = room(pose)
    image = COLOURS[wall]
    if board:
        depth[30:90, 50:110], image[30:90, 50:110] = 1.5, 128
    if noise:
        depth = depth + np.random.default_rng(0).normal(0, noise, depth.shape).astype(np.float32) * depth
    return View(image, CAMERA, pose, depth, **changes)


def turned(degrees: float) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("y", degrees, degrees=True).as_matrix()
    return pose


def warped_views(count: int = 1, valid: bool = False) -> list[WarpedView]:
    """Grey views, 2 m away, of which memory shows nothing or everything."""
    shape = (CAMERA.height, CAMERA.width)
    grey, valid_mask = np.full((*shape, 3), 128, np.uint8), np.full(shape, valid)
    depth = np.full(shape, 2, np.float32)
    return [WarpedView(grey, valid_mask, depth, depth * valid, [], Registration.unknown(0))] * count


def detected_planes(views: list[View]) -> Layout:
    """The layout without what is assumed about a room."""
    return estimate_layout(views).without_closing()


def test_estimate_layout_finds_floor_ceiling_and_walls():
    planes = detected_planes([observe(np.eye(4))])
    found = {tuple(plane[:3].round(1) + 0.0): plane[3] for plane in planes.planes}
    for normal, offset in (
        ((0, -1, 0), -1.0),
        ((0, 1, 0), -1.5),
        ((0, 0, -1), -4.0),
        ((1, 0, 0), -2.5),
        ((-1, 0, 0), -2.5),
    ):
        assert found[normal] == pytest.approx(offset, abs=0.01), normal  # normals face the room
    assert len(planes) == 5


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_planes_are_extrapolated_beyond_the_view(noise):
    there = turned(45)
    truth, wall = room(there)
    colour, depth, likely, _ = detected_planes([observe(turned(15), noise=noise)]).render_view(CAMERA, there)
    unseen = np.zeros(truth.shape, bool)
    unseen[:, 100:] = True  # outside the first view
    right = np.abs(depth - truth) < 0.03 * truth
    assert right[unseen].mean() > 0.99
    errors = np.abs(colour[:, :, None] - COLOURS.astype(np.float32)).max(axis=-1)  # to the colour of every wall
    assert (errors.argmin(axis=-1) == wall)[unseen & right].mean() > 0.99
    # The colour is the mean of all planes that a pixel may show. The others' share grows with the distance from the
    # observed part, on a scale that EXTENT_SCALE sets: 0.89 at 1.2, with which the bundled model is trained.
    error = np.take_along_axis(errors, wall[..., None], axis=-1)[..., 0]
    assert (error < 40)[unseen & right].mean() > 0.85
    assert likely.min() >= 0
    assert likely.max() <= 1 + 1e-6


def test_plane_probability_decreases_with_distance():
    close = np.eye(4)
    close[2, 3] = HIGH[2] - 1  # a metre from the wall, which fills the view
    aside = close @ turned(60)
    _, depth, likely, _ = detected_planes([observe(close)]).render_view(CAMERA, aside)
    row = likely[60][depth[60] > 0]
    assert len(row) > 20
    assert (np.diff(row) <= 1e-3).all()
    assert row[0] > row[-1] + 0.2


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.floats(-3, 3), st.floats(-3, 3))
def test_layout_does_not_depend_on_the_world_frame(seed, x, z):
    moved = np.eye(4)
    moved[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    moved[:3, 3] = x, -x, z
    there = turned(30)
    _, depth, likely, _ = detected_planes([observe(np.eye(4))]).render_view(CAMERA, there)
    view = observe(np.eye(4))
    _, again, as_likely, _ = detected_planes([View(view.image, CAMERA, moved, view.depth)]).render_view(
        CAMERA, moved @ there
    )
    certain = np.minimum(likely, as_likely) > 0.5
    assert certain.mean() > 0.7
    near = np.abs(depth - again) < 0.01 * depth + 0.01
    assert near[certain].mean() > 0.95  # a ray beside an edge may fall to its other side


def test_planes_do_not_extend_into_observed_free_space():
    planes = detected_planes([observe(np.eye(4), board=True)])
    _, depth, *_ = planes.render_view(CAMERA, np.eye(4))
    truth, _ = room(np.eye(4))
    beside = np.ones(truth.shape, bool)
    beside[26:94, 46:114] = False
    assert (np.abs(depth - truth) < 0.03 * truth)[beside].mean() > 0.99  # the board's plane does not extend
    assert np.abs(depth[50:70, 70:90] - 1.5).max() < 0.05


def test_a_bounded_plane_extends_less_than_a_wall():
    """A box whose front is surrounded by free space."""
    depth, _ = room(np.eye(4))
    image = np.full((*depth.shape, 3), 128, np.uint8)
    front = depth.copy()
    front[30:90, 50:110] = 1.5
    extents = {}
    for name, z in (("face", front), ("room", depth)):
        for plane in detected_planes([View(image, CAMERA, np.eye(4), z)]).planes:
            if (plane[:3].round(1) == (0, 0, -1)).all():
                extents[name, round(float(-plane[3]), 1)] = float(plane[13])
    assert extents["face", 1.5] < 0.2 * extents["room", 4.0]


def test_a_plane_without_surroundings_does_not_extend():
    view = observe(np.eye(4))
    _, wall = room(np.eye(4))
    alone = View(view.image, CAMERA, np.eye(4), np.where(wall == 5, view.depth, 0))
    colour, depth, likely, _ = detected_planes([alone]).render_view(CAMERA, np.eye(4))
    assert all(np.isfinite(part).all() for part in (colour, depth, likely))
    inside = cv2.erode((wall == 5).astype(np.uint8), np.ones((9, 9))) > 0
    outside = cv2.dilate((wall == 5).astype(np.uint8), np.ones((9, 9))) == 0
    assert likely[inside].min() > 0.9
    assert likely[outside].max() < 0.1


def test_planes_do_not_extend_into_the_sky():
    view = observe(np.eye(4))
    _, wall = room(np.eye(4))
    open_roof = View(view.image, CAMERA, np.eye(4), np.where(wall == 2, 0, view.depth))
    _, depth, likely, _ = detected_planes([open_roof]).render_view(CAMERA, np.eye(4))
    inside = wall == 2
    inside[:-1] &= inside[1:]
    assert not depth[inside][: inside.sum() // 2].any()
    assert likely[:5, 70:90].max() == 0


def test_estimate_layout_ignores_imagined_views():
    view = observe(np.eye(4))
    mask = np.ones(view.depth.shape, bool)
    imagined = View(view.image, CAMERA, np.eye(4), view.depth, observed=mask)
    assert len(estimate_layout([imagined])) == 0
    np.testing.assert_array_equal(estimate_layout([view, imagined]).planes, estimate_layout([view]).planes)


def test_layout_is_empty_without_depth_or_planes():
    view = observe(np.eye(4))
    assert len(estimate_layout([])) == 0
    assert len(estimate_layout([View(view.image, CAMERA, np.eye(4))])) == 0
    assert len(estimate_layout([View(view.image, CAMERA, np.eye(4), np.zeros_like(view.depth))])) == 0
    rough = np.random.default_rng(0).uniform(1, 4, view.depth.shape).astype(np.float32)
    assert len(estimate_layout([View(view.image, CAMERA, np.eye(4), rough)])) == 0


def test_layout_is_deterministic():
    views = [observe(turned(angle), noise=0.01) for angle in (0, 60, 120)]
    one, other = estimate_layout(views), estimate_layout(views)
    np.testing.assert_array_equal(one.planes, other.planes)
    for a, b in zip(
        one.render_view(CAMERA, turned(200)), other.render_view(CAMERA, turned(200), threads=3), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_layout_estimator_samples_only_new_views(monkeypatch):
    sampled = []

    def record(view):
        sampled.append(view)
        return sample_view(view)

    sample_view = layout.sample_view
    monkeypatch.setattr(layout, "sample_view", record)
    views, estimator = [observe(turned(angle)) for angle in (0, 60, 120)], LayoutEstimator()
    first = estimator(views[:2])
    assert estimator(views[:2]) is first
    both = estimator(views)
    assert [id(view) for view in sampled] == [id(view) for view in views]
    np.testing.assert_array_equal(both.planes, estimate_layout(views).planes)
    for _ in range(3 * layout.MAX_VIEWS):
        estimator([observe(np.eye(4))])
    assert len(estimator._samples) <= 2 * layout.MAX_VIEWS


def test_render_view_renders_only_masked_pixels():
    planes, there = estimate_layout([observe(np.eye(4))]), turned(30)
    mask = np.random.default_rng(0).random((CAMERA.height, CAMERA.width)) < 0.3
    for part, whole in zip(
        planes.render_view(CAMERA, there, mask=mask), planes.render_view(CAMERA, there), strict=True
    ):
        np.testing.assert_array_equal(part[mask], whole[mask])
        assert (part[~mask] == (-1 if part.dtype == np.int16 else 0)).all()


@pytest.mark.parametrize("size", [(640, 480), (517, 331)])
def test_large_views_are_interpolated_in_blocks_that_show_the_same(size, monkeypatch):
    """The same planes, and colours within a few grey levels; with a mask and with threads exactly the same."""
    planes = estimate_layout([observe(turned(angle), noise=0.005) for angle in (0, 50)])
    camera, there = CAMERA.resized(*size), turned(90)
    fast = planes.render_view(camera, there)
    mask = np.random.default_rng(0).random((camera.height, camera.width)) < 0.2
    for whole, threaded, part in zip(
        fast,
        planes.render_view(camera, there, threads=3),
        planes.render_view(camera, there, mask=mask),
        strict=True,
    ):
        np.testing.assert_array_equal(whole, threaded)
        np.testing.assert_array_equal(whole[mask], part[mask])
        assert (part[~mask] == (-1 if part.dtype == np.int16 else 0)).all()
    monkeypatch.setattr(layout, "BLOCKS_FROM_PIXELS", 10**9)
    exact = planes.render_view(camera, there)
    assert (fast.plane >= 0).mean() > 0.3
    assert (fast.plane == exact.plane).mean() > 0.995
    same = fast.plane == exact.plane
    assert np.abs(fast.colour - exact.colour)[same].mean() < 0.5
    assert np.abs(fast.probability - exact.probability)[same].max() < 0.05
    np.testing.assert_allclose(fast.depth[same], exact.depth[same], rtol=1e-4)


def test_render_layout_keeps_remembered_pixels():
    planes = estimate_layout([observe(np.eye(4))])
    camera = CAMERA.resized(64, 48)
    rendered = render_layout(planes, warped_views(2, valid=True), camera, np.stack([np.eye(4), turned(45)]))
    assert rendered.images.shape == (2, 3, 48, 64)
    assert rendered.plane_channels.shape == (2, PLANE_CHANNELS, 48 // LATENT_PX, 64 // LATENT_PX)
    np.testing.assert_allclose(rendered.images, 128 / 255, atol=1e-6)
    assert not rendered.plane_channels[:, :3].any()
    np.testing.assert_allclose(rendered.plane_channels[:, 3], np.log(2 / 3), atol=1e-6)


def test_render_layout_blends_planes_into_the_fill_by_probability():
    planes, camera, there = estimate_layout([observe(np.eye(4))]), CAMERA.resized(64, 48), turned(45)
    rendered = render_layout(planes, warped_views(), camera, there[None])
    hit, likely, ratio, _ = rendered.plane_channels[0]
    assert hit.min() > 0.9
    assert (likely <= hit + 1e-6).all()
    truth, _ = room(there)
    floor = rendered.images[0][:, -2, 32] * 255
    assert np.abs(floor - COLOURS[3]).max() < np.abs(128.0 - COLOURS[3]).max() / 2
    far = truth[::20, ::20][:, :8] > 3
    assert ratio[far[: ratio.shape[0]]].mean() > 0  # behind the fill at 2 m
    none = render_layout(estimate_layout([]), warped_views(), camera, there[None])
    np.testing.assert_allclose(none.images, 128 / 255, atol=1e-6)
    assert not none.plane_channels[:, :3].any()


def test_a_lawn_behind_a_window_does_not_colour_the_floor_of_a_room():
    """It lies at the height of the floor, is larger than what was seen of it, and shows few pixels."""
    pose = turned(0)
    rays = CAMERA.rays() @ pose[:3, :3].T
    depth, wall = room(pose)
    image = COLOURS[wall].copy()
    to_ground = np.where(rays[..., 1] > 0.02, 1.0 / np.maximum(rays[..., 1], 0.02), 0)
    window = (wall == 5) & (np.abs(rays[..., 0]) < 0.4) & (to_ground > 0) & (to_ground < 14)
    depth[window] = to_ground[window]
    image[window] = (90, 200, 40)
    layout = estimate_layout([View(image, CAMERA, pose, depth)])
    floor = next(k for k, plane in enumerate(layout.planes) if plane[1] < -0.99)
    assert layout.planes[floor, 13] > 0
    behind = turned(180)
    planes = layout.render_view(CAMERA, behind)
    shown = planes.plane == floor
    assert shown.sum() > 500
    np.testing.assert_allclose(planes.colour[shown].mean(axis=0), COLOURS[3], atol=20)
    assert planes.colour[shown][:, 1].max() < 110  # of 80, and the lawn's 200
