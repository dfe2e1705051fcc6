"""Estimated pixels: a camera saw the colour, the distance is estimated."""

from dataclasses import replace

import numpy as np
import pytest

from worldstereo_ros.evaluation.metrics import seen_pixels
from worldstereo_ros.evaluation.world_sequences import world_sequence
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.world import WorldModel

CAMERA = Camera.from_fov(160, 120, np.radians(75))


@pytest.fixture(scope="module")
def walk():
    return world_sequence("test", 0, views=13, camera=CAMERA)


def world_of(*views, scale: float = 1.0) -> WorldModel:
    """A world model whose depth estimator knows the true depth of the views, times `scale`."""
    depths = {view.image.tobytes(): view.depth * np.float32(scale) for view in views}
    return WorldModel(
        GeometricPipeline(threads=1), depth_estimator=lambda image, camera: depths[image.tobytes()].copy()
    )


def imagine(world, pose):
    return next(world.imagine(pose[None], CAMERA))


def test_pixels_with_estimated_depth_are_estimated_and_never_observed(walk):
    first, target = walk[0], walk[3]
    world = world_of(first)
    world.observe(replace(first, depth=None))
    view = imagine(world, target.world_from_camera)
    assert not view.observed_mask.any()
    seen = seen_pixels(target, [first])
    estimated = view.estimated_mask
    assert (estimated & seen).sum() > 0.8 * seen.sum()
    assert (estimated & seen).sum() > 0.9 * (estimated & (target.depth > 0)).sum()  # not what the view did not show
    ratio = view.depth[estimated & seen] / target.depth[estimated & seen]
    assert (np.abs(np.log(ratio)) < np.log(1.25)).mean() > 0.97


def test_measured_depth_replaces_estimated(walk):
    first, target = walk[0], walk[3]
    world = world_of(first, scale=1.3)
    world.observe(replace(first, depth=None))
    before = imagine(world, target.world_from_camera)
    world.observe(replace(first, stamp_ns=first.stamp_ns + 1))
    after = imagine(world, target.world_from_camera)
    assert before.estimated_mask.mean() > 0.3
    assert after.observed_mask.mean() > 0.3
    assert after.estimated_mask.mean() < 0.1


def test_a_turned_camera_sees_the_colours_of_an_observation_at_any_depth(walk):
    first = walk[0]
    depth = first.depth.copy()
    depth[:, 60:] = 0  # the camera turns towards what has no depth
    world = world_of()
    world.observe(replace(first, depth=depth))
    pose = trajectory("turn", first.world_from_camera, 3, angle=np.radians(10))[-1]
    view = imagine(world, pose)
    target = walk.seen_from(pose[None])[0]
    inside = seen_pixels(target, [first])
    assert 0.5 < inside.mean() < 0.95
    seen = view.observed_mask | view.estimated_mask
    assert (seen & inside).sum() > 0.97 * inside.sum()
    assert view.estimated_mask.sum() > 0.3 * inside.sum()
    assert not (seen & ~inside & (target.depth > 0)).sum() > 0.03 * seen.sum()
    error = np.abs(view.image.astype(int) - target.image)[view.estimated_mask].mean()
    assert error < 6  # resampling alone; a smooth fill is off by far more
    sideways = imagine(world, trajectory("right", first.world_from_camera, 3, distance=0.5)[-1])
    assert not sideways.estimated_mask[:, 70:].any()
