"""Moving objects: frames at a time, advection of points, scene flow, and collision-free tracks."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from worldstereo_ros.geometry.cameras import Camera, project
from worldstereo_ros.scenes import (
    Scene,
    Track,
    add_moving_objects,
    advect,
    clearance,
    make_path,
    make_scene,
    object_motion,
    render_batch,
    scene_flow,
    seed_of,
)
from worldstereo_ros.scenes.paths import box_distance, camera_pose
from worldstereo_ros.scenes.raytracing.primitives import SPHERE
from worldstereo_ros.scenes.raytracing.render import render_scene
from worldstereo_ros.scenes.raytracing.scene_flow import surface_points
from worldstereo_ros.scenes.raytracing.textures import COLUMNS

CAMERA = Camera.from_fov(96, 72, math.radians(80))
WORLDS = [("room", 1), ("warehouse", 1), ("lot", 0)]


@pytest.fixture(scope="module")
def worlds() -> list[Scene]:
    return [make_scene(kind, seed_of("demo", index), moving_objects=4) for kind, index in WORLDS]


def towards(scene: Scene, instance: int, time: float) -> np.ndarray:
    """A camera pose 2.5 m from a moving object that looks at it."""
    mover = next(m for m in scene.moving_objects if m.instance == instance)
    at = mover.track.position(torch.tensor([time]))[0].numpy() + np.array([0, 0, 0.3])
    for angle in np.arange(0, 2 * math.pi, 0.3):
        eye = at + 2.4 * np.array([math.cos(angle), math.sin(angle), 0.35])
        between = at + np.linspace(0.35, 1, 8)[:, None] * (eye - at)
        if clearance(scene, between).min() > 0.02:
            break
    return camera_pose(eye, angle + math.pi, -0.33)


class TestFrames:
    def test_frames_at_a_time_equal_those_of_a_static_scene_built_for_it(self, worlds):
        for scene in worlds:
            time = 3.7
            p = scene.primitives
            carry = torch.stack(
                [torch.eye(4).double(), *(object_motion(scene, m.instance, time)[0] for m in scene.moving_objects)]
            )
            each = carry[p.body]
            centre = (each[:, :3, :3] @ p.centre[..., None])[..., 0] + each[:, :3, 3]
            built = replace(p, centre=centre, rotation=each[:, :3, :3] @ p.rotation, body=torch.zeros_like(p.body))
            elsewhere = replace(scene, primitives=built, moving_objects=(), cache={})
            poses = np.stack([towards(scene, mover.instance, time) for mover in scene.moving_objects])
            moved = render_scene(scene, CAMERA, poses, light="plain", times=time)
            expected = render_scene(elsewhere, CAMERA, poses, light="plain")
            same = moved.instance == expected.instance
            assert same.float().mean() > 0.999
            assert torch.allclose(moved.depth[same], expected.depth[same], rtol=1e-4, atol=1e-4)
            close = (moved.normals - expected.normals).norm(dim=-1) < 1e-3
            assert close.float().mean() > 0.998
            shown = set(moved.instance.unique().tolist())
            assert len(shown & {mover.instance for mover in scene.moving_objects}) >= 3

    def test_missing_times_mean_time_zero(self, worlds):
        scene = worlds[0]
        poses = make_path(scene, "handheld", 2, seed=0)
        still = render_scene(scene, CAMERA, poses, light="plain")
        assert torch.equal(still.depth, render_scene(scene, CAMERA, poses, light="plain", times=0.0).depth)
        later = render_scene(scene, CAMERA, poses, light="plain", times=[0.0, 4.0])
        assert torch.equal(still.depth[0], later.depth[0])

    def test_render_batch_uses_one_time_per_frame(self, worlds):
        pair = [worlds[0], worlds[2]]
        poses = np.stack([np.stack([towards(s, s.moving_objects[0].instance, 1.0)] * 3) for s in pair])
        times = torch.tensor([[0.0, 1.0, 2.5], [4.0, 1.0, 0.5]])
        batch = render_batch(pair, CAMERA, poses, light="plain", times=times)
        for scene, own, when, depth, instance in zip(pair, poses, times, batch.depth, batch.instance, strict=True):
            single = render_scene(scene, CAMERA, own, light="plain", times=when)
            assert torch.allclose(single.depth, depth, atol=1e-5)
            assert torch.equal(single.instance, instance)
        assert not torch.equal(batch.depth[0, 0], batch.depth[0, 2])

    def test_invalid_times_are_rejected(self, worlds):
        poses = make_path(worlds[0], "handheld", 3, seed=0)
        for times in ([0.0, 1.0], [0.0, 1.0, math.nan]):
            with pytest.raises(ValueError, match="3 frames"):
                render_scene(worlds[0], CAMERA, poses, light="plain", times=times)
        with pytest.raises(ValueError, match="times have shape"):
            render_batch(worlds[:1], CAMERA, poses[None], light="plain", times=np.zeros((1, 2)))


class TestAdvection:
    @pytest.mark.parametrize("index", range(len(WORLDS)))
    def test_advected_points_lie_on_the_object_at_the_other_time(self, worlds, index):
        scene = worlds[index]
        start, end = 0.7, 1.6
        found = 0
        for mover in scene.moving_objects:
            pose = towards(scene, mover.instance, 0.5 * (start + end))
            frames = render_scene(scene, CAMERA, pose, light="plain", times=start)
            mine = (frames.instance[0] == mover.instance).nonzero()
            points = surface_points(frames, CAMERA, pose)[0][mine[:, 0], mine[:, 1]]
            ids = torch.full((len(points),), mover.instance)
            there = advect(scene, points, ids, start, end)
            torch.testing.assert_close(advect(scene, there, ids, end, start), points)
            uv, depth = project(there.numpy(), CAMERA, pose)
            seen = (depth > 0.1) & (np.abs(uv - [47.5, 35.5]) < [47, 35]).all(1)
            for i in np.flatnonzero(seen)[:: max(1, seen.sum() // 30)]:
                # A ray at the point hits the object there, or a nearer occluder.
                ray = Camera(1, 1, CAMERA.fx, CAMERA.fy, CAMERA.cx - uv[i, 0], CAMERA.cy - uv[i, 1])
                met = render_scene(scene, ray, pose, light="plain", times=end)
                assert float(met.depth) <= depth[i] + 2e-3
                if abs(float(met.depth) - depth[i]) < 2e-3:
                    found += int(met.instance) == mover.instance
        assert found >= 15

    def test_scene_flow_equals_the_displacement_of_advected_points(self, worlds):
        scene = worlds[0]
        mover = scene.moving_objects[0]
        pose = towards(scene, mover.instance, 0.0)[None]
        frames = render_scene(scene, CAMERA, pose, light="plain", times=0.0)
        flow = scene_flow(scene, frames, CAMERA, pose, 0.0, 0.5)
        assert flow.shape == (1, 72, 96, 3)
        moving = torch.isin(frames.instance, torch.tensor([m.instance for m in scene.moving_objects]))
        assert not flow[~moving].any()
        assert flow[frames.instance == mover.instance].norm(dim=-1).max() > 0.01
        # Two partial advections give the same displacement.
        points = surface_points(frames, CAMERA, pose)
        half = advect(scene, points, frames.instance, 0.0, 0.2)
        torch.testing.assert_close(
            (advect(scene, half, frames.instance, 0.2, 0.5) - points).float(), flow, atol=1e-6, rtol=1e-5
        )

    def test_static_objects_do_not_move_and_invalid_arguments_are_rejected(self, worlds):
        assert torch.equal(object_motion(worlds[0], 1, [0.0, 9.0]), torch.eye(4).double().repeat(2, 1, 1))
        with pytest.raises(ValueError, match="no object"):
            object_motion(worlds[0], 10_000, 0.0)
        with pytest.raises(ValueError, match="same size"):
            advect(worlds[0], torch.zeros(3, 3), torch.zeros(2, dtype=torch.int64), 0.0, 1.0)


class TestTracks:
    def test_motions_are_rigid_smooth_and_bounded_in_speed(self, worlds):
        for scene in worlds:
            for mover in scene.moving_objects:
                times = torch.linspace(0, 2 * mover.track.period, 2001)
                motion = mover.motion(times)
                turned = motion[:, :3, :3]
                torch.testing.assert_close(
                    turned @ turned.transpose(1, 2), torch.eye(3).double().expand(len(times), 3, 3)
                )
                step = float(times[1])
                speed = mover.track.position(times).diff(dim=0).norm(dim=1) / step
                assert speed.max() < 4.0
                assert speed.diff().abs().max() / step < 8.0  # no jolts
                assert torch.equal(motion[0], torch.eye(4).double()) or torch.allclose(motion[0], torch.eye(4).double())

    def test_a_ball_rolls_without_slipping(self):
        track = Track((0, 0, 0.2), (0.9, 0.5), (0, 0), 6.0, 0.4, heading="roll", rate=0.2)
        h = 1e-4
        for time in (0.3, 1.1, 4.0):
            before, now, after = track.poses(torch.tensor([time - h, time, time + h], dtype=torch.float64))
            contact = now[:3, :3].T @ torch.tensor([0.0, 0.0, -0.2], dtype=torch.float64)
            speed = ((after - before)[:3, :3] @ contact + (after - before)[:3, 3]) / (2 * h)
            assert speed.norm() < 1e-5
            assert ((after - before)[:3, 3] / (2 * h)).norm() > 0.1

    @pytest.mark.parametrize("index", range(len(WORLDS)))
    def test_moving_objects_never_collide(self, worlds, index):
        scene = worlds[index]
        p = scene.primitives
        world = p.select((p.body == 0) & ((p.centre + p.extent)[:, 2] > 0.02))
        times = torch.linspace(0, 47.0, 120)
        signs = torch.tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]).double()
        corners = {}
        for mover in scene.moving_objects:
            own = p.select(p.body == mover.body)
            # Corners of its boxes; for a ball, points on its surface.
            size = own.half * torch.where(own.kind == SPHERE, 3**-0.5, 1.0)[:, None]
            around = own.centre[:, None] + (own.rotation[:, None] @ (signs * size[:, None])[..., None])[..., 0]
            motion = mover.motion(times)
            all_of_it = torch.einsum("tij,kj->tki", motion[:, :3, :3], around.reshape(-1, 3)) + motion[:, None, :3, 3]
            corners[mover.body] = all_of_it
            assert box_distance(world, all_of_it.reshape(-1, 3).numpy()).min() > 0
            low, high = (torch.tensor(bound) for bound in scene.bounds)
            assert (all_of_it > low - 0.01).all()
            assert (all_of_it < high).all()
        # Nor with each other: at every time their boxes are disjoint.
        for mover in scene.moving_objects:
            others = np.concatenate([v.reshape(-1, 3).numpy() for k, v in corners.items() if k != mover.body])
            when = torch.cat([times.repeat_interleave(v.shape[1]) for k, v in corners.items() if k != mover.body])
            alone = replace(scene, moving_objects=(mover,), primitives=p.select(p.body == mover.body))
            assert clearance(alone, others, when).min() > 0


class TestAdding:
    def test_adding_moving_objects_keeps_the_static_scene(self):
        bare, full = make_scene("corridor", 5), make_scene("corridor", 5, moving_objects=3)
        count = len(bare.primitives)
        for name in ("centre", "half", "rotation", "material", "instance", "shift", "kind"):
            assert torch.equal(getattr(full.primitives, name)[:count], getattr(bare.primitives, name))
        assert torch.equal(full.materials[: len(bare.materials)], bare.materials)
        assert full.names[: len(bare.names)] == bare.names
        assert [full.names[m.instance] for m in full.moving_objects] == [m.kind for m in full.moving_objects]
        np.testing.assert_array_equal(make_path(bare, "ground", 5, seed=0), make_path(full, "ground", 5, seed=0))

    def test_fewer_moving_objects_are_a_prefix_of_more(self):
        two, four = (make_scene("warehouse", 8, moving_objects=n) for n in (2, 4))
        assert two.moving_objects == four.moving_objects[:2]
        again = make_scene("warehouse", 8, moving_objects=4)
        assert again.moving_objects == four.moving_objects
        assert torch.equal(again.materials, four.materials)

    def test_too_many_moving_objects_are_rejected(self):
        scene = make_scene("corridor", 5)
        with pytest.raises(ValueError, match="found room"):
            add_moving_objects(replace(scene, bounds=((-0.15, -0.15, 0.0), (0.15, 0.15, 2.0))), 1)
        with pytest.raises(ValueError, match="0 or more"):
            add_moving_objects(scene, -1)
        with pytest.raises(ValueError, match="already"):
            add_moving_objects(add_moving_objects(scene, 1), 1)


def test_light_on_a_rolling_ball_stays_brighter_from_above(worlds):
    scene = worlds[1]
    ball = next(mover for mover in scene.moving_objects if mover.kind == "ball")
    plain = scene.materials.clone()
    plain[:, 0:9], plain[:, COLUMNS.index("noise")], plain[:, COLUMNS.index("gloss")] = 0.5, 0.0, 0.0
    bare = replace(scene, materials=plain, cache={})
    for time in (0.0, 0.35, 0.8):
        frames = render_scene(bare, CAMERA, towards(scene, ball.instance, time), light="plain", times=time)
        mine = frames.instance[0] == ball.instance
        assert mine.sum() > 20
        seen = torch.stack([frames.image[0].double().mean(-1)[mine], frames.normals[0, ..., 2].double()[mine]])
        assert torch.corrcoef(seen)[0, 1] > 0.95
