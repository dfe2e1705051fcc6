"""Views that are requested again: what was imagined does not raise its own confidence."""

import functools

import numpy as np
import pytest

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import interpolate_poses
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.scenes import make_path, make_scene, render_view, seed_of
from worldstereo_ros.world import WorldModel


@functools.cache
def drive(kind: str, seed: int) -> tuple[list[View], np.ndarray]:
    """Ten observed views of the first half of a drive, and four poses (4, 4, 4) of the second, as the demo has them."""
    scene, camera = make_scene(kind, seed_of("demo", seed)), Camera.from_fov(160, 120, np.radians(75))
    poses = make_path(scene, "ground", 240, seed_of("demo", seed))
    observed = [render_view(scene, camera, pose) for pose in interpolate_poses(poses[:120], 10)]
    return observed, interpolate_poses(poses[110:], 24)[13:17]


@pytest.mark.parametrize(
    ("name", "kind", "seed"),
    [
        ("geometric", "room", 0),
        ("geometric", "room", 1),
        ("geometric", "corridor", 0),
        ("geometric", "warehouse", 0),
        ("small", "room", 0),
        ("small", "warehouse", 0),
    ],
)
def test_asking_again_raises_no_confidence(name, kind, seed):
    """The same four views three times, remembered: what was imagined does not confirm itself."""
    observed, path = drive(kind, seed)
    world = WorldModel(load_pipeline(name))
    for view in observed:
        world.observe(view)
    requests = []
    for _ in range(3):
        views = list(world.imagine(path, observed[0].camera, remember=True))
        requests.append([np.stack(layer) for layer in zip(*map(layers, views), strict=True)])
    always = np.logical_and.reduce([imagined for imagined, _, _ in requests])
    assert always.mean() > 0.05
    for which in (1, 2):
        means = [float(request[which][always].mean()) for request in requests]
        # A pixel may show a surface that another view imagined, and an image imagined anew differs a little.
        assert max(means[1:]) <= means[0] + 0.015, means
        assert means[2] <= means[1] + 0.005, means


def layers(view: ImaginedView) -> tuple[np.ndarray, ...]:
    """(imagined, confidence, confidence of depth) of the pixels of a view."""
    return view.provenance == Provenance.IMAGINED, view.confidence, view.depth_confidence
