"""Losses of the point-map autoencoder: the published one, and those that it is compared with."""

import pytest
import torch

from worldstereo_ros.training.pointmap_losses import CODE_ERRORS, code_error, decoder_loss, direction_loss
from worldstereo_ros.utils.errors import InputError


def test_errors_of_codes_can_be_compared():
    target = torch.zeros(2, 3, 4, 4)
    small, large = target + 0.01, target + 1.0
    assert code_error(small, target).item() == pytest.approx(code_error(small, target, "l2").item())
    assert code_error(large, target).item() == pytest.approx(code_error(large, target, "l1").item(), abs=0.03)
    assert code_error(large, target, "l2").item() > 5 * code_error(large, target, "l1").item()
    with pytest.raises(InputError, match="huber, l1, l2"):
        code_error(small, target, "l3")
    hit = torch.ones(2, 4, 4, dtype=torch.bool)
    points = torch.rand(2, 3, 4, 4) + 1
    for kind in CODE_ERRORS:
        loss, parts = decoder_loss(small, torch.zeros(2, 4, 4), torch.zeros(2, 4, 4), points, target, hit, error=kind)
        assert torch.isfinite(loss)
        assert set(parts) == {kind, "relative", "surface"}


def test_directions_do_not_depend_on_distances():
    truth = torch.rand(1, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) + 1
    centres = torch.tensor([[[0.0, 0, 0], [0.2, 0, 0.1]]])
    apart = truth - centres[..., None, None]
    mask = torch.ones(1, 2, 4, 5, dtype=torch.bool)
    assert direction_loss(truth, truth, centres, mask) < 2e-3
    assert direction_loss(centres[..., None, None] + 3 * apart, truth, centres, mask) < 2e-3
    turned = centres[..., None, None] + apart.roll(1, 2)
    assert direction_loss(turned, truth, centres, mask) > 0.1
    assert direction_loss(turned, truth, centres, ~mask) == 0
