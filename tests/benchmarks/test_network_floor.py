"""The number of operations that `network_floor` counts, against networks whose number is known."""

import pytest
import torch
from network_floor import Operations, TensorShape
from torch import nn
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("one_thread")


def flops_of(work):
    with torch.no_grad(), Operations() as operations:
        work()
    return operations.flops


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operations_of_known_networks(dtype):
    linear, tokens = nn.Linear(24, 40).to(dtype), torch.randn(3, 7, 24, dtype=dtype)
    assert flops_of(lambda: linear(tokens)) == 2 * 3 * 7 * 24 * 40
    conv, images = nn.Conv2d(5, 6, 3, stride=2, padding=1).to(dtype), torch.randn(2, 5, 8, 12, dtype=dtype)
    assert flops_of(lambda: conv(images)) == 2 * 2 * 6 * (4 * 6) * 5 * 9
    grouped, clip = nn.Conv3d(4, 4, (1, 2, 2), stride=(1, 2, 2)).to(dtype), torch.randn(1, 4, 3, 4, 6, dtype=dtype)
    assert flops_of(lambda: grouped(clip)) == 2 * 4 * (3 * 2 * 3) * 4 * 4
    query = torch.randn(2, 3, 10, 16, dtype=dtype)
    key = torch.randn(2, 3, 14, 16, dtype=dtype)
    # Two products of (10, 16) and (14, 16) for each of the 6 heads, by whatever kernel.
    attention = flops_of(lambda: functional.scaled_dot_product_attention(query, key, key))
    assert attention == 2 * 2 * 6 * 10 * 14 * 16
    assert flops_of(lambda: functional.silu(images).sum()) == 0


def test_each_recorded_operation_is_timed_as_often_as_it_ran():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    with torch.no_grad(), Operations() as operations:
        model(torch.randn(5, 8))
    assert sorted(operations.counts.values()) == [1, 2]
    shapes = []

    def clock(work):
        shapes.append(tuple(work().shape))
        return 1.0

    assert operations.seconds(clock) == 3.0
    assert sorted(shapes) == [(5, 4), (5, 8)]


def test_recorded_layout_is_kept():
    shape = TensorShape((2, 3), (1, 2), torch.bfloat16, torch.device("cpu"))
    made = shape.make()
    assert (tuple(made.shape), made.stride(), made.dtype) == ((2, 3), (1, 2), torch.bfloat16)
    assert made.float().std() > 0


def test_only_the_networks_are_recorded(small_checkpoint):
    """The depth network runs along the path as well, but is no part of what the floor is compared with."""
    import numpy as np
    from network_floor import recording

    from worldstereo_ros.pipelines.auto import load_pipeline

    pipeline = load_pipeline(str(small_checkpoint))
    image = np.zeros((1, 3, 16, 16), np.float32)
    with torch.no_grad(), recording(pipeline) as operations:
        nn.Linear(8, 8)(torch.randn(5, 8))
        assert operations.flops == 0
        latents = pipeline.autoencoder.encode(torch.from_numpy(image))
        encoded = operations.flops
        assert encoded > 0
        list(pipeline.autoencoder.decode_frames(latents.transpose(0, 1)))
        assert operations.flops > encoded
