"""Sampling of training clips: reference views, mirrored worlds, short clips."""

import numpy as np
import pytest
import torch

from worldstereo_ros.training.data import clip_sampling
from worldstereo_ros.training.data.dataset import WorldDataset
from worldstereo_ros.training.data.loaders import MIN_FRAMES, ClipSampler

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def dataset(training_worlds):
    return WorldDataset(training_worlds, "training", 4)


@pytest.fixture
def samples(monkeypatch):
    """Records what is chosen for each clip: [path, views of the cloud, references]."""
    rows: list[list] = []
    choose_cloud_views, assign_references, choose_reference = (
        clip_sampling.choose_cloud_views,
        clip_sampling.assign_references,
        clip_sampling.choose_reference,
    )

    def record_cloud_views(world, path, random, min_count):
        rows.append([path, choose_cloud_views(world, path, random, min_count), []])
        return rows[-1][1]

    def record_assigned(world, keyframes, candidates):
        rows[-1][2] = assign_references(world, keyframes, candidates)
        return rows[-1][2]

    def record_reference(world, keyframe, random):
        rows[-1][2].append(choose_reference(world, keyframe, random))
        return rows[-1][2][-1]

    monkeypatch.setattr(clip_sampling, "choose_cloud_views", record_cloud_views)
    monkeypatch.setattr(clip_sampling, "assign_references", record_assigned)
    monkeypatch.setattr(clip_sampling, "choose_reference", record_reference)
    return rows


@pytest.mark.parametrize("references", [0, 1, 3])
def test_cloud_references_are_views_of_the_cloud(dataset, samples, monkeypatch, references):
    """Before anything is imagined, the view bank has the views whose points are in the cloud."""
    monkeypatch.setattr(clip_sampling, "CLOUD_REFERENCES_PROB", 1.0)
    batch = clip_sampling.sample_clips(dataset, 6, 5, np.random.default_rng(0), CPU, references=references)
    assert batch.references.shape[2] == references
    assert len(samples) == 6
    for _, cloud_views, chosen in samples:
        assert len(chosen) == references
        assert set(chosen) <= set(cloud_views)
        assert len(set(chosen)) == min(references, len(set(cloud_views)))


def test_other_references_may_be_views_outside_the_cloud(dataset, samples, monkeypatch):
    monkeypatch.setattr(clip_sampling, "CLOUD_REFERENCES_PROB", 0.0)
    clip_sampling.sample_clips(dataset, 8, 5, np.random.default_rng(0), CPU, references=3)
    assert any(set(chosen) - set(cloud_views) for _, cloud_views, chosen in samples)


def test_keyframe_gets_the_reference_with_most_overlap(dataset):
    world = dataset.worlds[dataset.order[0]]
    fine = [int(view) for view in world.fine[:4]]
    assert clip_sampling.assign_references(world, np.array(fine[::-1]), fine) == fine[::-1]


def test_mirrored_world_is_geometrically_consistent(dataset):
    """A pixel of one view is found in another view, and in the mirrored world at the mirrored pixels."""
    world = dataset.worlds[dataset.order[0]]
    mirrored = world.mirrored()
    width = world.camera.width

    def moved(world, column, row):
        depth = float(world.depth[0, row, column])
        camera = world.camera
        ray = np.array([(column - camera.cx) / camera.fx, (row - camera.cy) / camera.fy, 1, 1 / depth]) * depth
        poses = world.pose.double().numpy()
        x, y, z, _ = np.linalg.inv(poses[1]) @ poses[0] @ ray
        return x / z * camera.fx + camera.cx, y / z * camera.fy + camera.cy, z

    rows, columns = np.nonzero(world.depth[0].numpy() > 0)
    for row, column in list(zip(rows, columns, strict=True))[:: len(rows) // 20]:
        x, y, z = moved(world, column, row)
        np.testing.assert_allclose(
            moved(mirrored, width - 1 - column, row), (width - 1 - x, y, z), rtol=1e-4, atol=1e-3
        )
    assert torch.equal(mirrored.image, world.image.flip(-1))
    assert torch.allclose(mirrored.mirrored().pose, world.pose)
    assert torch.equal(mirrored.mirrored().matrix, world.matrix)


def test_short_clips_are_more_and_have_larger_strides(dataset, samples):
    sampler = ClipSampler(4, 9, renders=True, memory=True, short_clip_prob=1.0)
    random = np.random.default_rng(2)
    sizes = set()
    for _ in range(6):
        images = sampler(dataset, random, CPU).images
        sizes.add((images.shape[0], images.shape[2]))
    assert all(MIN_FRAMES <= frames < 9 and count == 4 * 9 // frames for count, frames in sizes)
    assert len(sizes) > 1
    strides = {len(path): int(np.abs(np.diff(path[1:])).max()) for path, *_ in samples}
    assert max(strides.values()) > 3
