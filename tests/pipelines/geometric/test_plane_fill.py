"""Planes drawn into the holes of a view."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.box_room import CAMERA, COLOURS, observe, room, turned

from worldstereo_ros.evaluation.hole_metrics import detail
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.pipelines.geometric.layout import estimate_layout
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.pipelines.geometric.plane_fill import SKY, fill_with_planes
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.world import WorldModel


@pytest.fixture(scope="module")
def layout():
    return estimate_layout([observe(turned(0), tiles=15.0)])


def half_known(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, known mask and depth of a view of which the left half is known; grey elsewhere."""
    view = observe(pose, tiles=15.0)
    known = np.zeros((CAMERA.height, CAMERA.width), bool)
    known[:, : CAMERA.width // 2] = True
    assert view.depth is not None
    return np.where(known[..., None], view.image, np.uint8(128)), known, np.where(known, view.depth, np.float32(0))


def test_known_pixels_stay_and_holes_show_planes(layout):
    there = turned(40, tilt=15)
    image, known, depth = half_known(there)
    fill = fill_with_planes(image, known, depth, layout, CAMERA, there)
    np.testing.assert_array_equal(fill.image[known], image[known])
    assert not fill.probability[known].any()
    assert (fill.plane[known] == -1).all()
    truth, wall = room(there)
    right = ~known & (np.abs(fill.depth - truth) < 0.03 * truth)
    assert right[~known].mean() > 0.7
    errors = np.abs(fill.image - COLOURS[wall]).max(axis=-1)
    assert np.median(errors[right]) < 20
    assert np.abs(128.0 - COLOURS[wall]).max(axis=-1)[right].mean() > 60  # which the grey was far from


def test_borders_between_planes_are_sharp(layout):
    there = turned(0, tilt=15)
    image, _, depth = half_known(there)
    nothing = np.zeros((CAMERA.height, CAMERA.width), bool)
    fill = fill_with_planes(image, nothing, np.zeros_like(depth), layout, CAMERA, there)
    _, wall = room(there)
    border = np.flatnonzero(np.diff(wall[:, 80].astype(int)))  # between the far wall and the floor
    for row in border:
        step = np.abs(fill.image[row + 2, 80] - fill.image[row - 1, 80]).max()
        true_step = np.abs(COLOURS[wall[row + 2, 80]].astype(float) - COLOURS[wall[row - 1, 80]]).max()
        assert step > 0.6 * true_step


def test_light_of_known_pixels_continues_over_their_plane(layout):
    there = turned(20, tilt=15)
    image, known, depth = half_known(there)
    brighter = np.where(known[..., None], np.clip(image.astype(int) + 30, 0, 255), image).astype(np.uint8)
    one, other = (fill_with_planes(i, known, depth, layout, CAMERA, there) for i in (image, brighter))
    _, wall = room(there)
    floor = (wall == 3) & ~known & (one.plane >= 0)
    floor[:, 100:] = False
    assert (other.image - one.image)[floor].mean() > 12


def test_the_same_seed_gives_the_same_view_and_another_seed_another(layout):
    there = turned(40, tilt=15)
    arguments = (*half_known(there), layout, CAMERA, there)
    one, again, other = (fill_with_planes(*arguments, seed=seed) for seed in (1, 1, 2))
    threaded = fill_with_planes(*arguments, seed=1, threads=3)
    for a, b, c in zip(one, again, threaded, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    assert np.abs(one.noise - other.noise).mean() > 0.1
    np.testing.assert_array_equal(one.plane, other.plane)


def test_noise_is_fixed_to_surfaces(layout):
    """The noise of a point on the floor is nearly the same from a pose that is a little nearer."""
    nothing, depth = np.zeros((CAMERA.height, CAMERA.width), bool), np.zeros((CAMERA.height, CAMERA.width), np.float32)
    image = np.full((CAMERA.height, CAMERA.width, 3), 128, np.uint8)
    there, nearer = turned(0, tilt=40), turned(0, tilt=40)
    nearer[0, 3] = 0.1
    one, other = (fill_with_planes(image, nothing, depth, layout, CAMERA, pose) for pose in (there, nearer))
    points = (CAMERA.rays() * one.depth[..., None]) @ there[:3, :3].T + there[:3, 3]
    local = (points - nearer[:3, 3]) @ nearer[:3, :3]
    u = np.rint(CAMERA.fx * local[..., 0] / local[..., 2] + CAMERA.cx).astype(int)
    v = np.rint(CAMERA.fy * local[..., 1] / local[..., 2] + CAMERA.cy).astype(int)
    inside = (u >= 0) & (u < CAMERA.width) & (v >= 0) & (v < CAMERA.height) & (one.plane == layout.room.sides[0].source)
    wide = one.noise.shape[-1] - 1  # the longest wavelength, which rounding to pixels hardly moves
    pairs = one.noise[inside][:, wide], other.noise[v[inside], u[inside]][:, wide]
    assert np.corrcoef(*pairs)[0, 1] > 0.8
    assert one.noise[inside].std() == pytest.approx(1, abs=0.35)


@pytest.fixture(scope="module")
def outdoors():
    """One wall on the ground, under a blue sky."""
    view = observe(turned(0))
    _, wall = room(turned(0))
    assert view.depth is not None
    image = np.where((wall == 3)[..., None], view.image, np.uint8((120, 160, 220))).astype(np.uint8)
    return estimate_layout([View(image, CAMERA, np.eye(4), np.where(wall == 3, view.depth, 0))])


def fill_everything(layout, **options):
    nothing, depth = np.zeros((CAMERA.height, CAMERA.width), bool), np.zeros((CAMERA.height, CAMERA.width), np.float32)
    image = np.full((CAMERA.height, CAMERA.width, 3), 128, np.uint8)
    return fill_with_planes(image, nothing, depth, layout, CAMERA, turned(90), **options)


def test_sky_is_drawn_above_the_horizon(outdoors):
    fill = fill_everything(outdoors)
    assert (fill.plane[:50] == SKY).all()
    assert np.abs(fill.image[:50] - (120, 160, 220)).max() < 8
    assert not fill.depth[fill.plane == SKY].any()
    assert not (fill.plane[70:] == SKY).any()


@pytest.mark.parametrize(("probability", "hidden"), [(0.3, True), (0.6, False)])
def test_the_sky_hides_planes_that_are_less_likely_than_it(outdoors, probability, hidden):
    """A facade does not begin again in the sky, and what shows the sky has no depth of a facade."""
    ahead = turned(90)[:3, 2]
    facade = outdoors.planes[:1].copy()
    facade[0, :3], facade[0, 3] = -ahead, -5
    facade[0, 13:] = 1e-3, probability
    cells = outdoors.distance[:1].shape
    layout = replace(
        outdoors,
        planes=np.concatenate([outdoors.planes, facade]),
        colours=np.concatenate([outdoors.colours, np.zeros((*cells, 3), np.float32)]),
        distance=np.concatenate([outdoors.distance, np.full(cells, 1e4, np.float32)]),
        seen=None,
    )
    fill = fill_everything(layout)
    planes = layout.render_view(CAMERA, turned(90))
    last = len(outdoors.planes)
    assert (fill.plane[:50] == (SKY if hidden else last)).all()
    assert (planes.plane[:50] == (-1 if hidden else last)).all()
    assert planes.depth[:50].any() != hidden
    assert planes.probability[:50].any() != hidden
    assert (planes.plane[70:] >= 0).any()


def test_without_planes_nothing_changes():
    image = np.random.default_rng(0).integers(0, 256, (CAMERA.height, CAMERA.width, 3)).astype(np.uint8)
    nothing, depth = np.zeros(image.shape[:2], bool), np.zeros(image.shape[:2], np.float32)
    fill = fill_with_planes(image, nothing, depth, estimate_layout([]), CAMERA, np.eye(4))
    np.testing.assert_array_equal(fill.image, image)
    assert not fill.probability.any()


def imagined(fill: str, pose: np.ndarray, seed: int = 0) -> Any:
    world = WorldModel(GeometricPipeline(fill=fill))
    world.observe(observe(turned(0, tilt=15), tiles=15.0))
    return next(iter(world.imagine(pose[None], CAMERA, seed=seed)))


def test_the_geometric_pipeline_fills_holes_with_planes():
    there = turned(60, tilt=15)
    smooth, planes = (imagined(fill, there) for fill in ("smooth", "planes"))
    seen = smooth.provenance == Provenance.OBSERVED
    assert 0.05 < seen.mean() < 0.7
    np.testing.assert_array_equal(planes.provenance, smooth.provenance)
    np.testing.assert_array_equal(planes.image[seen], smooth.image[seen])
    truth, wall = room(there)
    errors = [np.abs(view.image - COLOURS[wall].astype(float)).mean(axis=-1)[~seen] for view in (smooth, planes)]
    assert np.median(errors[1]) < 0.8 * np.median(errors[0])
    # Depth is that of a plane where the smooth fill is near it, else the smooth fill's.
    near = ~seen & (np.maximum(truth, smooth.depth) < 1.4 * np.minimum(truth, smooth.depth))
    far = ~seen & (np.maximum(truth, smooth.depth) > 1.6 * np.minimum(truth, smooth.depth))
    assert near.sum() > 500
    assert far.sum() > 500
    depth_errors = [np.abs(view.depth - truth)[near] / truth[near] for view in (smooth, planes)]
    assert np.mean(depth_errors[1]) < 0.5 * np.mean(depth_errors[0])
    assert (planes.depth == smooth.depth)[far].mean() > 0.95


def test_seeds_of_the_geometric_pipeline_differ_in_details_alone():
    there = turned(60, tilt=15)
    one, again, other = (imagined("planes", there, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.image, again.image)
    np.testing.assert_array_equal(one.depth, other.depth)
    assert np.abs(one.image.astype(int) - other.image).max() < 60


def test_an_unknown_fill_is_refused():
    with pytest.raises(InputError, match="one of smooth, planes"):
        GeometricPipeline(fill="fog")
    with pytest.raises(InputError, match="one of auto, smooth, planes"):
        load_pipeline("geometric", fill="fog")


def test_the_small_model_draws_planes_unless_told_otherwise():
    """Seen pixels and provenance stay; holes get sharper, with depth that is about right."""
    there, views = turned(60, tilt=15), {}
    for fill in ("smooth", "auto"):
        world = WorldModel(load_pipeline("small", fill=fill))
        world.observe(observe(turned(0, tilt=15), tiles=15.0))
        views[fill] = next(iter(world.imagine(there[None], CAMERA)))
    smooth, planes = views["smooth"], views["auto"]
    seen = smooth.provenance == Provenance.OBSERVED
    np.testing.assert_array_equal(planes.provenance, smooth.provenance)
    np.testing.assert_array_equal(planes.image[seen], smooth.image[seen])
    truth, _ = room(there)
    errors = [np.abs(np.log(view.depth / truth))[~seen].mean() for view in (smooth, planes)]
    assert errors[1] < 0.1
    assert detail(planes.image)[~seen].std() > 1.2 * detail(smooth.image)[~seen].std()


def test_a_model_that_generates_what_holes_show_takes_no_fill():
    with pytest.raises(InputError, match="AnyRecon generates what holes show"):
        load_pipeline("anyrecon:somewhere", fill="planes")
