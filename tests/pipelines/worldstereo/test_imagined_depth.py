"""Depth of imagined pixels: planes where the depth network roughly agrees, else the network."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from worldstereo_ros.depth.alignment import DepthError
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.pipelines.base import PipelineFrame
from worldstereo_ros.pipelines.geometric.layout import PlaneRender
from worldstereo_ros.pipelines.worldstereo.imagined_depth import (
    MAX_ASSUMED_RATIO,
    MAX_DETECTED_RATIO,
    MIN_PLANE_PROBABILITY,
    complete_frame,
)

SHAPE, CAMERA = (48, 64), Camera.from_fov(64, 48, np.radians(70))
HOLE = np.arange(64)[None] >= np.full((48, 1), 32)  # memory shows the left half, 2 m away


def _depth(ratio: float, plane: int, probability: float = 0.9, network=None) -> np.ndarray:
    """Depth of a view whose right half shows a plane at `ratio` times what the network says; planes from 1 on are
    assumed."""
    known = np.where(HOLE, 0, 2).astype(np.float32)
    provenance = np.where(HOLE, Provenance.UNKNOWN, Provenance.OBSERVED).astype(np.uint8)
    renders = SimpleNamespace(covered=torch.from_numpy(~HOLE)[None], provenance=torch.from_numpy(provenance)[None])
    conditioning = SimpleNamespace(renders=renders, camera=CAMERA)
    frame = PipelineFrame(np.zeros((*SHAPE, 3), np.uint8), known, ~HOLE)
    planes = PlaneRender(
        np.zeros((*SHAPE, 3), np.float32),
        np.where(HOLE, np.float32(2 * ratio), 0).astype(np.float32),
        np.where(HOLE, np.float32(probability), 0).astype(np.float32),
        np.where(HOLE, plane, -1).astype(np.int16),
    )
    network = network or (lambda image, camera: np.full(SHAPE, 1.0, np.float32))  # half of it: scaled to memory
    completed = complete_frame(frame, conditioning, 0, planes, network, detected=1)
    np.testing.assert_array_equal(completed.depth[~HOLE], 2)
    np.testing.assert_allclose(completed.plane_absence, np.where(HOLE, 1 - probability, 0), atol=1e-6)
    return completed.depth[HOLE]


@pytest.mark.parametrize(("plane", "limit"), [(0, MAX_DETECTED_RATIO), (1, MAX_ASSUMED_RATIO)])
def test_planes_give_the_depth_where_the_network_roughly_agrees(plane, limit):
    for ratio in (0.95 * limit, 1 / (0.95 * limit)):
        np.testing.assert_allclose(_depth(ratio, plane), 2 * ratio, rtol=1e-4)
    for ratio in (1.1 * limit, 1 / (1.1 * limit)):
        np.testing.assert_allclose(_depth(ratio, plane), 2, rtol=1e-4)


def test_a_seen_plane_may_differ_more_than_an_assumed_one():
    between = 0.5 * (MAX_ASSUMED_RATIO + MAX_DETECTED_RATIO)
    assert np.median(_depth(between, 0)) > 1.2 * np.median(_depth(between, 1))


def test_unlikely_planes_give_no_depth():
    np.testing.assert_allclose(_depth(1.3, 0, probability=0.9 * MIN_PLANE_PROBABILITY), 2, rtol=1e-4)


def test_a_view_of_nothing_but_sky_keeps_its_depth():
    def sky(image, camera):
        raise DepthError("sky")

    assert not _depth(1.0, 0, network=sky).any()
