"""The schedulers: exact on a straight flow, resumable, configured by a checkpoint."""

import json

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from helpers.checkpoints import DMD, write_scheduler

from worldstereo_ros.models.schedulers import DMDScheduler, make_scheduler


def denoise(scheduler, clean, noise, steps=None):
    """Denoises with a perfect model: velocity = noise - clean everywhere on the line between them."""
    scheduler.set_timesteps(steps)
    sample = noise.clone()
    for timestep in scheduler.timesteps:
        sample = scheduler.step(noise - clean, timestep, sample).prev_sample
    return sample


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 4, 2, 3, 3, generator=generator), torch.randn(1, 4, 2, 3, 3, generator=generator)


def test_default_timesteps_are_the_published_ones():
    assert DMDScheduler().timesteps.tolist() == pytest.approx([1000, 937.5, 833.3333, 625], abs=1e-3)


@pytest.mark.parametrize("steps", [None, 1, 7])
def test_dmd_solves_a_straight_flow(pair, steps):
    clean, noise = pair
    torch.testing.assert_close(denoise(DMDScheduler(), clean, noise, steps), clean, atol=1e-5, rtol=1e-5)


def test_unipc_solves_a_straight_flow(pair):
    clean, noise = pair
    torch.testing.assert_close(denoise(make_scheduler({}), clean, noise, 8), clean, atol=1e-3, rtol=1e-3)


def test_add_noise_interpolates(pair):
    clean, noise = pair
    scheduler = DMDScheduler()
    both = scheduler.add_noise(clean.repeat(2, 1, 1, 1, 1), noise.repeat(2, 1, 1, 1, 1), torch.tensor([1000.0, 250.0]))
    torch.testing.assert_close(both[0], noise[0])
    torch.testing.assert_close(both[1], 0.75 * clean[0] + 0.25 * noise[0])


def test_steps_can_start_in_the_middle(pair):
    """The step index is derived from the timestep, as in diffusers, for image-to-image."""
    clean, noise = pair
    scheduler = DMDScheduler()
    timestep = scheduler.timesteps[2]
    sample = scheduler.add_noise(clean, noise, timestep[None])
    for t in scheduler.timesteps[2:]:
        sample = scheduler.step(noise - clean, t, sample).prev_sample
    torch.testing.assert_close(sample, clean, atol=1e-5, rtol=1e-5)
    assert scheduler.step_index == 4
    with pytest.raises(ValueError, match="All 4 steps are done"):
        scheduler.step(noise, timestep, sample)
    scheduler.set_timesteps()
    scheduler.set_begin_index(3)
    (last,) = scheduler.step(noise - clean, scheduler.timesteps[3], 0.625 * noise + 0.375 * clean, return_dict=False)
    torch.testing.assert_close(last, clean, atol=1e-5, rtol=1e-5)


def test_step_keeps_the_dtype(pair):
    scheduler = DMDScheduler()
    sample = scheduler.step(pair[0].bfloat16(), scheduler.timesteps[0], pair[1].bfloat16()).prev_sample
    assert sample.dtype == torch.bfloat16


def test_save_pretrained_round_trip(tmp_path):
    DMDScheduler(start_timestep=100, shift=3.0, steps=8).save_pretrained(tmp_path)
    again = DMDScheduler.from_pretrained(tmp_path)
    torch.testing.assert_close(again.timesteps, DMDScheduler(100, 1000, 3.0, 8).timesteps)


def test_make_scheduler_from_checkpoint_config(tmp_path):
    distilled = make_scheduler({**DMD, "dmd_steps": 3, "gen_shift": 2.0})
    assert isinstance(distilled, DMDScheduler)
    torch.testing.assert_close(distilled.timesteps, DMDScheduler(shift=2.0, steps=3).timesteps)

    write_scheduler(tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "flow_shift": 7.0}))
    other = make_scheduler({}, tmp_path)
    assert isinstance(other, UniPCMultistepScheduler)
    assert other.config.flow_shift == 7.0
    file.write_text("{")
    with pytest.raises(ValueError, match="could not be read as JSON"):
        make_scheduler({}, tmp_path)


@pytest.mark.parametrize("wrong", [{"start_timestep": 2000}, {"shift": 0}, {"num_train_timesteps": 0}, {"steps": 0}])
def test_invalid_schedules_raise(wrong):
    with pytest.raises(ValueError, match=r"needed\."):
        DMDScheduler(**wrong)
