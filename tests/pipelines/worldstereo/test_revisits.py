"""A place that was imagined and remembered looks the same from the same pose; what was observed since replaces it."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldstereo_ros.evaluation.world_sequences import world_sequence
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.world import WorldModel

CAMERA = Camera.from_fov(128, 96, np.radians(75))


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline("small", local_files_only=True)


@pytest.fixture(scope="module")
def walk():
    return world_sequence("test", 0, views=13, camera=CAMERA)


def turned(pose, degrees):
    """The pose of a camera that turns to the right on the spot."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("y", degrees, degrees=True).as_matrix()
    return pose @ turn


def test_a_remembered_view_returns(pipeline, walk):
    """The first view of a path joins no bank, so it is not compared."""
    world = WorldModel(pipeline)
    world.observe(walk[0])
    path = np.stack([turned(walk.poses[0], degrees) for degrees in (25, 40, 55)])
    first = list(world.imagine(path, CAMERA, seed=1, remember=True))
    assert (first[-1].provenance == Provenance.IMAGINED).mean() > 0.3
    again = list(world.imagine(path[::-1], CAMERA, seed=2))[::-1]
    for view, same in zip(first[1:], again[1:], strict=True):
        imagined = ~view.observed_mask & ~same.observed_mask
        difference = np.abs(view.image.astype(int) - same.image)[imagined]
        assert np.mean(difference) < 1


def test_what_was_observed_since_replaces_what_was_imagined(pipeline, walk):
    world = WorldModel(pipeline)
    world.observe(walk[0])
    path, true = walk.poses[[3, 6]], walk[6]
    before = list(world.imagine(path, CAMERA, remember=True))[-1]
    world.observe(replace(true, image=255 - true.image))
    (beside,) = world.imagine(walk.poses[[5]], CAMERA)
    (after,) = world.imagine(path[1:], CAMERA)
    assert (before.image != true.image).mean() > 0.1
    np.testing.assert_array_equal(after.image, 255 - true.image)
    assert beside.observed_mask.mean() > 0.5
