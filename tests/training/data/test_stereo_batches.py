"""Training batches of the stereo refiner: what is a truth must be one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.stereo_scene import CAMERA, pose_at, view_from

from worldstereo_ros.training.data.stereo_batches import ClipPool, carry, make_batch, valid_flow
from worldstereo_ros.training.data.stereo_clips import (
    HEIGHT_PX,
    INVALID_FLOW,
    WINDOW_PX,
    StereoClip,
    flow_between,
    render_clips,
)

FRAMES, BASE_M, STEP_M = 3, 0.2, 0.05
pytestmark = pytest.mark.usefixtures("one_thread")


def clip(*, pair: bool = True) -> StereoClip:
    """A board before a wall, from a camera that moves to the right."""
    camera = replace(CAMERA, width=WINDOW_PX, height=HEIGHT_PX)
    parts = []
    for shift in (0.0, BASE_M):
        views = [view_from(index * STEP_M + shift, board=-0.1, camera=camera) for index in range(FRAMES)]
        image, depth = (torch.from_numpy(np.stack(each)) for each in zip(*views, strict=True))
        poses = torch.from_numpy(np.stack([pose_at(index * STEP_M) for index in range(FRAMES)]))
        flow = flow_between(depth, torch.ones_like(depth, dtype=torch.bool), camera, poses)
        parts.append((image.permute(0, 3, 1, 2).contiguous(), (camera.fx / depth).half(), flow.half()))
    base = torch.tensor(BASE_M if pair else 0.0)
    return StereoClip(*parts[0], *parts[1], base)


@pytest.fixture(scope="module")
def pool() -> ClipPool:
    pool = ClipPool(3, "cpu")
    pool.add(clip())
    pool.add(clip())
    return pool


@pytest.mark.parametrize("back", [False, True])
def test_what_is_seen_fits_the_truth(pool, back):
    batch = make_batch(pool.take([0, 1]), np.full(2, back), np.random.default_rng(0), clean=True)
    known = (batch.hole == 0).expand_as(batch.target)
    assert 0.01 < float(batch.hole.mean()) < 0.4
    assert (batch.condition.filled - batch.target).abs()[known].mean() * 127.5 < 2.0
    # The truth of a hole is not what the background beside it looks like, and memory knows more than that.
    hole = batch.hole.expand_as(batch.target) > 0
    error = [float((image - batch.target).abs()[hole].mean()) for image in (batch.background, batch.condition.filled)]
    assert error[1] <= error[0]
    assert torch.equal(batch.hole, batch.condition.painted + batch.condition.remembered)


def test_frames_there_and_back_are_their_own_truth(pool):
    taken = pool.take([0])
    batch = make_batch(taken, np.array([True]), np.random.default_rng(1), clean=True)
    width = batch.target.shape[-1]
    assert torch.equal(batch.target, taken.image[..., :width].float() / 127.5 - 1)
    assert batch.condition.reference.shape[-1] == WINDOW_PX
    assert not torch.equal(batch.condition.reference[..., :width], batch.target)  # it is the other eye


def test_clips_without_another_eye_go_there_and_back():
    mono = ClipPool(1, "cpu")
    mono.add(clip(pair=False))
    batch = make_batch(mono.take([0]), np.array([False]), np.random.default_rng(2), clean=True)
    assert torch.equal(batch.target, mono.take([0]).image[..., : batch.target.shape[-1]].float() / 127.5 - 1)
    assert float(batch.hole.mean()) > 0.002


def test_both_eyes_are_those_of_another_camera(pool):
    plain = make_batch(pool.take([0]), np.array([False]), np.random.default_rng(4), clean=True)
    batch = make_batch(pool.take([0]), np.array([False]), np.random.default_rng(4))
    changes = []
    for ours, given in ((batch.target, plain.target), (batch.condition.reference, plain.condition.reference)):
        assert not torch.allclose(ours, given, atol=0.02)
        assert torch.corrcoef(torch.stack([ours.flatten(), given.flatten()]))[0, 1] > 0.9
        changes.append(float((ours - given).mean()))
    assert changes[0] == pytest.approx(changes[1], abs=0.1)  # the same camera


def test_flow_leads_to_the_frame_before(pool):
    batch = make_batch(pool.take([0]), np.array([False]), np.random.default_rng(0), clean=True)
    moved, valid = carry(batch.target[:, :-1], batch.flow[:, 1:]), valid_flow(batch.flow[:, 1:])
    kept = valid.expand_as(moved)
    assert valid.float().mean() > 0.6
    assert (moved - batch.target[:, 1:]).abs()[kept].mean() < 0.3 * (
        (batch.target[:, :-1] - batch.target[:, 1:]).abs()[kept].mean()
    )
    assert bool((batch.flow[:, 0] == INVALID_FLOW).all())


def test_bad_depth_and_single_frames_stay_finite(pool):
    random = np.random.default_rng(3)
    for _ in range(4):
        batch = make_batch(pool.take([0, 1]), random.random(2) < 0.5, random)
        parts = [*vars(batch.condition).values(), batch.target, batch.background]
        assert all(bool(torch.isfinite(part).all()) for part in parts)
    single = batch.single_frames()
    assert single.target.shape[:2] == (2 * FRAMES, 1)
    assert torch.equal(single.condition.filled[1, 0], batch.condition.filled[0, 1])


def test_a_pool_drops_the_oldest_clip(pool):
    small = ClipPool(2, "cpu")
    for base in (0.1, 0.2, 0.3):
        one = clip()
        small.add(StereoClip(**{**vars(one), "base": torch.tensor(base)}))
    assert small.count == 2
    assert sorted(small.take([0, 1]).base.tolist()) == pytest.approx([0.2, 0.3])


def test_rendered_clips_are_the_same_each_time_and_have_holes():
    made = [
        clip
        for index in range(2)
        for clip in render_clips("validation", index, frames=2, clips=1, supersample=1, light="plain")
    ]
    again = render_clips("validation", 0, frames=2, clips=1, supersample=1, light="plain")
    assert made
    assert again
    assert torch.equal(made[0].image, again[0].image)
    pool = ClipPool(1, "cpu")
    pool.add(made[0])
    batch = make_batch(pool.take([0]), np.array([False]), np.random.default_rng(0), clean=True)
    known = (batch.hole == 0).expand_as(batch.target)
    assert float(batch.hole.mean()) > 0.003
    assert (batch.condition.filled - batch.target).abs()[known].mean() * 127.5 < 4.0
