"""Details of surfaces: periods, which texels count, and their continuation."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from helpers.box_room import HIGH, floor_texture, observe, room, turned
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.geometric import plane_details
from worldstereo_ros.pipelines.geometric.detail_rendering import add_details, pack_examples
from worldstereo_ros.pipelines.geometric.layout import estimate_layout
from worldstereo_ros.pipelines.geometric.plane_details import (
    SHARPENING,
    canonical_axes,
    height_profile,
    share_profiles,
    sharpened,
)
from worldstereo_ros.pipelines.geometric.plane_sampling import LEVELS, TEXELS, DetailExample, find_periods

SHARP = Camera.from_fov(320, 240, np.radians(75))
GRID = np.arange(TEXELS)


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_canonical_axes_span_the_plane(seed):
    normal, up, axis = Rotation.random(random_state=seed).as_matrix()
    normal = Rotation.random(random_state=seed + 1).apply(normal)
    axes = canonical_axes(normal, up, axis)
    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-9)
    np.testing.assert_allclose(axes @ normal, 0, atol=1e-9)
    np.testing.assert_allclose(np.cross(*axes), normal, atol=1e-9)  # never mirrored


@pytest.mark.parametrize(("across", "along"), [(24.0, 40.0), (31.5, 0.0), (0.0, 18.0)])
def test_periods_are_found(across, along):
    random = np.random.default_rng(0)
    grey = random.normal(0, 1, (TEXELS, TEXELS)).astype(np.float32)
    for period, coordinates in ((across, GRID[None, :]), (along, GRID[:, None])):
        if period:
            grey += 4 * ((coordinates % period) < 3)
    valid = np.ones((TEXELS, TEXELS), bool)
    valid[:, 200:] = False
    grey[~valid] = 0
    grey = np.where(valid, grey - grey[valid].mean(), 0).astype(np.float32)
    periods, correlation = find_periods(grey, valid)
    np.testing.assert_allclose(periods, [across, along], atol=0.6)
    assert 0 < correlation <= 1


@pytest.mark.parametrize("seed", range(5))
def test_noise_has_no_period(seed):
    noise = np.random.default_rng(seed).normal(0, 5, (TEXELS, TEXELS)).astype(np.float32)
    periods, correlation = find_periods(noise, np.ones((TEXELS, TEXELS), bool))
    assert not periods.any()
    assert correlation == 0


def make_example(detail: np.ndarray, valid: np.ndarray, upright: bool = False) -> DetailExample:
    example = plane_details._make_example(detail, valid, np.zeros(2), 0.01, upright)
    assert example is not None
    return example


def flat_view(detail: np.ndarray, seed: int = 0) -> np.ndarray:
    """The continuation of an example on a plane a metre before the camera, a texel for each pixel."""
    camera = Camera(400, 300, 100.0, 100.0, 0.0, 0.0)
    packed = pack_examples([make_example(detail, np.ones((TEXELS, TEXELS), bool))])
    out = np.zeros((300, 400, 3), np.float32)
    add_details(
        *(packed, np.zeros(1, np.int64), np.eye(3, dtype=np.float32)[None, :2], np.array([[0, 0, -1]], np.float32)),
        *(np.zeros((300, 400), np.int16), np.ones((300, 400), np.float32), camera, np.eye(4), out),
        seed=seed,
    )
    return out


def test_noise_keeps_its_strength_and_seeds_differ():
    noise = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 30, (TEXELS, TEXELS, 3)), (0, 0), 2).astype(np.float32)
    one, other = flat_view(noise), flat_view(noise, seed=1)
    assert one.std() == pytest.approx(noise.std(), rel=0.2)
    assert other.std() == pytest.approx(noise.std(), rel=0.2)
    assert np.abs(one - other).mean() > 2
    np.testing.assert_array_equal(one, flat_view(noise))


@pytest.mark.parametrize(("grey_levels", "gain"), [(4.0, SHARPENING), (12.0, SHARPENING / 2), (25.0, 0.0)])
def test_fine_detail_of_weak_textures_is_drawn_with_more_contrast(grey_levels, gain):
    columns = np.arange(TEXELS)
    fine = np.where(columns % 2, 1.0, -1.0)
    coarse = np.sin(2 * np.pi * columns / 64)
    for pattern, factor in ((fine, 1 + gain), (coarse * np.sqrt(2), 1.0)):
        detail = np.broadcast_to(grey_levels * pattern[None, :, None], (TEXELS, TEXELS, 3)).astype(np.float32)
        example = make_example(detail, np.ones((TEXELS, TEXELS), bool))
        drawn = sharpened(example).atlas[:, 8 : TEXELS - 8] / np.float32(grey_levels)
        before = example.atlas[:, 8 : TEXELS - 8] / np.float32(grey_levels)
        np.testing.assert_allclose(drawn, factor * before, atol=0.05)


def test_each_level_of_the_pyramid_is_sharpened():
    noise = np.random.default_rng(0).normal(0, 4, (TEXELS, TEXELS, 3)).astype(np.float32)
    example = make_example(noise, np.ones((TEXELS, TEXELS), bool))
    drawn, row = sharpened(example).atlas, 0
    for level in range(1, LEVELS):
        size = TEXELS >> level
        part = np.s_[row : row + size, TEXELS : TEXELS + size]
        assert drawn[part].std() > 1.5 * example.atlas[part].std()
        row += size
    assert not drawn[row:, TEXELS:].any()


def test_a_drawn_texture_has_about_the_contrast_that_its_plane_has_where_it_was_seen():
    """Without sharpening it has half of it."""
    view = observe(turned(0), camera=SHARP)
    grain = np.random.default_rng(0).normal(0, 6, view.image.shape[:2])[..., None]
    seen = replace(view, image=np.clip(view.image + grain, 0, 255).astype(np.uint8))
    layout = estimate_layout([seen])
    planes = layout.render_view(SHARP, np.eye(4))
    smooth, drawn = (layout.render_surfaces(planes, SHARP, np.eye(4), details=details) for details in (False, True))
    wall = planes.plane == planes.plane[120, 160]
    assert wall.sum() > 5000
    assert 0.6 < (drawn - smooth)[wall].std() / 6 < 1.2


def test_a_periodic_texture_continues_in_phase():
    lines = np.where((GRID[None, :] % 25 < 3) | (GRID[:, None] % 32 < 3), 20.0, -4.0)
    noise = np.random.default_rng(0).normal(0, 1, (TEXELS, TEXELS, 3))
    detail = (lines[..., None] + noise).astype(np.float32)
    shown = flat_view(detail - detail.mean(axis=(0, 1))).mean(axis=-1)
    columns, rows = np.arange(400), np.arange(300)
    on_line = (columns[None, :] % 25 < 3) | (rows[:, None] % 32 < 3)
    assert shown[on_line].mean() > 8
    assert shown[~on_line].mean() < -1
    assert np.corrcoef(shown.ravel(), on_line.ravel())[0, 1] > 0.7


def test_only_the_surface_itself_is_an_example():
    """A picture on a wall, and a thing before it, are not taken for the wall's texture."""
    view = observe(turned(0), camera=SHARP)
    random = np.random.default_rng(0)
    image = np.clip(view.image + random.normal(0, 3, view.image.shape), 0, 255).astype(np.uint8)
    image[100:150, 140:200] = random.integers(0, 2, (50, 60, 1)) * 255  # a picture, as deep as the wall
    assert view.depth is not None
    depth = view.depth.copy()
    depth[60:90, 120:150], image[60:90, 120:150] = 2.0, 255  # a lamp before the wall
    seen = type(view)(image, SHARP, view.world_from_camera, depth)
    layout = estimate_layout([seen])
    examples, example_of = layout.details
    wall = next(k for k, plane in enumerate(layout.planes) if plane[2] < -0.99)
    example = int(example_of[wall])
    assert example >= 0
    usable = examples.usable[example]
    assert usable.any()
    detail = examples.atlas[example, :, :TEXELS][usable]
    assert np.abs(detail).max() < 25  # noise of 3 grey levels, neither picture nor lamp


def test_tiles_continue_where_no_view_looked():
    view = observe(turned(0, tilt=25), camera=SHARP, tiles=15.0)
    layout = estimate_layout([view])
    there = turned(35, tilt=25)
    truth, wall = room(there, SHARP)
    planes = layout.render_view(SHARP, there)
    plain = layout.render_surfaces(planes, SHARP, there, details=False)
    with_details = layout.render_surfaces(planes, SHARP, there)
    unseen_floor = (wall == 3) & (np.abs(planes.depth - truth) < 0.03 * truth) & (truth < 2.5)
    unseen_floor[:, :250] = False  # the rest was seen by the first view
    assert unseen_floor.sum() > 500
    pattern = floor_texture(there, truth, SHARP)[unseen_floor]
    detail = (with_details - plain).mean(axis=-1)[unseen_floor]
    assert np.corrcoef(pattern, detail)[0, 1] > 0.6


def wall_view(camera: Camera = SHARP, degrees: float = 0.0, door: bool = False) -> View:
    """A view of blue walls with white skirting boards of 12 cm, and a door with a frame, as deep as the far wall."""
    view = observe(turned(degrees), camera=camera)
    assert view.depth is not None
    points = (camera.rays() * view.depth[..., None]) @ view.world_from_camera[:3, :3].T
    side = room(view.world_from_camera, camera)[1]
    image = view.image.copy()
    wall, far = (side != 2) & (side != 3), side == 5
    image[wall] = (60, 60, 200)
    image[wall & (points[..., 1] > HIGH[1] - 0.12)] = 250
    if door:
        image[far & (np.abs(points[..., 0]) < 0.5)] = (180, 110, 40)
        image[far & (np.abs(points[..., 0]) > 0.45) & (np.abs(points[..., 0]) < 0.5)] = 240
    return replace(view, image=image)


def drawn_details(views: list[View], camera: Camera, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Details (H, W, 3) of the surfaces, the plane (H, W) and world points (H, W, 3) that a camera sees."""
    layout = estimate_layout(views)
    planes = layout.render_view(camera, pose)
    plain, drawn = (layout.render_surfaces(planes, camera, pose, details=details) for details in (False, True))
    points = (camera.rays() * planes.depth[..., None]) @ pose[:3, :3].T + pose[:3, 3]
    return drawn - plain, planes.plane, points


def test_a_skirting_board_continues_all_along_a_wall_at_its_height():
    """Also along walls that no view saw."""
    details, plane, points = drawn_details([wall_view()], SHARP, turned(180))
    on_wall = (plane >= 0) & (points[..., 1] > -1.2) & (points[..., 1] < HIGH[1] - 0.02)
    board = on_wall & (points[..., 1] > HIGH[1] - 0.1)
    assert board.sum() > 500
    assert details[board].mean() > 25
    assert np.abs(details[on_wall & (points[..., 1] < HIGH[1] - 0.4)]).max() < 12


def test_a_door_is_not_the_texture_of_its_wall():
    """Not even where one of the views shows nothing else."""
    near = Camera.from_fov(320, 240, np.radians(12))
    details, plane, points = drawn_details([wall_view(door=True), wall_view(near, door=True)], SHARP, turned(180))
    on_wall = (plane >= 0) & (points[..., 1] > -1.2) & (points[..., 1] < HIGH[1] - 0.4)
    assert on_wall.sum() > 5000
    assert np.abs(details[on_wall]).max() < 15  # its frame is 170 grey levels brighter than the wall


@pytest.mark.parametrize("distance", [1.0, 4.0, 16.0])
def test_pixels_show_the_mean_of_the_profile_over_the_rows_they_cover(distance):
    profile = np.zeros((TEXELS, 3), np.float32)
    profile[100:140] = np.where(np.arange(40) % 2, 60.0, 0.0)[:, None]
    flat = make_example(np.zeros((TEXELS, TEXELS, 3), np.float32), np.ones((TEXELS, TEXELS), bool), upright=True)
    packed = pack_examples([flat._replace(profile=profile)])
    camera = Camera(40, 300, 100.0, 100.0, 0.0, 0.0)
    out = np.zeros((300, 40, 3), np.float32)
    add_details(
        *(packed, np.zeros(1, np.int64), np.eye(3, dtype=np.float32)[None, :2], np.array([[0, 0, -1]], np.float32)),
        *(np.zeros((300, 40), np.int16), np.full((300, 40), distance, np.float32), camera, np.eye(4), out),
    )
    # A row covers `distance` texels; what all rows show together is the profile's sum.
    np.testing.assert_allclose(out[:, 0, 0].sum() * distance, profile[:, 0].sum(), rtol=0.02)
    assert out.max() <= 60 + 1e-3
    assert np.ptp(out, axis=1).max() < 1e-4  # the same all along a row


def test_rows_that_were_not_seen_are_those_of_another_wall_at_the_same_height():
    base = make_example(np.zeros((TEXELS, TEXELS, 3), np.float32), np.ones((TEXELS, TEXELS), bool), upright=True)
    known, unknown = np.zeros((TEXELS, 3), np.float32), np.full((TEXELS, 3), np.nan, np.float32)
    known[50:60] = 40
    unknown[200:] = 7
    walls = [
        base._replace(profile=known, origin=np.array([0.0, 0.5])),
        base._replace(profile=unknown, origin=np.array([0.0, 0.0])),
        base,
    ]
    one, other, floor = share_profiles(walls, [0, 1, 2])
    np.testing.assert_array_equal(one.profile, known)
    assert other.profile is not None
    np.testing.assert_array_equal(other.profile[100:110], np.full((10, 3), 40))  # half a metre higher, 50 texels
    np.testing.assert_array_equal(other.profile[200:], np.full((56, 3), 7))
    np.testing.assert_array_equal(other.profile[:100], 0)
    assert floor.profile is None


def test_a_profile_needs_a_good_part_of_a_row_and_more_than_chance():
    random = np.random.default_rng(0)
    detail = random.normal(0, 5, (TEXELS, TEXELS, 3)).astype(np.float32)
    detail[20:24] += 40
    detail[60:64, :20] += 40  # a thing, in a small part of its rows
    seen = np.ones((TEXELS, TEXELS), bool)
    seen[120:] = False
    seen[120:, :20] = True  # less than 0.7 m of texels of 1 cm
    profile = height_profile(detail, seen, 0.01)
    np.testing.assert_allclose(profile[20:24], 40, atol=2)
    assert not profile[30:120].any()
    assert np.isnan(profile[120:]).all()
