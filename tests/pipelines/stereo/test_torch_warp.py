"""The torch twin of the warp and of the background fill against the compiled loops."""

import numpy as np
import pytest
import torch
from helpers.stereo_scene import view_from

from worldstereo_ros.pipelines.stereo import background, torch_warp, warp


def _tensors(image, disparity):
    return torch.from_numpy(image).permute(2, 0, 1)[None].float(), torch.from_numpy(disparity)[None]


@pytest.fixture(scope="module")
def scene():
    image, depth = view_from(0.0)
    disparity = (20.0 / depth).astype(np.float32)
    rows = np.arange(depth.shape[0], dtype=np.float32)[:, None]
    return image, disparity + 0.01 * rows + 0.004 * np.arange(depth.shape[1], dtype=np.float32)


@pytest.mark.parametrize("eye", warp.EYES)
def test_warps_as_the_compiled_loops_do(scene, eye):
    image, disparity = scene
    expected = warp.warp_to_eye(image, disparity, eye=eye)
    found = torch_warp.warp_to_eye(*_tensors(image, disparity), eye=eye)
    assert (found.hole[0].numpy() == expected.hole).mean() > 0.999
    both = ~expected.hole & ~found.hole[0].numpy()
    assert expected.hole.mean() > 0.02
    np.testing.assert_allclose(found.disparity[0].numpy()[both], expected.disparity[both], atol=1e-3)
    made = found.image[0].permute(1, 2, 0).numpy()
    assert np.abs(made - expected.image)[both].mean() < 0.5
    assert np.quantile(np.abs(made - expected.image)[both], 0.999) < 2.0


def test_fills_as_the_compiled_loops_do(scene):
    image, disparity = scene
    expected_warp = warp.warp_to_eye(image, disparity)
    expected = background.fill_background(expected_warp)
    given = torch_warp.WarpedEyes(*_tensors(expected_warp.image, expected_warp.disparity))
    found = torch_warp.fill_background(given, grey_levels=1.0)
    hole = expected_warp.hole
    made, disparities = found.image[0].permute(1, 2, 0).numpy(), found.disparity[0].numpy()
    assert np.array_equal(made[~hole], expected.image[~hole])
    assert np.array_equal(disparities[~hole], expected.disparity[~hole])
    # Greys are whole levels in the loops: a line may go through the pixel beside it.
    assert np.quantile(np.abs(disparities - expected.disparity)[hole], 0.9) < 1e-4
    assert np.abs(disparities - expected.disparity).max() < 0.1
    assert np.abs(made - expected.image)[hole].mean() < 0.5
    assert np.quantile(np.abs(made - expected.image)[hole], 0.99) <= 3.0


def test_a_row_without_anything_becomes_black():
    empty = torch_warp.WarpedEyes(torch.rand(1, 3, 2, 8), torch.full((1, 2, 8), torch_warp.HOLE))
    empty.disparity[0, 0, 3] = 2.0
    found = torch_warp.fill_background(empty)
    assert (found.image[0, :, 1] == 0).all()
    assert (found.disparity[0, 1] == 0).all()
    assert (found.disparity[0, 0] == 2.0).all()
