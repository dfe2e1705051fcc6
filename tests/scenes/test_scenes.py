"""Procedural worlds: geometry against analytic results, consistency, determinism, paths."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from worldstereo_ros.geometry.cameras import Camera, project, unproject
from worldstereo_ros.scenes import (
    KINDS,
    PATHS,
    SPLITS,
    Scene,
    clearance,
    make_path,
    make_scene,
    pack,
    render_batch,
    seed_of,
)
from worldstereo_ros.scenes.paths import CLEARANCE_M, camera_pose
from worldstereo_ros.scenes.raytracing.bake import Ambient
from worldstereo_ros.scenes.raytracing.light import allocate_texels, place_texels
from worldstereo_ros.scenes.raytracing.primitives import BOX, CYLINDER, Builder, Material
from worldstereo_ros.scenes.raytracing.render import pack_cached, render_scene, render_view
from worldstereo_ros.scenes.raytracing.scene import Sky

CAMERA = Camera.from_fov(160, 120, math.radians(80))
GREY = Material(noise=0.0)


def build(fill, seed: int = 0, ambient: float = 1.0) -> Scene:
    builder = Builder(seed)
    fill(builder)
    return Scene.build(
        builder, "test", seed, ambient=Ambient((ambient,) * 3), sky=Sky(), bounds=((-5, -5, 0), (5, 5, 3))
    )


@pytest.fixture(scope="module")
def rooms() -> list[Scene]:
    return [make_scene("room", seed_of("demo", i)) for i in range(2)]


def world_rays(camera: Camera, pose: np.ndarray) -> np.ndarray:
    return camera.rays().astype(np.float64) @ pose[:3, :3].T


def slow_depth(scene: Scene, camera: Camera, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth and instance by brute force: every ray against every primitive, in float64, with independent formulas."""
    rays, eye = world_rays(camera, pose).reshape(-1, 3), pose[:3, 3]
    best, who = np.full(len(rays), np.inf), np.zeros(len(rays), dtype=int)
    p = scene.primitives
    for i in range(len(p)):
        R, h = p.rotation[i].numpy(), p.half[i].numpy()
        o, d = (eye - p.centre[i].numpy()) @ R / h, rays @ R / h
        with np.errstate(divide="ignore", invalid="ignore"):
            planes = np.sort(np.stack([(-1 - o) / d, (1 - o) / d]), axis=0)
            if p.kind[i] == BOX:
                enter, leave = planes[0].max(1), planes[1].min(1)
            else:
                use = np.array([1.0, 1.0, 0.0 if p.kind[i] == CYLINDER else 1.0])
                a, b, c = (use * d * d).sum(1), (use * o * d).sum(1), (use * o * o).sum() - 1
                root = np.sqrt(b * b - a * c)
                enter, leave = (-b - root) / a, (-b + root) / a
                if p.kind[i] == CYLINDER:
                    enter, leave = np.maximum(enter, planes[0, :, 2]), np.minimum(leave, planes[1, :, 2])
            hit = (enter <= leave) & (enter > 1e-3) & (enter < best)
        best[hit], who[hit] = enter[hit], int(p.instance[i])
    best[np.isinf(best)] = 0
    return best.reshape(camera.height, camera.width), who.reshape(camera.height, camera.width)


class TestExactness:
    def test_depth_is_measured_along_the_optical_axis(self):
        scene = build(lambda b: b.box((3.1, 0, 0), (0.2, 40, 40), GREY, name="wall"))
        frames = render_scene(scene, CAMERA, camera_pose(np.zeros(3), 0.0))
        # Constant: z-depth, not the length of the ray.
        assert torch.allclose(frames.depth, torch.tensor(3.0), atol=1e-5)
        assert torch.allclose(frames.normals, torch.tensor([-1.0, 0.0, 0.0]), atol=1e-6)

    def test_floor_depth_matches_the_analytic_plane(self):
        scene = build(lambda b: b.box((0, 0, -0.5), (400, 400, 1), GREY, name="floor"))
        pose = camera_pose(np.array([0.3, -0.2, 1.5]), 0.4, -0.6, 0.1)
        frames = render_scene(scene, CAMERA, pose)
        down = world_rays(CAMERA, pose)[..., 2]
        expected = np.where(down < -0.01, -1.5 / np.minimum(down, -0.01), 0)
        seen = down < -0.02
        np.testing.assert_allclose(frames.depth[0].numpy()[seen], expected[seen], rtol=1e-5)
        assert not frames.depth[0].numpy()[down > 0].any()

    def test_sphere_matches_the_analytic_intersection(self):
        centre, radius = np.array([4.0, 0.3, 0.2]), 0.7
        scene = build(lambda b: b.sphere(centre, radius, GREY, name="ball"))
        frames = render_scene(scene, CAMERA, camera_pose(np.zeros(3), 0.0))
        rays = world_rays(CAMERA, camera_pose(np.zeros(3), 0.0))
        a, b, c = (rays**2).sum(-1), rays @ centre, centre @ centre - radius**2
        square = b * b - a * c
        inside = square > 1e-3
        expected = (b - np.sqrt(np.maximum(square, 0))) / a
        depth = frames.depth[0].numpy()
        np.testing.assert_allclose(depth[inside], expected[inside], rtol=1e-5)
        assert not depth[square < -1e-3].any()
        normal = (rays * expected[..., None] - centre) / radius
        np.testing.assert_allclose(frames.normals[0].numpy()[inside], normal[inside], atol=1e-3)

    def test_small_distant_sphere_keeps_its_shape(self):
        scene = build(lambda b: b.sphere((80, 0, 0), 0.05, GREY, name="ball"))
        narrow = Camera.from_fov(64, 64, 0.002)
        depth = render_scene(scene, narrow, camera_pose(np.zeros(3), 0.0)).depth[0].numpy()
        exact, _ = slow_depth(scene, narrow, camera_pose(np.zeros(3), 0.0))
        both = (depth > 0) & (exact > 0)
        assert both.sum() > 0.98 * max((depth > 0).sum(), (exact > 0).sum()) > 1000
        np.testing.assert_allclose(depth[both], exact[both], atol=2e-3)

    @pytest.mark.parametrize("kind", list(KINDS))
    def test_whole_worlds_match_brute_force_in_double_precision(self, kind):
        scene = make_scene(kind, seed_of("demo", 7))
        camera = CAMERA.resized(80, 60)
        pose = make_path(scene, "handheld", 1, seed=1)[0]
        frames = render_scene(scene, camera, pose, light="plain")
        depth, instance = slow_depth(scene, camera, pose)
        got = frames.depth[0].numpy()
        close = np.abs(got - depth) <= 1e-4 * (1 + depth)
        # At silhouettes rounding decides on which side of an edge a ray passes.
        assert close.mean() > 0.997
        assert (frames.instance[0].numpy() == instance)[close].mean() > 0.998

    def test_tile_size_does_not_change_the_result(self, rooms):
        from worldstereo_ros.scenes.raytracing.geometry import RayFrames, Tiles, cast_rays

        geometry = pack_cached(rooms[0], light="plain").geometry
        pose = torch.from_numpy(make_path(rooms[0], "drone", 2, seed=3))
        frames = RayFrames.from_cameras(geometry, torch.zeros(2, dtype=torch.int64), pose)
        images = []
        for height, width, batch_size in ((8, 16, 4), (120, 160, 7), (13, 11, 16)):
            tiles = Tiles.from_camera(CAMERA, torch.device("cpu"), height, width)
            images.append(tiles.image(cast_rays(geometry, frames, tiles, batch_size).depth.flatten(), CAMERA))
        for image in images[1:]:
            same = torch.isclose(image, images[0], rtol=1e-5)
            assert same.float().mean() > 0.999

    def test_camera_inside_a_solid_does_not_see_it(self):
        def fill(b: Builder) -> None:
            b.box((0, 0, 0), (1, 1, 1), GREY, name="around")
            b.box((2.5, 0, 0), (1, 9, 9), GREY, name="behind")

        frames = render_scene(build(fill), CAMERA, camera_pose(np.zeros(3), 0.0))
        assert (frames.instance == 2).all()

    def test_rays_along_the_faces_of_boxes_give_no_nan(self):
        camera = Camera(9, 9, 10.0, 10.0, 4.0, 4.0)
        scene = build(lambda b: b.box((3, 0, 0), (2, 2, 2), GREY, name="box"))
        for y, z in ((1.0, 0.0), (1.0, 1.0), (0.0, 0.0), (1.0 - 1e-7, 0.0)):
            frames = render_scene(scene, camera, camera_pose(np.array([0, y, z]), 0.0))
            assert torch.isfinite(frames.depth).all()
            assert torch.isfinite(frames.normals).all()
        assert frames.depth[0, 4, 4] == pytest.approx(2.0)


class TestFrames:
    def test_normals_are_unit_and_face_the_camera(self, rooms):
        poses = make_path(rooms[0], "drone", 6, seed=2)
        frames = render_scene(rooms[0], CAMERA, poses, light="plain")
        hit = frames.depth > 0
        assert hit.float().mean() > 0.9
        np.testing.assert_allclose(frames.normals[hit].norm(dim=-1), 1, atol=1e-5)
        assert not frames.normals[~hit].any()
        rays = torch.from_numpy(np.stack([world_rays(CAMERA, pose) for pose in poses]))
        assert ((rays * frames.normals).sum(-1)[hit] < 1e-3).all()

    def test_two_views_agree_on_common_surfaces(self, rooms):
        a, b = make_path(rooms[0], "orbit", 4, seed=5)[[0, 3]]
        frames = render_scene(rooms[0], CAMERA, np.stack([a, b]), light="plain")
        depth = frames.depth.numpy()
        points = unproject(depth[0], CAMERA, a)[depth[0] > 0].astype(np.float64)
        # A new ray at each point hits the scene there, or nearer at an occluder.
        uv, z = project(points, CAMERA, b)
        whole = np.rint(uv).astype(int)
        seen = (z > 0.1) & (whole >= 0).all(1) & (whole[:, 0] < 160) & (whole[:, 1] < 120)
        checked = 0
        for i in np.flatnonzero(seen)[:: max(1, seen.sum() // 40)]:
            through = Camera(1, 1, CAMERA.fx, CAMERA.fy, CAMERA.cx - uv[i, 0], CAMERA.cy - uv[i, 1])
            met = float(render_scene(rooms[0], through, b, light="plain").depth[0, 0, 0])
            assert met <= z[i] + 1e-3 or met == 0
            checked += abs(met - z[i]) < 1e-3
        assert checked > 20

    def test_instance_ids_have_names_and_follow_objects(self, rooms):
        scene = rooms[0]
        frames = render_scene(scene, CAMERA, make_path(scene, "ground", 8, seed=4), light="plain")
        assert frames.instance.dtype == torch.int32
        assert ((frames.instance == 0) == (frames.depth == 0)).all()
        seen = frames.instance.unique().tolist()
        assert max(seen) < len(scene.names)
        assert {"floor", "wall"} <= {scene.names[i] for i in seen}

    def test_supersampling_changes_colours_only(self, rooms):
        pose = make_path(rooms[0], "handheld", 1, seed=6)
        one = render_scene(rooms[0], CAMERA, pose, light="plain")
        four = render_scene(rooms[0], CAMERA, pose, light="plain", supersample=2)
        assert torch.equal(one.depth, four.depth)
        assert torch.equal(one.instance, four.instance)
        difference = (one.image.float() - four.image.float()).abs().mean()
        assert 0 < difference < 6

    def test_images_have_contrast_and_are_well_exposed(self):
        for kind in KINDS:
            scene = make_scene(kind, seed_of("demo", 3))
            image = render_scene(
                scene, CAMERA, make_path(scene, "handheld", 6, seed=0)[::5], light="plain"
            ).image.float()
            assert 60 < image.mean() < 210
            assert image.std() > 25

    def test_soft_light_is_darker_under_a_table(self):
        def fill(b: Builder) -> None:
            b.box((0, 0, -0.1), (6, 6, 0.2), GREY, name="floor")
            b.box((0, 0, 0.8), (1.2, 1.2, 0.05), GREY, name="table")
            b.light((0, 0, 2.6), (1, 1, 1), 5.0)

        scene = build(fill, ambient=0.1)
        camera = Camera(1, 1, 1.0, 1.0, 0.0, 0.0)
        under, open_ = (np.array([0.0, 0.0, 0.6]), np.array([1.6, 0.0, 0.6]))
        bright = [
            float(render_scene(scene, camera, camera_pose(at, 0.0, -math.pi / 2)).image.float().mean())
            for at in (under, open_)
        ]
        assert bright[0] < 0.75 * bright[1]

    def test_render_view_has_the_depth_of_render_scene(self, rooms):
        pose = make_path(rooms[0], "handheld", 1, seed=0)[0]
        view = render_view(rooms[0], CAMERA.resized(40, 30), pose, stamp_ns=7)
        assert view.stamp_ns == 7
        assert view.image.shape == (30, 40, 3)
        frames = render_scene(rooms[0], CAMERA.resized(40, 30), pose)
        np.testing.assert_array_equal(view.depth, frames.depth[0].numpy())

    def test_distant_texture_is_antialiased(self):
        """A distant checkered floor shows its mean colour: neighbouring pixels hardly differ."""
        checks = Material(a=(0.9, 0.9, 0.9), b=(0.05, 0.05, 0.05), pattern="checks", cell=(0.1, 0.1), noise=0.0)
        scene = build(lambda b: b.box((0, 0, -0.1), (300, 300, 0.2), checks, name="floor"))
        high, low = (
            render_scene(scene, CAMERA, camera_pose(np.array([0, 0, z]), 0.0), light="plain").image[0].float()
            for z in (1.5, 0.4)
        )
        far, near = high[66:70], low[-10:]
        assert far.diff(dim=1).abs().mean() < 6
        assert near.std() > 40


class TestBatches:
    def test_batched_equals_single(self, rooms):
        scenes = [*rooms, make_scene("corridor", seed_of("demo", 1))]
        poses = np.stack([make_path(scene, "handheld", 2, seed=9) for scene in scenes])
        frames = render_batch(scenes, CAMERA, poses, light="plain")
        assert frames.image.shape == (3, 2, 120, 160, 3)
        for scene, own, image, depth, instance in zip(
            scenes, poses, frames.image, frames.depth, frames.instance, strict=True
        ):
            single = render_scene(scene, CAMERA, own, light="plain")
            assert torch.allclose(single.depth, depth, atol=1e-5)
            assert torch.equal(single.instance, instance)
            assert (single.image.int() - image.int()).abs().max() <= 2

    def test_packed_scenes_can_be_used_again(self, rooms):
        packed = pack(rooms, light="plain")
        poses = np.stack([make_path(scene, "drone", 1, seed=1) for scene in rooms])
        small = CAMERA.resized(40, 30)
        assert torch.equal(render_batch(packed, small, poses).image, render_batch(packed, small, poses).image)

    def test_chunks_change_nothing(self, rooms):
        from worldstereo_ros.scenes.raytracing.render import render_packed

        packed, poses = pack_cached(rooms[0], light="plain"), torch.from_numpy(make_path(rooms[0], "orbit", 5, seed=1))
        table, small = torch.zeros(5, dtype=torch.int64), CAMERA.resized(48, 36)
        whole = render_packed(packed, small, poses, table)
        parts = render_packed(packed, small, poses, table, max_rays=2000)
        assert torch.equal(whole.depth, parts.depth)
        assert (whole.image.int() - parts.image.int()).abs().max() <= 1

    def test_no_frames_give_empty_tensors(self, rooms):
        frames = render_scene(rooms[0], CAMERA, np.zeros((0, 4, 4)), light="plain")
        assert frames.image.shape == (0, 120, 160, 3)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_gpu_matches_cpu(self, rooms):
        poses = make_path(rooms[0], "drone", 3, seed=2)
        cpu, gpu = render_scene(rooms[0], CAMERA, poses), render_scene(rooms[0], CAMERA, poses, device="cuda")
        close = torch.isclose(gpu.depth.cpu(), cpu.depth, rtol=1e-4, atol=1e-4)
        assert close.float().mean() > 0.999
        assert (gpu.image.cpu().float() - cpu.image.float()).abs().mean() < 2


class TestSeeds:
    @pytest.mark.parametrize("kind", list(KINDS))
    def test_same_seed_gives_the_same_world(self, kind):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = make_scene(kind, 5)
        assert torch.equal(torch.get_rng_state(), before), "the global generator was used"
        torch.manual_seed(2)
        second, other = make_scene(kind, 5), make_scene(kind, 6)
        for name in ("centre", "half", "rotation", "material", "instance", "shift"):
            assert torch.equal(getattr(first.primitives, name), getattr(second.primitives, name))
        assert torch.equal(first.materials, second.materials)
        assert torch.equal(first.images, second.images)
        assert first.bounds != other.bounds
        pose = make_path(first, "ground", 1, seed=0)
        small = CAMERA.resized(40, 30)
        assert torch.equal(
            render_scene(first, small, pose, light="plain").image,
            render_scene(second, small, pose, light="plain").image,
        )

    def test_splits_are_disjoint(self):
        ranges = sorted(SPLITS.values(), key=lambda r: r.start)
        assert all(a.stop <= b.start for a, b in pairwise(ranges))
        assert seed_of("test", 3) in SPLITS["test"]

    def test_invalid_names_and_shapes_are_rejected(self, rooms):
        with pytest.raises(ValueError, match="no kind of scene"):
            make_scene("castle", 0)
        with pytest.raises(ValueError, match="no split"):
            seed_of("holdout", 0)
        with pytest.raises(ValueError, match="outside the demo split"):
            seed_of("demo", 10**6)
        with pytest.raises(ValueError, match="no kind of path"):
            make_path(rooms[0], "swim", 3, seed=0)
        with pytest.raises(ValueError, match="poses have shape"):
            render_batch(rooms, CAMERA, np.zeros((3, 1, 4, 4)))
        with pytest.raises(ValueError, match="no light"):
            pack(rooms, light="dark")
        with pytest.raises(ValueError, match="finite"):
            render_scene(rooms[0], CAMERA, np.full((1, 4, 4), np.nan), light="plain")


class TestPaths:
    @pytest.mark.parametrize("kind", PATHS)
    @pytest.mark.parametrize("world", list(KINDS))
    def test_paths_are_collision_free_and_smooth(self, world, kind):
        scene = make_scene(world, seed_of("demo", 2))
        path = make_path(scene, kind, 40, seed=3)
        assert path.shape == (40, 4, 4)
        rotation = path[:, :3, :3]
        np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.eye(3)[None].repeat(40, 0), atol=1e-9)
        at = path[:, :3, 3]
        low, high = np.array(scene.bounds)
        assert ((at > low) & (at < high)).all()
        # Also between the poses.
        between = np.concatenate([at, (at[1:] + at[:-1]) / 2])
        away = clearance(scene, between)
        assert away.min() > (min(CLEARANCE_M[kind], at[:, 2].min()) if kind == "ground" else CLEARANCE_M[kind]) - 0.03
        assert np.linalg.norm(np.diff(at, axis=0), axis=1).max() < 0.2
        cosine = np.einsum("nij,nij->n", rotation[1:], rotation[:-1])
        assert np.degrees(np.arccos(np.clip((cosine - 1) / 2, -1, 1))).max() < 25
        np.testing.assert_array_equal(path, make_path(scene, kind, 40, seed=3))

    def test_ground_paths_keep_their_height_and_cover_distance(self):
        heights, lengths = [], []
        for i in range(6):
            scene = make_scene("room", seed_of("demo", i))
            at = make_path(scene, "ground", 60, seed=i)[:, :3, 3]
            assert np.ptp(at[:, 2]) < 1e-9
            heights.append(at[0, 2])
            lengths.append(np.linalg.norm(np.diff(at, axis=0), axis=1).sum())
        assert 0.2 <= min(heights) < max(heights) <= 1.2
        assert np.median(lengths) > 1.0

    def test_clearance_of_a_box(self):
        scene = build(lambda b: b.box((2, 0, 0), (2, 2, 2), GREY, name="box"))
        np.testing.assert_allclose(clearance(scene, np.array([[0, 0, 0], [2, 0, 0], [0, 2, 2]])), [1, 0, math.sqrt(3)])


def test_texels_lie_on_their_surfaces():
    def fill(b: Builder) -> None:
        b.box((1, 2, 3), (1, 2, 0.5), GREY, yaw=0.4, name="box")
        b.cylinder((-1, 0, 1), 0.5, 2.0, GREY, name="drum")
        b.sphere((0, -2, 1), 0.6, GREY, name="ball")

    scene = build(fill)
    points = place_texels(scene.primitives, allocate_texels(scene.primitives, 2000))
    for i, (name, expect) in enumerate((("box", 7.0), ("drum", 2.5 * math.pi), ("ball", 1.44 * math.pi))):
        mine = points.primitive == i
        assert mine.sum() > 50, (name, expect)
        local = (points.point[mine].double() - scene.primitives.centre[i]) @ scene.primitives.rotation[i]
        unit = local / scene.primitives.half[i]
        size = (
            unit.abs().amax(1)
            if name == "box"
            else unit.norm(dim=1)
            if name == "ball"
            else torch.maximum(unit[:, :2].norm(dim=1), unit[:, 2].abs())
        )
        assert torch.allclose(size, torch.ones_like(size), atol=0.01)
        np.testing.assert_allclose(points.normal[mine].norm(dim=1), 1, atol=1e-5)
