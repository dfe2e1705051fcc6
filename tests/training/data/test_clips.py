"""Batches to train on, from other processes and more than once."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.training_runs import SMOKE, toy_stage

from worldstereo_ros.training.data.dataset import WorldDataset
from worldstereo_ros.training.data.loaders import ClipSampler, PrefetchingStream
from worldstereo_ros.training.stages.finetune import channel_energy

pytestmark = pytest.mark.usefixtures("one_thread")


def test_packed_clips_are_the_same_to_what_cameras_resolve(training_worlds):
    draw = ClipSampler(2, 5, renders=True, memory=True)
    random = np.random.default_rng(1)
    batches = [draw(WorldDataset(training_worlds, "training", 4), random, torch.device("cpu")) for _ in range(3)]
    assert any(batch.references.shape[2] for batch in batches)
    for batch in batches:
        packed = {name: torch.from_numpy(array) for name, array in draw.pack(batch).items()}
        back = draw.unpack(packed)
        for field in dataclasses.fields(batch):
            before, after = getattr(batch, field.name), getattr(back, field.name)
            assert before.shape == after.shape
            assert torch.allclose(before.float(), after.float(), rtol=1e-3, atol=0.5 / 127.5 + 1e-5)


def test_loaders_give_the_same_batches_every_time_and_say_what_failed(training_worlds, tmp_path):
    dataset, device = WorldDataset(training_worlds, "training", 4), torch.device("cpu")
    draw = ClipSampler(2, 5, renders=False, memory=False)
    taken = []
    for _ in range(2):
        stream = PrefetchingStream(draw, dataset, [0, 1, 0], device, 1)
        try:
            taken.append([stream.take().images for _ in range(2)])
        finally:
            stream.close()
    assert all(torch.equal(a, b) for a, b in zip(*taken, strict=True))
    assert not torch.equal(taken[0][0], taken[0][1])
    dataset.folder = tmp_path
    stream = PrefetchingStream(draw, dataset, [0, 1, 0], device, 1)
    try:
        with pytest.raises(RuntimeError, match="no training worlds in"):
            stream.take()
    finally:
        stream.close()


def test_batches_are_learnt_from_again_while_no_new_one_is_ready(trained, training_worlds):
    stage = toy_stage(trained, training_worlds, "video")
    settings = dataclasses.replace(stage.run.settings, worlds=dataclasses.replace(SMOKE.worlds, loaders=1, replay=2))
    stage.run.settings = settings
    stage._replay = type(stage._replay)(maxlen=2)
    waited, take = [], stage._feed.take

    def rarely(*, wait=True):
        waited.append(wait)
        return take() if wait else None

    stage._feed.take = rarely
    seen = []
    for _ in range(8):
        stage.start_step()
        seen.append(stage._clips)
    assert waited == [True, True] + [False] * 6
    assert {id(clips) for clips in seen[2:]} == {id(clips) for clips in seen[:2]}


def test_planes_go_on_in_holes_alone(training_worlds):
    """What the cloud shows is the same with and without them."""
    draw = ClipSampler(2, 5, renders=True, memory=False, clean=True)
    random = np.random.default_rng(1)
    batches = [draw(WorldDataset(training_worlds, "training", 4), random, torch.device("cpu")) for _ in range(4)]
    for batch in batches:
        assert batch.layouts.shape == batch.renders.shape
        assert torch.equal(batch.layouts[:, :, 0], batch.images[:, :, 0])  # the seed
        assert not batch.plane_channels[:, :, 0].any()
        assert batch.plane_channels.shape[3] * 8 == batch.images.shape[3]
    changed = [((b.layouts - b.renders).abs().amax(1) > 0.1).float() for b in batches]
    holes = [b.holes[:, 0] for b in batches]
    # A pixel of the model's size beside a hole may have a part of it.
    near = [torch.nn.functional.max_pool2d(h, 3, 1, 1) for h in holes]
    assert sum(float(c.sum()) for c in changed) > 100
    assert sum(float((c * n).sum()) for c, n in zip(changed, near, strict=True)) > 0.9 * sum(
        float(c.sum()) for c in changed
    )


class _Weighing:
    """Decodes channel k by multiplying it with k + 1."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents * torch.arange(1, latents.shape[1] + 1).view(1, -1, 1, 1, 1)


def test_channels_count_by_what_they_change_in_the_picture():
    energy = channel_energy(_Weighing(), torch.randn(1, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(energy, torch.tensor([1.0, 4, 9, 16]) / 30, rtol=0.1, atol=0)


def test_polishing_weighs_channels_and_holes(trained, training_worlds):
    stage = toy_stage(trained, training_worlds, "finetune", pixel_share=0.5, covered_weight=0.25)
    for _ in range(10):
        stage.start_step()
        clips = stage._clips
        weights = stage._weights(clips)
        holes = torch.nn.functional.adaptive_avg_pool3d(clips.inputs["render_mask"], clips.latents.shape[2:])
        if (holes == 1).any() and (holes == 0).any():
            break
    assert weights.expand_as(clips.latents).mean() == pytest.approx(1, rel=1e-4)
    channel = weights[:, 3]
    inside, outside = channel[holes[:, 0] == 1], channel[holes[:, 0] == 0]
    torch.testing.assert_close(outside.mean() / inside.mean(), torch.tensor(0.25))
    assert weights.amin() > 0
    even = toy_stage(trained, training_worlds, "finetune", pixel_share=0.0, covered_weight=1.0)
    assert torch.equal(even._weights(clips).expand_as(clips.latents), torch.ones_like(clips.latents))
