"""What training clips are told: references as memory gives them, mirrored worlds, clips of several lengths."""

import numpy as np
import pytest
import torch

from worldstereo_ros.training.data import clip_sampling
from worldstereo_ros.training.data.dataset import WorldDataset
from worldstereo_ros.training.data.loaders import LEAST_FRAMES, ClipSampler

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def dataset(training_worlds):
    return WorldDataset(training_worlds, "training", 4)


@pytest.fixture
def drawn(monkeypatch):
    """What was chosen for every clip: (path, views of the cloud, references)."""
    rows: list[list] = []
    sources, assigned, reference = clip_sampling._sources, clip_sampling._assigned, clip_sampling._reference

    def look_at_sources(world, path, random, least):
        rows.append([path, sources(world, path, random, least), []])
        return rows[-1][1]

    def look_at_assigned(world, targets, among):
        rows[-1][2] = assigned(world, targets, among)
        return rows[-1][2]

    def look_at_reference(world, target, random):
        rows[-1][2].append(reference(world, target, random))
        return rows[-1][2][-1]

    monkeypatch.setattr(clip_sampling, "_sources", look_at_sources)
    monkeypatch.setattr(clip_sampling, "_assigned", look_at_assigned)
    monkeypatch.setattr(clip_sampling, "_reference", look_at_reference)
    return rows


@pytest.mark.parametrize("references", [0, 1, 3])
def test_references_are_what_the_cloud_is_made_of(dataset, drawn, monkeypatch, references):
    """In use, memory that has imagined nothing yet has no other views than those whose points it has."""
    monkeypatch.setattr(clip_sampling, "REMEMBERED", 1.0)
    batch = clip_sampling.draw_clips(dataset, 6, 5, np.random.default_rng(0), CPU, references=references)
    assert batch.references.shape[2] == references
    assert len(drawn) == 6
    for _, sources, chosen in drawn:
        assert len(chosen) == references
        assert set(chosen) <= set(sources)
        assert len(set(chosen)) == min(references, len(set(sources)))


def test_other_references_may_show_what_the_cloud_does_not(dataset, drawn, monkeypatch):
    monkeypatch.setattr(clip_sampling, "REMEMBERED", 0.0)
    clip_sampling.draw_clips(dataset, 8, 5, np.random.default_rng(0), CPU, references=3)
    assert any(set(chosen) - set(sources) for _, sources, chosen in drawn)


def test_a_keyframe_gets_the_source_that_shows_most_of_it(dataset):
    world = dataset.worlds[dataset.order[0]]
    fine = [int(view) for view in world.fine[:4]]
    assert clip_sampling._assigned(world, np.array(fine[::-1]), fine) == fine[::-1]


def test_a_mirrored_world_is_a_world(dataset):
    """What a pixel of one view shows is found in another view: in the mirror at the mirrored places."""
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


def test_shorter_clips_are_as_many_more_and_go_farther(dataset, drawn):
    draw = ClipSampler(4, 9, renders=True, memory=True, short_clip_prob=1.0)
    random = np.random.default_rng(2)
    sizes = set()
    for _ in range(6):
        pictures = draw(dataset, random, CPU).images
        sizes.add((pictures.shape[0], pictures.shape[2]))
    assert all(LEAST_FRAMES <= frames < 9 and count == 4 * 9 // frames for count, frames in sizes)
    assert len(sizes) > 1
    paces = {len(path): int(np.abs(np.diff(path[1:])).max()) for path, *_ in drawn}
    assert max(paces.values()) > 3
