"""The network of completions: shapes, and that what is far away in an even world does not depend on where it is."""

import pytest
import torch

from worldstereo_ros.models.completion_network import MULTIPLE, CompletionNetwork


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return CompletionNetwork().eval()


@pytest.mark.parametrize("shape", [(MULTIPLE, MULTIPLE), (2 * MULTIPLE, 3 * MULTIPLE)])
def test_there_is_a_logit_for_each_cell(network, shape):
    with torch.inference_mode():
        logits = network(torch.zeros(2, 2, *shape))
    assert logits.shape == (2, *shape)
    assert logits.isfinite().all()


def test_a_world_that_lies_elsewhere_is_completed_alike(network):
    seen = torch.zeros(1, 2, 6 * MULTIPLE, 6 * MULTIPLE)
    seen[0, 0, 70:80, 70:90] = 1
    seen[0, 1, 70, 70:90] = 1
    with torch.inference_mode():
        here, there = network(seen)[0], network(torch.roll(seen, (MULTIPLE, 2 * MULTIPLE), (2, 3)))[0]
    part = (slice(64, 96), slice(64, 96))
    moved = torch.roll(there, (-MULTIPLE, -2 * MULTIPLE), (0, 1))
    assert here[part].std() > 0
    torch.testing.assert_close(moved[part], here[part], atol=0.2 * float(here[part].std()), rtol=0)
