"""Streams of batches, and the weights of the fine-tuning loss."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.training_runs import SMOKE, toy_stage

from worldstereo_ros.training.data.dataset import WorldDataset
from worldstereo_ros.training.data.loaders import ClipSampler, LoaderError, PrefetchingStream
from worldstereo_ros.training.stages.finetune import channel_energy

pytestmark = pytest.mark.usefixtures("one_thread")


def test_packing_clips_changes_less_than_one_grey_level(training_worlds):
    sampler = ClipSampler(2, 5, renders=True, memory=True)
    random = np.random.default_rng(1)
    batches = [sampler(WorldDataset(training_worlds, "training", 4), random, torch.device("cpu")) for _ in range(3)]
    assert any(batch.references.shape[2] for batch in batches)
    for batch in batches:
        packed = {name: torch.from_numpy(array) for name, array in sampler.pack(batch).items()}
        unpacked = sampler.unpack(packed)
        for field in dataclasses.fields(batch):
            before, after = getattr(batch, field.name), getattr(unpacked, field.name)
            assert before.shape == after.shape
            assert torch.allclose(before.float(), after.float(), rtol=1e-3, atol=0.5 / 127.5 + 1e-5)


def test_loaders_are_deterministic_and_report_errors(training_worlds, tmp_path):
    dataset, device = WorldDataset(training_worlds, "training", 4), torch.device("cpu")
    sampler = ClipSampler(2, 5, renders=False, memory=False)
    taken = []
    for _ in range(2):
        stream = PrefetchingStream(sampler, dataset, [0, 1, 0], device, 1)
        try:
            taken.append([stream.take().images for _ in range(2)])
        finally:
            stream.close()
    assert all(torch.equal(a, b) for a, b in zip(*taken, strict=True))
    assert not torch.equal(taken[0][0], taken[0][1])
    dataset.folder = tmp_path
    stream = PrefetchingStream(sampler, dataset, [0, 1, 0], device, 1)
    try:
        # One line, and no unexpected error, for the command line.
        with pytest.raises(LoaderError, match=r"^A loader process failed: [^\n]*no training worlds in [^\n]*$"):
            stream.take()
    finally:
        stream.close()


def test_recent_batches_are_replayed_while_no_new_one_is_ready(trained, training_worlds):
    stage = toy_stage(trained, training_worlds, "video")
    config = dataclasses.replace(stage.run.config, worlds=dataclasses.replace(SMOKE.worlds, loaders=1, replay=2))
    stage.run.config = config
    stage.replay = type(stage.replay)(maxlen=2)
    waited, take = [], stage.stream.take

    def take_if_waiting(*, wait=True):
        waited.append(wait)
        return take() if wait else None

    stage.stream.take = take_if_waiting
    seen = []
    for _ in range(8):
        stage.start_step()
        seen.append(stage.clips)
    assert waited == [True, True] + [False] * 6
    assert {id(clips) for clips in seen[2:]} == {id(clips) for clips in seen[:2]}


def test_planes_are_extrapolated_into_holes_only(training_worlds):
    """Pixels that the cloud covers are the same with and without extrapolated planes."""
    sampler = ClipSampler(2, 5, renders=True, memory=False, clean=True)
    random = np.random.default_rng(1)
    batches = [sampler(WorldDataset(training_worlds, "training", 4), random, torch.device("cpu")) for _ in range(4)]
    for batch in batches:
        assert batch.layouts.shape == batch.renders.shape
        assert torch.equal(batch.layouts[:, :, 0], batch.images[:, :, 0])  # the start view
        assert not batch.plane_channels[:, :, 0].any()
        assert batch.plane_channels.shape[3] * 8 == batch.images.shape[3]
    changed = [((b.layouts - b.renders).abs().amax(1) > 0.1).float() for b in batches]
    holes = [b.holes[:, 0] for b in batches]
    # Pixels beside a hole may contain a part of it at a higher resolution.
    near = [torch.nn.functional.max_pool2d(h, 3, 1, 1) for h in holes]
    assert sum(float(c.sum()) for c in changed) > 100
    assert sum(float((c * n).sum()) for c, n in zip(changed, near, strict=True)) > 0.9 * sum(
        float(c.sum()) for c in changed
    )


class _ScalingDecoder:
    """Multiplies channel k by k + 1."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents * torch.arange(1, latents.shape[1] + 1).view(1, -1, 1, 1, 1)


def test_channel_energy_is_the_squared_effect_on_the_image():
    energy = channel_energy(_ScalingDecoder(), torch.randn(1, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(energy, torch.tensor([1.0, 4, 9, 16]) / 30, rtol=0.1, atol=0)


def test_finetune_loss_weights_channels_and_holes(trained, training_worlds):
    stage = toy_stage(trained, training_worlds, "finetune", pixel_share=0.5, covered_weight=0.25)
    for _ in range(10):
        stage.start_step()
        clips = stage.clips
        weights = stage.loss_weights(clips)
        holes = torch.nn.functional.adaptive_avg_pool3d(clips.inputs["render_mask"], clips.latents.shape[2:])
        if (holes == 1).any() and (holes == 0).any():
            break
    assert weights.expand_as(clips.latents).mean() == pytest.approx(1, rel=1e-4)
    channel = weights[:, 3]
    inside, outside = channel[holes[:, 0] == 1], channel[holes[:, 0] == 0]
    torch.testing.assert_close(outside.mean() / inside.mean(), torch.tensor(0.25))
    assert weights.amin() > 0
    uniform = toy_stage(trained, training_worlds, "finetune", pixel_share=0.0, covered_weight=1.0)
    assert torch.equal(uniform.loss_weights(clips).expand_as(clips.latents), torch.ones_like(clips.latents))
