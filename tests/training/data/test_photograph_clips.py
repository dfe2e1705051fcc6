"""Training clips whose memory is photographs with the depth that reconstruction finds."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from worldstereo_ros.training.data import photograph_clips
from worldstereo_ros.training.data.dataset import WorldDataset
from worldstereo_ros.training.data.loaders import MIN_FRAMES, ClipSampler
from worldstereo_ros.training.data.photograph_clips import (
    MAX_PHOTOGRAPHS,
    MIN_PHOTOGRAPHS,
    NEAR_VIEWS,
    choose_photographs,
    sample_photograph_clips,
)

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def dataset(training_worlds):
    return WorldDataset(training_worlds, "training", 4)


@pytest.fixture
def measured(monkeypatch):
    """Photographs with true depth instead of reconstructed one, which takes seconds; records their numbers."""
    chosen: list[list[int]] = []

    def reconstruct(world, numbers):
        chosen.append(numbers)
        rows = {int(view): row for row, view in enumerate(world.fine)}
        views = {}
        for number in numbers:
            image = np.ascontiguousarray(world.fine_image[rows[number]].permute(1, 2, 0).numpy())
            depth = world.fine_depth[rows[number]].float().numpy()
            pose = world.pose[number].double().numpy()
            views[number] = photograph_clips.View(image, photograph_clips.fine_camera(world.camera), pose, depth)
        return views

    monkeypatch.setattr(photograph_clips, "reconstruct_photographs", reconstruct)
    return chosen


def test_half_of_the_photographs_are_near_the_path(dataset):
    world = dataset.worlds[dataset.order[0]]
    fine, walk = set(world.fine.tolist()), world.walk.numpy()
    path = np.flatnonzero(walk == walk[0])[:5]
    random, sizes = np.random.default_rng(0), set()
    for _ in range(40):
        chosen = choose_photographs(world, path, random)
        near = [view for view in chosen if walk[view] == walk[0] and view <= path[-1] + NEAR_VIEWS]
        assert len(set(chosen)) == len(chosen)
        assert set(chosen) <= fine
        assert len(near) >= (len(chosen) + 1) // 2
        sizes.add(len(chosen))
    assert sizes == set(range(MIN_PHOTOGRAPHS, MAX_PHOTOGRAPHS + 1))


def test_clips_start_from_a_photograph_and_refer_to_photographs(dataset, measured):
    random = np.random.default_rng(0)
    batch = sample_photograph_clips(dataset, 3, 5, random, CPU)
    assert batch.images.shape[:3] == (3, 3, 5)
    assert batch.renders.shape == batch.images.shape
    assert 1 <= batch.references.shape[2] <= len(measured[-1])
    assert len(batch.reference_index) == batch.references.shape[2]
    assert torch.equal(batch.images[:, :, 0], batch.renders[:, :, 0])
    assert not batch.holes[:, :, 0].any()
    assert torch.isfinite(batch.plucker).all()
    assert len(measured) == 1  # one set of photographs for all clips


def test_photographs_without_depth_are_replaced(dataset, measured, monkeypatch):
    reconstruct, attempts = photograph_clips.reconstruct_photographs, []

    def fail_once(world, numbers):
        attempts.append(numbers)
        if len(attempts) == 1:
            raise photograph_clips.InputError("No photograph has depth.")
        return reconstruct(world, numbers)

    monkeypatch.setattr(photograph_clips, "reconstruct_photographs", fail_once)
    assert len(sample_photograph_clips(dataset, 1, 4, np.random.default_rng(0), CPU).images) == 1
    assert len(attempts) == 2


def test_never_any_depth_is_an_error(dataset, monkeypatch):
    def fail(world, numbers):
        raise photograph_clips.InputError("No photograph has depth.")

    monkeypatch.setattr(photograph_clips, "reconstruct_photographs", fail)
    with pytest.raises(photograph_clips.InputError, match="no photographs with depth were found"):
        sample_photograph_clips(dataset, 1, 4, np.random.default_rng(0), CPU)


def test_depth_is_that_of_reconstruction(dataset):
    world = dataset.worlds[dataset.order[0]]
    numbers = [int(view) for view in world.fine[:3]]
    found = photograph_clips.reconstruct_photographs(world, numbers)
    assert set(found) <= set(numbers)
    for number, view in found.items():
        np.testing.assert_allclose(view.world_from_camera, world.pose[number].numpy(), atol=1e-6)
        assert view.estimated_mask.any()
    darker = replace(world, fine_depth=torch.zeros_like(world.fine_depth))
    again = photograph_clips.reconstruct_photographs(darker, numbers)  # true depth is not looked at
    for number, view in found.items():
        np.testing.assert_array_equal(again[number].depth, view.depth)


def test_sampler_takes_photographs_in_its_share_of_batches(dataset, measured):
    sampler = ClipSampler(1, 5, renders=True, memory=True, short_clip_prob=0.5, photographs_prob=0.5)
    random = np.random.default_rng(0)
    batches = [sampler(dataset, random, CPU) for _ in range(8)]
    assert 0 < len(measured) < len(batches)
    assert {batch.images.shape[2] for batch in batches} <= {MIN_FRAMES, 5}
