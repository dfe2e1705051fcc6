"""Compositing of generated images with memory."""

import numpy as np
import pytest
import torch

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.base import Conditioning
from worldstereo_ros.pipelines.geometric.warped_view import WarpedView
from worldstereo_ros.pipelines.worldstereo.compositing import COVERED_WEIGHT, mix_with_memory
from worldstereo_ros.rendering.splatting import Rendering


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
    warped = WarpedView(white, dots | dense, np.ones(shape, np.float32), depth[0].numpy(), [], np.zeros(0))

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
