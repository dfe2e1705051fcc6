"""Compositing of generated images with memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.walls import ODD_WALL, WALL

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.base import Conditioning, PipelineFrame
from worldstereo_ros.pipelines.geometric.registration import Registration
from worldstereo_ros.pipelines.geometric.warped_view import WarpedView
from worldstereo_ros.pipelines.worldstereo.compositing import COVERED_WEIGHT, compose, mix_with_memory
from worldstereo_ros.pipelines.worldstereo.pipeline import WorldStereoPipeline
from worldstereo_ros.rendering.splatting import Rendering
from worldstereo_ros.world import WorldModel


def test_mix_with_memory_ignores_sparse_imagined_points() -> None:
    """An imagined surface rendered from nearby is a grid of points with gaps; the generated image replaces it."""
    shape = (60, 160)
    dots, dense = np.zeros(shape, bool), np.zeros(shape, bool)
    dots[::6, 0:60:6] = dots[1::6, 0:60:6] = True
    dense[:, 100:] = True
    covered = torch.from_numpy(dots | dense)[None]
    observed = torch.zeros_like(covered)
    colour, depth = torch.zeros((1, *shape, 3), dtype=torch.uint8), covered.float()
    camera = Camera.from_fov(shape[1], shape[0], 1.2)
    white, black = np.full((*shape, 3), 255, np.uint8), np.zeros((*shape, 3), np.uint8)
    warped = WarpedView(white, dots | dense, np.ones(shape, np.float32), depth[0].numpy(), [], Registration.unknown(0))

    def mixed(observed: torch.Tensor) -> np.ndarray:
        renders = Rendering(colour, depth, covered, covered.to(torch.uint8) + 2 * observed.to(torch.uint8))
        start = View(white, camera, np.eye(4))
        return mix_with_memory(
            black, warped, Conditioning(start, renders, camera, np.eye(4)[None], [], np.array([-1])), 0
        )

    assert (mixed(observed)[:, :60] == 0).all()
    # Where the points are dense, both contribute.
    assert mixed(observed)[10:50, 130:150].mean() == pytest.approx(255 * COVERED_WEIGHT, abs=1)
    assert mixed(covered)[:, :60].max() > 0  # observed points are used even if sparse


def test_compose_takes_observed_and_estimated_pixels_from_memory() -> None:
    rng = np.random.default_rng(0)
    memory, imagined = rng.integers(0, 256, (2, 30, 40, 3), dtype=np.uint8)
    observed, estimated = np.zeros((2, 30, 40), bool)
    observed[:, :10], estimated[:, 10:20] = True, True
    frame = PipelineFrame(memory, None, observed, estimated=estimated)
    composed = compose(frame, imagined)
    np.testing.assert_array_equal(composed.image[:, :20], memory[:, :20])
    assert (composed.image[:, 35:] != memory[:, 35:]).mean() > 0.9
    np.testing.assert_array_equal(composed.estimated, estimated)


@pytest.mark.parametrize("wall", [WALL, ODD_WALL])
@pytest.mark.parametrize("holes", [False, True])
def test_the_model_shows_an_observation_exactly_from_where_it_was_taken(small_checkpoint, wall, holes) -> None:
    first, second = wall.views()
    depth = first.depth.copy()
    if holes:
        depth[10:30, 20:50] = 0
    world = WorldModel(WorldStereoPipeline.from_pretrained(small_checkpoint, "memory-dmd"))
    world.observe(replace(first, depth=depth))
    world.observe(replace(second, image=(second.image * 0.6).astype(np.uint8)))
    beside = first.world_from_camera.copy()
    beside[0, 3] += 0.3
    exact, other = world.imagine(np.stack([first.world_from_camera, beside]), wall.camera)
    np.testing.assert_array_equal(exact.image, first.image)
    np.testing.assert_array_equal(exact.observed_mask, depth > 0)
    np.testing.assert_array_equal(exact.estimated_mask, depth == 0)
    np.testing.assert_array_equal(exact.depth[depth > 0], depth[depth > 0])
    assert not (other.observed_mask | other.estimated_mask).all()
