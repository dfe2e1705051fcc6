"""From the very pose of an observation, a view is the image of the observation."""

from dataclasses import replace

import numpy as np
import pytest

from worldstereo_ros.evaluation.metrics import psnr
from worldstereo_ros.evaluation.world_sequences import world_sequence
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.geometric.coincidence import (
    coincident_imagination,
    coincident_observation,
    displacement,
)
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.world import WorldModel

CAMERA = Camera.from_fov(160, 120, np.radians(75))


@pytest.fixture(scope="module")
def views():
    """Three views of a walk in different exposures; a third of the depth of the first is missing."""
    walk = world_sequence("test", 0, views=13, camera=CAMERA)
    first, *others = (walk[index] for index in (0, 2, 4))
    depth = first.depth.copy()
    depth[30:100, 50:110] = 0
    depth[:, 150:] = 0
    dark = [replace(view, image=(view.image * 0.6).astype(np.uint8)) for view in others]
    return [replace(first, depth=depth), *dark]


def constant_depth(image, camera):
    return np.full(image.shape[:2], 2.0, np.float32)


def imagine(views, pose, camera=CAMERA):
    world = WorldModel(GeometricPipeline(threads=1), depth_estimator=constant_depth)
    for view in views:
        world.observe(view)
    return next(world.imagine(pose[None], camera))


def moved(view: View, pixels: float) -> np.ndarray:
    """The pose of a view, moved to the right until its nearest points move by so many pixels."""
    pose = view.world_from_camera.copy()
    near = np.quantile(view.depth[view.depth > 0], 0.01)
    pose[:3, 3] += pose[:3, 0] * pixels * near / view.camera.fx
    return pose


@pytest.mark.parametrize("count", [1, 3])
def test_the_image_is_that_of_the_observation(views, count):
    first = views[0]
    for pose in (first.world_from_camera, moved(first, 0.2)):
        view = imagine(views[:count], pose)
        np.testing.assert_array_equal(view.image, first.image)
        measured = first.depth > 0
        np.testing.assert_array_equal(view.observed_mask, measured)
        np.testing.assert_array_equal(view.estimated_mask, ~measured)
        np.testing.assert_array_equal(view.depth[measured], first.depth[measured])
        assert (view.depth > 0).all()


def test_the_image_needs_no_depth(views):
    first = replace(views[0], depth=None)
    view = imagine([first, *views[1:]], first.world_from_camera)
    np.testing.assert_array_equal(view.image, first.image)
    assert not view.observed_mask.any()
    assert view.estimated_mask.all()


def test_the_newest_of_several_coincident_observations_counts(views):
    first = views[0]
    newer = replace(first, image=255 - first.image, stamp_ns=first.stamp_ns + 1)
    for order in ([first, newer], [newer, first]):
        np.testing.assert_array_equal(imagine(order, first.world_from_camera).image, newer.image)


def test_a_thumbnail_does_not_hide_an_image(views):
    """Whatever is newer: a thumbnail is not shown where an image is known, nor alone as what was seen."""
    first = views[0]
    for width, height in ((1, 1), (16, 12), (79, 59)):
        thumbnail = replace(first.resized(width, height), stamp_ns=first.stamp_ns + 1)
        assert coincident_observation([first, thumbnail], CAMERA, first.world_from_camera).image is first.image
        assert coincident_observation([thumbnail], CAMERA, first.world_from_camera) is None


def test_the_sharpest_of_several_coincident_observations_counts(views):
    first = views[0]
    half = replace(first.resized(80, 60), stamp_ns=first.stamp_ns + 1)
    assert coincident_observation([first, half], CAMERA, first.world_from_camera).image is first.image
    large = replace(first.resized(320, 240), stamp_ns=first.stamp_ns - 1)
    shown = coincident_observation([first, large], CAMERA, first.world_from_camera)
    assert shown.image is first.image  # both resolve all that the camera shows; the newer one counts


@pytest.mark.parametrize("size", [(80, 60), (320, 240), (200, 150)])
def test_another_size_is_a_resize(views, size):
    first = views[0]
    view = imagine(views, first.world_from_camera, CAMERA.resized(*size))
    np.testing.assert_array_equal(view.image, first.resized(*size).image)


def test_imagined_views_and_other_cameras_do_not_coincide(views):
    first = views[0]
    pose = first.world_from_camera
    assert coincident_observation([first], CAMERA, pose) is first
    imagined = replace(first, observed=np.ones(first.depth.shape, bool))
    assert coincident_observation([imagined], CAMERA, pose) is None
    assert coincident_observation([first], Camera.from_fov(160, 120, np.radians(76)), pose) is None
    assert coincident_observation([first], CAMERA, moved(first, 0.3)) is None
    turned = pose.copy()
    angle = 0.5 / CAMERA.fx
    turned[:3, :3] = pose[:3, :3] @ [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    assert coincident_observation([first], CAMERA, turned) is None
    assert displacement(first, CAMERA, turned) == pytest.approx(0.5 * (1 + np.tan(np.radians(37.5)) ** 2), rel=0.1)


def test_the_view_changes_little_beside_the_pose_of_an_observation(views):
    """The other observations are darker: they must not appear at once where the exact image ends."""
    first = views[0]
    before = imagine(views, first.world_from_camera).image
    for pixels in (0.3, 0.6, 1.2):
        after = imagine(views, moved(first, pixels)).image
        assert psnr(after, before) > 25 - 4 * pixels
        assert abs(after.mean() - before.mean()) < 2 + 2 * pixels


@pytest.mark.parametrize("unknown", [0.0, np.nan, np.inf])
def test_depth_that_is_no_number_is_not_observed(views, unknown):
    first = views[2]
    depth = first.depth.copy()
    depth[40:60, 60:90] = unknown
    view = imagine([replace(first, depth=depth)], first.world_from_camera)
    assert not view.observed[40:60, 60:90].any()
    assert view.estimated[40:60, 60:90].all()
    assert np.isfinite(view.depth).all()
    np.testing.assert_array_equal(view.image, first.image)


def test_an_imagined_view_coincides_until_more_of_it_is_seen(views):
    first = views[0]
    pose, shape = first.world_from_camera, first.depth.shape
    seen = np.zeros(shape, bool)
    seen[:60] = True
    imagined = replace(first, observed=seen)
    darker = replace(imagined, image=first.image // 2)
    assert coincident_imagination([first, imagined, darker], CAMERA, pose, seen) is imagined
    assert coincident_imagination([first], CAMERA, pose, seen) is None
    assert coincident_imagination([imagined], CAMERA, moved(first, 0.3), seen) is None
    assert coincident_imagination([imagined], CAMERA.resized(320, 240), pose, np.zeros((240, 320), bool)) is None
    a_little_more, much_more = seen.copy(), seen.copy()
    a_little_more[60:70], much_more[60:75] = True, True
    assert coincident_imagination([imagined], CAMERA, pose, a_little_more) is imagined
    assert coincident_imagination([imagined], CAMERA, pose, much_more) is None
