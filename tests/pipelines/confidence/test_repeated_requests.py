"""Views that are requested again: what was imagined does not raise its own confidence."""

import numpy as np
import pytest

from worldstereo_ros.evaluation.demo_scenarios import scene_scenario
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import ImaginedView
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.world import WorldModel


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
    scenario = scene_scenario(kind, seed, 24, width=160, height=120)
    world = WorldModel(load_pipeline(name))
    for view in scenario.observed_views:
        world.observe(view)
    path, camera = scenario.path[13:17], scenario.observed_views[0].camera
    requests = []
    for _ in range(3):
        views = list(world.imagine(path, camera, remember=True))
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
