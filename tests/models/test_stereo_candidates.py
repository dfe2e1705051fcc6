"""Colours around a hole, as candidates for what it hides."""

import pytest
import torch
from torch.nn import functional

from worldstereo_ros.models.stereo_candidates import CANDIDATES, DIRECTIONS, NOTHING, first_met, mix

HEIGHT, WIDTH = 24, 40


def scene() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A hole between a near board at its left and a wall whose upper half is bright; the image ends below the hole."""
    filled = torch.zeros(1, 3, HEIGHT, WIDTH)
    filled[..., :12, :] = 1.0
    disparity = torch.full((1, 1, HEIGHT, WIDTH), 4.0)
    disparity[..., :10] = 20.0
    filled[..., :10] = -0.5
    painted = torch.zeros(1, 1, HEIGHT, WIDTH)
    painted[..., 6:, 10:16] = 1.0
    filled[..., 6:, 10:16] = 0.25
    return filled, painted, disparity


def test_first_known_colours_are_met_in_each_direction():
    filled, painted, disparity = scene()
    met, nearer = first_met(filled, painted, disparity)
    y, x = 20, 12
    colour = {d: float(met[0, k, 0, y, x]) for k, d in enumerate(DIRECTIONS)}
    difference = {d: float(nearer[0, k, y, x]) for k, d in enumerate(DIRECTIONS)}
    assert colour[(1.0, 0.0)] == 0.0
    assert colour[(0.0, -1.0)] == 1.0
    assert colour[(-1.0, 0.0)] == -0.5
    assert difference[(1.0, 0.0)] == 0.0
    assert difference[(-1.0, 0.0)] == 1.0
    assert colour[(0.0, 1.0)] == 0.25
    assert difference[(0.0, 1.0)] == NOTHING


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the loops of a GPU")
def test_a_gpu_meets_the_same():
    given = scene()
    for cpu, gpu in zip(first_met(*given), first_met(*(each.cuda() for each in given)), strict=True):
        assert torch.equal(cpu, gpu.cpu())


def test_batches_meet_as_single_images_do():
    random = torch.Generator().manual_seed(0)
    painted = (functional.avg_pool2d(torch.rand(3, 1, HEIGHT, WIDTH, generator=random), 5, 1, 2) > 0.5).float()
    filled, disparity = (torch.rand(3, n, HEIGHT, WIDTH, generator=random) for n in (3, 1))
    together = first_met(filled, painted, disparity)
    for index in range(3):
        one = slice(index, index + 1)
        for all_of, alone in zip(together, first_met(filled[one], painted[one], disparity[one]), strict=True):
            assert torch.equal(all_of[one], alone)


def test_known_pixels_are_as_they_are():
    filled, painted, disparity = scene()
    met, nearer = first_met(filled, painted, disparity)
    known = (painted[:, None] == 0).expand_as(met)
    assert torch.equal(met[known], filled[:, None].expand_as(met)[known])
    assert not nearer[(painted == 0).expand_as(nearer)].any()


def test_mixtures_stay_between_black_and_white_and_begin_at_the_fill():
    filled, painted, disparity = scene()
    met, _ = first_met(filled, painted, disparity)
    scores = torch.zeros(1, CANDIDATES, HEIGHT, WIDTH)
    assert (mix(filled, met, scores) - filled).abs().max() < 0.3
    chosen = scores.clone()
    chosen[:, 1 + DIRECTIONS.index((0.0, -1.0))] = 50.0
    assert torch.allclose(mix(filled, met, chosen), met[:, DIRECTIONS.index((0.0, -1.0))], atol=1e-4)
    for place, value in ((-2, -1.0), (-1, 1.0)):
        extreme = scores.clone()
        extreme[:, place] = 50.0
        assert torch.allclose(mix(filled, met, extreme), torch.full_like(filled, value), atol=1e-4)
