"""Images of one to three pixels across, as misconfigured drivers and crops publish them: remembered and imagined."""

import numpy as np
import pytest

from worldstereo_ros.depth.estimators import load_depth_estimator
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.world import WorldModel

SIZES = [(1, 1), (1, 48), (2, 40), (3, 3), (64, 2), (400, 3)]  # width, height


def _camera(width: int, height: int) -> Camera:
    return Camera(width, height, 80.0, 80.0, width / 2, height / 2)


def _view(width: int, height: int, x: float, *, depth: bool = True) -> View:
    pose = np.eye(4)
    pose[0, 3] = x
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return View(image, _camera(width, height), pose, np.full((height, width), 2.0, np.float32) if depth else None)


@pytest.mark.parametrize(
    ("size", "model"), [(size, "geometric") for size in SIZES] + [((1, 1), "small"), ((3, 3), "small")]
)
def test_thin_images_are_remembered_and_imagined_among_ordinary_ones(size, model):
    world = WorldModel(load_pipeline(model))
    world.observe(_view(64, 48, 0.0))
    world.observe(_view(*size, 0.1))
    poses = [_view(1, 1, x).world_from_camera for x in (0.05, 0.4)]
    for camera in (_camera(*size), _camera(64, 48)):
        views = list(world.imagine(poses, camera, remember=True))
        assert [view.image.shape for view in views] == [(camera.height, camera.width, 3)] * 2
        assert all(np.isfinite(view.depth).all() for view in views)


@pytest.mark.parametrize("size", [(1, 1), (1, 48), (400, 3)])
def test_depth_of_thin_images_is_estimated(size):
    world = WorldModel(load_pipeline("geometric"), depth_estimator=load_depth_estimator("small"))
    world.observe(_view(64, 48, 0.0))
    world.observe(_view(*size, 0.1, depth=False))
    (view,) = world.imagine([_view(1, 1, 0.1).world_from_camera], _camera(*size))
    assert view.image.shape == (size[1], size[0], 3)
