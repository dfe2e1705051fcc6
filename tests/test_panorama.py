"""Views of a panorama: where they look, that every pixel shows the direction it should, and the way back."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from worldstereo_ros.camera import Camera, invert_pose, pose_from_quaternion
from worldstereo_ros.cli import app
from worldstereo_ros.imagery import ImageError, read_image
from worldstereo_ros.imagined_panorama import ORDERS, imagine_panorama, ring_order, seam_joint, seed_panorama
from worldstereo_ros.panorama import (
    PUBLISHED_WORLD_FROM_PANORAMA,
    bank_camera,
    bank_poses,
    look,
    panorama_views,
    rings,
    round_camera,
)
from worldstereo_ros.panorama_command import read_distance
from worldstereo_ros.panorama_depth import panorama_distance
from worldstereo_ros.pictures import write_image
from worldstereo_ros.pipelines.geometric import GeometricPipeline
from worldstereo_ros.stitching import closure, look_up, panorama_directions, panorama_from_views, view_difference
from worldstereo_ros.views import View
from worldstereo_ros.world import NothingSeenError, WorldModel

HEIGHT = 256


def _directions(height: int) -> np.ndarray:
    """(H, 2 H, 3) unit vectors of the pixels of a panorama: x right, y down, z ahead (the middle)."""
    longitude = (np.arange(2 * height) + 0.5) / (2 * height) * 2 * np.pi - np.pi
    latitude = np.pi / 2 - (np.arange(height) + 0.5) / height * np.pi
    longitude, latitude = np.meshgrid(longitude, latitude)
    return np.stack(
        [np.cos(latitude) * np.sin(longitude), -np.sin(latitude), np.cos(latitude) * np.cos(longitude)], axis=-1
    )


def _as_colour(directions: np.ndarray) -> np.ndarray:
    return np.rint((directions + 1) * 127).astype(np.uint8)


def _expected(view, panorama_from_camera: np.ndarray) -> np.ndarray:
    rays = view.camera.rays() @ panorama_from_camera[:3, :3].T
    return (rays / np.linalg.norm(rays, axis=-1, keepdims=True) + 1) * 127


def test_the_layout_is_that_of_the_published_banks(shared_golden):
    golden = load_file(shared_golden / "geometry.safetensors")
    ours = PUBLISHED_WORLD_FROM_PANORAMA @ bank_poses()
    np.testing.assert_allclose(ours, invert_pose(golden["ret.bank_w2c"].astype(np.float64)), atol=1e-6)
    K = bank_camera().matrix
    K[:2, 2] += 0.5  # published pixel coordinates begin at the corner of the image
    np.testing.assert_allclose(golden["ret.bank_K"], np.repeat(K[None], 27, axis=0), atol=1e-4)


def test_turning_and_tilting():
    np.testing.assert_allclose(look(np.pi / 2, 0)[:3, 2], [1, 0, 0], atol=1e-12)  # to the right
    np.testing.assert_allclose(look(0, np.pi / 2)[:3, 2], [0, -1, 0], atol=1e-12)  # up
    axes = bank_poses()[:, :3, 2]
    assert len(np.unique(np.round(axes, 6), axis=0)) == 27
    # Wherever one looks outside the caps around the poles, a view has it within its frame.
    directions = _directions(48)
    caught = np.zeros(directions.shape[:2], dtype=bool)
    for pose in bank_poses():
        x, y, z = np.moveaxis(directions @ pose[:3, :3], -1, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            caught |= (z > 0) & (np.abs(x / z) <= np.tan(np.pi / 3)) & (np.abs(y / z) <= 1)
    elevation = np.degrees(np.arcsin(-directions[..., 1]))
    assert caught[np.abs(elevation) < 71].all()
    assert not caught[np.abs(elevation) > 84].any()


def test_every_pixel_of_every_view_shows_its_direction():
    panorama = _as_colour(_directions(HEIGHT))
    views = list(panorama_views(panorama, camera=bank_camera(208, 120)))
    assert len(views) == 27
    for view, pose in zip(views, bank_poses(), strict=True):
        error = np.abs(view.image - _expected(view, pose))
        # One step of a panorama of 256 rows is 1.6 of 255: rounding twice and a thirty-second of a pixel stay below.
        assert error.max() < 1.6


@pytest.mark.parametrize(("right", "up"), [(np.pi, 0.0), (np.pi - 0.3, 0.4), (0.7, np.pi / 2), (2.0, -np.pi / 2)])
def test_the_seam_and_the_poles_are_closed(right, up):
    """A camera that looks at the seam or at a pole sees no edge, however coarse the panorama."""
    height = 32
    panorama = _as_colour(_directions(height))
    camera = Camera.from_fov(101, 101, np.radians(60))
    (view,) = panorama_views(panorama, camera=camera, panorama_from_camera=look(right, up)[None])
    error = np.abs(view.image - _expected(view, look(right, up)))
    # Bilinear over 5.6 degrees: the chord lies below the arc by 0.3, and rounding adds up to 1.
    assert error.max() < 2.5


def test_fine_patterns_are_averaged_and_do_not_alias():
    """Stripes of one pixel in a panorama eight times finer than the view are grey, not a pattern of their own."""
    height = 1024
    stripes = np.zeros((height, 2 * height, 3), np.uint8)
    stripes[:, ::2] = 255
    camera = Camera.from_fov(64, 48, np.radians(70))
    (view,) = panorama_views(stripes, camera=camera, panorama_from_camera=np.eye(4)[None])
    assert abs(float(view.image.mean()) - 127.5) < 3
    assert view.image.astype(float).std() < 12


def test_distances_become_depth_along_the_axis():
    """Inside a box, the distance along the ray gives back the planes of its walls."""
    directions = _directions(HEIGHT)
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


def test_views_stand_where_the_panorama_was_taken():
    origin = pose_from_quaternion((1, 2, 3), (0, 0, np.sin(0.3), np.cos(0.3)))
    panorama = _as_colour(_directions(16))
    views = list(panorama_views(panorama, world_from_camera=origin, camera=bank_camera(26, 15), stamp_ns=7))
    for view, pose in zip(views, bank_poses(), strict=True):
        np.testing.assert_allclose(view.world_from_camera, origin @ pose, atol=1e-12)
        assert view.stamp_ns == 7
        assert view.depth is None
        assert view.observed is None


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (np.zeros((100, 150, 3), np.uint8), "is 150x100; .* twice as wide as high"),
        (np.zeros((100, 200), np.uint8), "uint8 .* was expected"),
        (np.zeros((100, 200, 3), np.float32), "is float32"),
        (np.zeros((2, 4, 3), np.uint8), "4x2"),
        (np.zeros((1, 2, 3), np.uint8), "2x1"),
    ],
)
def test_what_is_no_full_sphere_is_refused_at_once(image, sentence):
    with pytest.raises(ImageError, match=sentence):
        panorama_views(image)
    with pytest.raises(ImageError, match="distances have shape"):
        panorama_views(np.zeros((100, 200, 3), np.uint8), np.zeros((100, 100)))


def test_a_real_panorama(shared_data):
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


# --- back to a panorama ---


def _box_panorama(height: int) -> tuple[np.ndarray, np.ndarray]:
    """Colour and distance inside a box of 6 x 3 x 4 metres, whose walls bear soft stripes."""
    directions = _directions(height)
    half = np.array([3.0, 1.5, 2.0])
    with np.errstate(divide="ignore"):
        distance = (half / np.abs(directions)).min(axis=-1)
    return _box_colour(directions * distance[..., None]), distance.astype(np.float32)


def _box_colour(points: np.ndarray) -> np.ndarray:
    stripes = 30 * np.sin(3 * points[..., :1]) * np.cos(2.5 * points[..., 2:])
    return np.clip(np.rint(128 + 20 * points + stripes), 0, 255).astype(np.uint8)


def _all_round(camera: Camera) -> np.ndarray:
    return np.stack([look(*angles) for ring in rings(camera) for angles in ring])


ROUND = round_camera(128)


@pytest.fixture(scope="module")
def box():
    return _box_panorama(128)


@pytest.fixture(scope="module")
def box_views(box):
    return list(panorama_views(*box, camera=ROUND, panorama_from_camera=_all_round(ROUND)))


@pytest.mark.parametrize("camera", [ROUND, Camera.from_fov(80, 45, np.radians(70)), Camera.from_fov(60, 60, 1.0)])
def test_rings_show_the_whole_sphere(camera):
    directions = panorama_directions(48)
    white = np.zeros((camera.height, camera.width, 3), np.uint8)
    shown = np.zeros(directions.shape[:2], int)
    for pose in _all_round(camera):
        shown += look_up(View(white, camera, pose), np.eye(4), directions)[2]
    assert shown.min() >= 1
    assert np.median(shown) >= 2
    assert [len(ring) for ring in rings(camera)[-2:]] == [1, 1]


def test_views_go_back_to_the_panorama_they_were_cut_from(box, box_views):
    image, distance = box
    panorama = panorama_from_views(box_views[::-1], 128, world_from_camera=np.eye(4))
    assert panorama.known.all()
    assert panorama.observed.all()
    error = np.abs(panorama.image.astype(int) - image)
    assert error.mean() < 1.0  # interpolated twice, rounded twice
    assert np.quantile(error, 0.99) < 6
    off = np.abs(panorama.distance / distance - 1)
    assert np.median(off) < 0.01
    assert np.quantile(off, 0.95) < 0.05


def test_a_panorama_can_stand_otherwise_than_its_views(box, box_views):
    image, _ = box
    turned = panorama_from_views(box_views, 128, world_from_camera=look(np.pi / 2, 0))
    expected = np.roll(image, -64, axis=1)  # what was to the right is in the middle now
    assert np.abs(turned.image.astype(int) - expected).mean() < 1.0


def test_the_left_and_the_right_border_of_a_stitched_panorama_join(box_views):
    picture = panorama_from_views(box_views, 128).image.astype(int)
    steps = np.abs(np.diff(picture, axis=1)).mean(axis=(0, 2))
    assert np.abs(picture[:, 0] - picture[:, -1]).mean() <= steps.max()


def test_exposures_that_differ_from_view_to_view_leave_no_steps(box, box_views):
    random = np.random.default_rng(0)
    gains = np.exp(random.uniform(-0.25, 0.25, (len(box_views), 1, 1, 1)))
    uneven = [
        replace(view, image=np.clip(view.image * gain, 0, 255).astype(np.uint8))
        for view, gain in zip(box_views, gains, strict=True)
    ]

    def unevenness(align: bool) -> float:
        ratio = panorama_from_views(uneven, 128, align=align).image / np.maximum(box[0], 1.0)
        return float(np.log(ratio[32:96].mean(axis=(0, 2))).std())

    assert unevenness(True) < 0.4 * unevenness(False)


def test_what_a_sensor_saw_goes_before_what_was_imagined():
    camera = Camera.from_fov(48, 36, np.radians(75))

    def plain(value: int, observed: bool) -> View:
        mask = None if observed else np.zeros((36, 48), bool)
        return View(np.full((36, 48, 3), value, np.uint8), camera, look(0, 0), observed=mask)

    both = panorama_from_views([plain(200, False), plain(100, True), plain(200, False)], 64, align=False)
    assert both.known.any()
    assert (both.observed == both.known).all()
    assert both.image[both.known].max() <= 104
    imagined = panorama_from_views([plain(200, False)], 64)
    assert not imagined.observed.any()
    assert (imagined.image[imagined.known] == 200).all()


def test_views_that_do_not_cover_the_sphere_say_so_and_the_rest_is_smooth(box_views):
    panorama = panorama_from_views(box_views[:1], 64)
    assert 0.03 < panorama.known.mean() < 0.2
    assert not panorama.observed[~panorama.known].any()
    assert (panorama.distance[~panorama.known] == 0).all()
    assert panorama.image[~panorama.known].min() > 20  # filled, not black
    picture = panorama.image.astype(int)
    assert np.abs(np.diff(picture[:, [-1, 0]], axis=1)).max() < 12
    assert np.ptp(picture[0], axis=0).max() < 12  # a pole is one place


def test_views_that_make_no_panorama_are_refused(box_views):
    with pytest.raises(ValueError, match="at least one"):
        panorama_from_views([])
    for height in (4, 0, -8, 64.5):
        with pytest.raises(ValueError, match="at least 8 rows"):
            panorama_from_views(box_views[:1], height)
    with pytest.raises(ImageError, match="are refused"):
        panorama_from_views(box_views[:1], 100_000)
    aside = look(0.3, 0)
    aside[0, 3] = 0.5
    with pytest.raises(ValueError, match=r"0\.50 m from the panorama's place"):
        panorama_from_views([box_views[0], replace(box_views[1], world_from_camera=aside)])
    with pytest.raises(ValueError, match="finite 4x4"):
        panorama_from_views(box_views[:1], 64, world_from_camera=np.full((4, 4), np.nan))


def test_the_seam_of_a_turn_is_measured(box_views):
    ring = box_views[: len(rings(ROUND)[0])]
    closed = closure(ring)
    assert 0.3 < closed.ratio < 2
    assert closed.inner < 3
    # Colours that drift all the way round differ a little at every joint, and much where the ends meet.
    drifting = [
        replace(view, image=np.clip(view.image * (1 + 0.03 * index), 0, 255).astype(np.uint8))
        for index, view in enumerate(ring)
    ]
    assert closure(drifting).ratio > 4
    rolled = [*drifting[3:], *drifting[:3]]
    assert closure(rolled, seam=len(ring) - 4).ratio == pytest.approx(closure(drifting).ratio)
    assert closure(ring[:2]) is None
    assert closure([ring[0], ring[6], ring[3]]) is None  # no overlap, nothing to say
    assert view_difference(ring[0], ring[6]) is None


# --- imagined somewhere else ---


def test_orders_of_a_ring():
    for order in ORDERS:
        for count in (3, 8, 11, 12):
            assert sorted(ring_order(count, order)) == list(range(count))
    both = ring_order(8, "both")
    assert both == [0, 1, 7, 2, 6, 3, 5, 4]
    assert {both[-1], both[-2]} == {seam_joint(8, "both"), seam_joint(8, "both") + 1}
    with pytest.raises(ValueError, match="'spiral' is not known"):
        ring_order(8, "spiral")


@pytest.fixture(scope="module")
def seeded(box):
    world = WorldModel(GeometricPipeline())
    assert seed_panorama(world, *box) > 1000
    return world


def test_a_panorama_is_imagined_at_another_place(seeded):
    points, views = len(seeded.cloud), len(seeded.bank)
    place = np.eye(4)
    place[:3, 3] = 0.5, 0.0, 0.4
    found = imagine_panorama(seeded, place, height=64)
    assert (len(seeded.cloud), len(seeded.bank)) == (points, views)  # nothing is remembered unless asked for
    directions = _directions(64)
    with np.errstate(divide="ignore"):
        reach = np.where(directions > 0, np.array([2.5, 1.5, 1.6]), np.array([3.5, 1.5, 2.4])) / np.abs(directions)
    distance = reach.min(axis=-1)
    truth = _box_colour(directions * distance[..., None] + place[:3, 3])
    error = np.abs(found.panorama.image.astype(int) - truth)
    assert error.mean() < 6
    assert found.panorama.known.all()
    assert found.panorama.observed.mean() > 0.7
    assert np.median(np.abs(found.panorama.distance / distance - 1)) < 0.03
    assert found.closure.ratio < 2.5
    assert len(found.ring) == len(rings(found.ring[0].camera)[0])
    for number, view in enumerate(found.ring):
        np.testing.assert_allclose(view.world_from_camera, place @ look(2 * np.pi * number / len(found.ring), 0))


def test_a_place_that_is_none_is_refused(seeded):
    with pytest.raises(ValueError, match="The panorama's place"):
        imagine_panorama(seeded, np.full((4, 4), np.nan))
    with pytest.raises(ValueError, match="at least 8 rows"):
        imagine_panorama(seeded, np.eye(4), height=2)
    with pytest.raises(ValueError, match="is not known"):
        imagine_panorama(seeded, np.eye(4), height=64, order="zigzag")
    with pytest.raises(NothingSeenError):
        imagine_panorama(WorldModel(GeometricPipeline()), np.eye(4), height=64)


# --- without distances ---


class _Guess:
    """The depth of the box, in a scale and with a shift of inverse depth that are others in every view."""

    def __init__(self, views: list[View], spread: float) -> None:
        self.views, self.spread = views, spread
        self.random = np.random.default_rng(1)

    def __call__(self, image: np.ndarray, camera: Camera) -> np.ndarray:
        true = next(view.depth for view in self.views if np.array_equal(view.image, image))
        scale, shift = np.exp(self.random.uniform(-self.spread, self.spread)), self.random.uniform(-0.05, 0.05)
        with np.errstate(divide="ignore"):
            return np.where(true > 0, scale / (1 / true + shift * self.spread), 0).astype(np.float32)


def test_guessed_depths_agree_all_round(box, box_views):
    image, distance = box

    def spread(align: bool) -> float:
        found = panorama_distance(image, _Guess(box_views, 0.5), camera=ROUND, align=align)
        assert (found > 0).all()
        return float(np.log(found / distance).std())

    assert spread(True) < 0.05
    assert spread(True) < 0.3 * spread(False)

    class Sky(_Guess):
        def __call__(self, picture: np.ndarray, camera: Camera) -> np.ndarray:
            depth = super().__call__(picture, camera)
            pose = next(view.world_from_camera for view in self.views if np.array_equal(view.image, picture))
            return np.where((camera.rays() @ pose[:3, :3].T)[..., 1] < -0.8, np.float32(0), depth)

    open_above = panorama_distance(image, Sky(box_views, 0.2), camera=ROUND)
    assert (open_above[:24] == 0).all()  # nothing is made up there
    assert (open_above[64:] > 0).all()


def test_a_panorama_without_distances_takes_the_scale_of_what_is_known(box, box_views, seeded):
    image, distance = box

    class Doubled:
        def __call__(self, picture: np.ndarray, camera: Camera) -> np.ndarray:
            cut = panorama_views(image, 2 * distance, camera=camera, panorama_from_camera=_all_round(camera))
            return next(view.depth for view in cut if np.array_equal(view.image, picture))

    world = WorldModel(GeometricPipeline(), depth_estimator=Doubled())
    seed_panorama(world, *box)
    before = len(world.cloud)
    seed_panorama(world, image)
    outside = (np.abs(world.cloud.points) > np.array([3.3, 1.8, 2.3])).any(axis=1)
    assert outside.mean() < 0.02
    assert len(world.cloud) < 1.7 * before
    nothing = WorldModel(GeometricPipeline())
    with pytest.raises(ValueError, match="no distances and no depth estimator"):
        seed_panorama(nothing, image)
    assert len(nothing.cloud) == len(nothing.bank) == 0


# --- the command ---


def test_the_command_leaves_a_panorama_its_mask_and_figures(box, tmp_path):
    write_image(tmp_path / "given.png", box[0])
    np.save(tmp_path / "distance.npy", box[1])
    arguments = ["--distance", str(tmp_path / "distance.npy"), "--model", "geometric", "--height", "64"]
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app, ["panorama", str(tmp_path / "given.png"), "--at", "-0.5", "0", "0.3", *arguments, "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert read_image(out / "panorama.png").shape == (64, 128, 3)
    assert {"observed.png", "distance.png", "sheet.png", "world.wsmap", "imagined"} <= {p.name for p in out.iterdir()}
    figures = json.loads((out / "figures.json").read_text())
    assert figures["at"] == [-0.5, 0.0, 0.3]
    assert figures["ratio"] == pytest.approx(figures["seam"] / figures["joint"])
    assert read_distance(out / "distance.png").shape == (64, 128)


def test_what_the_command_cannot_use_is_one_sentence(box, tmp_path):
    write_image(tmp_path / "given.png", box[0])
    write_image(tmp_path / "plain.png", box[0][:, :90])
    np.save(tmp_path / "cube.npy", np.zeros((4, 8, 2)))
    np.save(tmp_path / "empty.npy", np.zeros((64, 128)))
    (tmp_path / "broken.npy").write_bytes(b"no array")
    model = ["--model", "geometric", "--out", str(tmp_path / "out")]
    cases = [
        (["missing.png"], "no file"),
        (["plain.png", "--distance", "distance.npy"], "twice as wide"),
        (["given.png", "--distance", "cube.npy"], "were expected"),
        (["given.png", "--distance", "empty.npy"], "holds no distance"),
        (["given.png", "--distance", "broken.npy"], "cannot be read"),
        (["given.png", "--distance", "gone.npy"], "cannot be read"),
        (["given.png", "--at", "nan", "0", "0", "--distance", "distance.npy"], "is no point"),
    ]
    np.save(tmp_path / "distance.npy", box[1])
    for arguments, sentence in cases:
        named = [str(tmp_path / word) if "." in word else word for word in arguments]
        done = CliRunner().invoke(app, ["panorama", *named, *model])
        assert done.exit_code == 1, arguments
        assert sentence in " ".join(done.output.split()), done.output
    assert not (tmp_path / "out").exists()
