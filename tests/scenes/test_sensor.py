"""Sensor noise: amplitudes, missing depth, determinism."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.scenes import SceneFrames, make_path, make_scene, seed_of
from worldstereo_ros.scenes.raytracing.primitives import Random
from worldstereo_ros.scenes.raytracing.render import render_scene
from worldstereo_ros.scenes.sensor import NO_NOISE, SensorNoise, add_noise, motion_blur

CAMERA = Camera.from_fov(160, 120, math.radians(80))
POSE = torch.eye(4, dtype=torch.float64)


def plane(depth: float, grey: int = 128) -> SceneFrames:
    """A wall across the view."""
    normal = torch.tensor([0.0, 0.0, -1.0]).expand(1, 120, 160, 3)
    return SceneFrames(
        torch.full((1, 120, 160, 3), grey, dtype=torch.uint8), torch.full((1, 120, 160), depth), normal.clone(),
        torch.ones(1, 120, 160, dtype=torch.int32),
    )  # fmt: skip


@pytest.fixture(scope="module")
def room() -> tuple[SceneFrames, np.ndarray]:
    scene = make_scene("room", seed_of("demo", 1))
    poses = make_path(scene, "handheld", 3, seed=0)
    return render_scene(scene, CAMERA, poses, light="plain"), poses


def only(**fields) -> SensorNoise:
    """A sensor with this effect only."""
    return SensorNoise(**{**NO_NOISE.__dict__, **fields})


class TestDepth:
    def test_error_grows_with_the_square_of_the_distance(self):
        spread = {}
        for z in (1.0, 2.0, 4.0):
            noisy = add_noise(plane(z), CAMERA, 0, noise=only(disparity=0.05, patch=1)).depth
            spread[z] = float((noisy - z).std())
            # First order: z^2 / (f b) times the matching error.
            assert spread[z] == pytest.approx(z * z / (CAMERA.fx * 0.075) * 0.05, rel=0.12)
        assert spread[4.0] > 12 * spread[1.0]

    def test_errors_are_correlated_within_the_patch_at_the_same_variance(self):
        alone, together = (
            add_noise(plane(2.0), CAMERA, 1, noise=only(disparity=0.05, patch=n)).depth[0] - 2 for n in (1, 5)
        )
        assert float(together.std() / alone.std()) == pytest.approx(1.0, abs=0.12)

        def correlation(error: torch.Tensor) -> float:
            return float(torch.corrcoef(torch.stack([error[:, :-1].flatten(), error[:, 1:].flatten()]))[0, 1])

        assert correlation(together) > 0.6
        assert abs(correlation(alone)) < 0.05

    def test_depth_is_quantised_in_disparity_steps(self):
        frames = plane(1.0)
        frames.depth[0] = torch.linspace(1, 6, 160)
        steps = CAMERA.fx * 0.075 / add_noise(frames, CAMERA, 0, noise=only(subpixel=8)).depth * 8
        torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
        assert len(steps.round().unique()) > 10

    def test_depth_outside_the_range_is_missing(self):
        for z, there in ((0.1, False), (1.0, True), (9.0, False)):
            noisy = add_noise(plane(z), CAMERA, 0, noise=only(near=0.2, far=8.0))
            assert bool((noisy.depth > 0).all()) == there
            assert bool((noisy.depth > 0).any()) == there

    def test_edges_and_slanted_surfaces_lose_depth(self):
        frames = plane(2.0)
        frames.depth[:, :, 80:] = 4.0
        lost = add_noise(frames, CAMERA, 0, noise=only(edge=0.5)).depth[0] == 0
        assert 0.35 < lost[:, 79:81].float().mean() < 0.65
        assert not lost[:, :78].any()
        assert not lost[:, 82:].any()
        slanted = plane(2.0)
        slanted.normals[:] = torch.tensor([math.cos(0.05), 0.0, -math.sin(0.05)])
        noise = only(slant=0.3)
        missing = (add_noise(slanted, CAMERA, 0, noise=noise, world_from_camera=POSE[None]).depth == 0).float().mean()
        assert missing > 0.5
        assert (add_noise(plane(2.0), CAMERA, 0, noise=noise, world_from_camera=POSE[None]).depth > 0).all()

    def test_default_sensor_keeps_most_of_the_depth_of_a_room(self, room):
        frames, poses = room
        noisy = add_noise(frames, CAMERA, 0, world_from_camera=torch.from_numpy(poses))
        there = (noisy.depth > 0) & (frames.depth > 0)
        assert 0.7 < float(there.sum() / (frames.depth > 0).sum()) < 0.99
        error = (noisy.depth - frames.depth).abs()[there] / frames.depth[there]
        assert 0.001 < error.median() < 0.03
        assert not noisy.depth[frames.depth == 0].any()
        assert torch.equal(noisy.instance, frames.instance)
        assert torch.equal(noisy.normals, frames.normals)


class TestImage:
    def test_noise_grows_with_the_light_above_the_read_noise(self):
        spread = {}
        for grey in (40, 200):
            noisy = add_noise(plane(2.0, grey), CAMERA, 0, noise=only(shot=0.03, read=0.002)).image.double() / 255
            spread[grey] = float(noisy.pow(2.2).std())
            light = (grey / 255) ** 2.2
            assert spread[grey] == pytest.approx(math.sqrt(0.002**2 + 0.03**2 * light), rel=0.12)
        assert spread[200] > 2 * spread[40]

    def test_exposure_white_balance_and_vignetting(self):
        def mean(**fields) -> torch.Tensor:
            return (add_noise(plane(2.0, 120), CAMERA, 0, noise=only(**fields)).image.double() / 255).pow(2.2)[0]

        plain = mean()
        assert float(mean(exposure=1.0).mean() / plain.mean()) == pytest.approx(2.0, rel=0.03)
        tinted = mean(white_balance=(1.2, 0.8)).mean((0, 1)) / plain.mean((0, 1))
        assert tinted.tolist() == pytest.approx([1.2, 1.0, 0.8], rel=0.03)
        dark = mean(vignetting=0.3)
        assert float(dark[0, 0].mean() / dark[60, 80].mean()) == pytest.approx(0.7, abs=0.03)

    def test_motion_blur_follows_the_camera_motion(self, room):
        frames, _ = room
        poses = np.tile(np.eye(4), (3, 1, 1))
        assert torch.equal(motion_blur(frames, CAMERA, torch.from_numpy(poses), shutter=0.0).image, frames.image)
        still = motion_blur(frames, CAMERA, torch.from_numpy(poses)).image.int()
        assert (still - frames.image.int()).abs().max() <= 1
        # Motion to the right blurs vertical edges and keeps horizontal ones.
        stripes = plane(2.0)
        stripes.image[:, :, ::8], stripes.image[:, :, 4::8] = 255, 0
        poses[:, 0, 3] = [0.0, 0.2, 0.4]
        pair = SceneFrames(*(part.expand(3, *part.shape[1:]) for part in stripes.__dict__.values()))
        smeared = motion_blur(pair, CAMERA, torch.from_numpy(poses), shutter=0.8).image.float()
        assert smeared.std() < 0.6 * stripes.image.float().std()
        turned = SceneFrames(pair.image.transpose(1, 2)[:, :120, :120].contiguous(), *(
            part[:, :120, :120] for part in (pair.depth, pair.normals, pair.instance)))  # fmt: skip
        square = Camera(120, 120, CAMERA.fx, CAMERA.fy, 59.5, 59.5)
        kept = motion_blur(turned, square, torch.from_numpy(poses), shutter=0.8).image.float()
        assert kept.std() > 0.95 * turned.image.float().std()


def test_no_noise_changes_nothing(room):
    frames, poses = room
    same = add_noise(frames, CAMERA, 0, noise=NO_NOISE, world_from_camera=torch.from_numpy(poses))
    assert (same.image.int() - frames.image.int()).abs().max() <= 1
    assert torch.equal(same.depth, frames.depth)


def test_noise_depends_on_the_seed_only(room):
    frames, _ = room
    first, second, other = (add_noise(frames, CAMERA, seed) for seed in (4, 4, 5))
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.depth, second.depth)
    assert not torch.equal(first.image, other.image)
    assert not torch.equal(first.depth, other.depth)
    assert SensorNoise.draw(Random(1)) == SensorNoise.draw(Random(1)) != SensorNoise.draw(Random(2))


def test_invalid_sensors_are_rejected(room):
    frames, poses = room
    for fields in ({"vignetting": 1.5}, {"far": 0.1}, {"shot": -1.0}, {"white_balance": (0.0, 1.0)}, {"patch": 0}):
        with pytest.raises(ValueError, match=r"expected|negative"):
            SensorNoise(**fields)
    with pytest.raises(ValueError, match="one for each frame"):
        add_noise(frames, CAMERA, 0, world_from_camera=torch.from_numpy(poses[:2]))
    with pytest.raises(ValueError, match="shutter"):
        motion_blur(frames, CAMERA, torch.from_numpy(poses), shutter=2.0)
