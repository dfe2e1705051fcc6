"""The loop as a user of the library runs it, on a procedural world whose truth is known."""

import numpy as np
import pytest

from worldstereo_ros.evaluation.metrics import psnr
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.geometry.views import View
from worldstereo_ros.memory.archive import ArchiveError
from worldstereo_ros.memory.free_space import in_free_space
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.pipelines.base import Cancelled, PipelineFrame
from worldstereo_ros.scenes import make_path, make_scene, seed_of
from worldstereo_ros.scenes.raytracing.render import render_view
from worldstereo_ros.world import NothingSeenError, WorldModel

CAMERA = Camera.from_fov(160, 120, np.radians(75))


@pytest.fixture(scope="module")
def scene():
    return make_scene("room", seed_of("demo", 3))


@pytest.fixture(scope="module")
def path(scene):
    return make_path(scene, "ground", 60, seed_of("demo", 3))


@pytest.fixture(scope="module")
def seen(scene, path):
    return [render_view(scene, CAMERA, pose, stamp_ns=stamp + 1) for stamp, pose in enumerate(path[:30:6])]


@pytest.fixture
def world(seen):
    world = WorldModel(load_pipeline("geometric"))
    for view in seen:
        world.observe(view)
    return world


def test_the_seed_view_comes_back_and_is_called_observed(seen, world, path):
    (view,) = world.imagine(path[24][None], CAMERA)
    truth = seen[-1]
    assert view.observed_fraction > 0.8
    assert psnr(view.image, truth.image, view.observed_mask) > 35
    agrees = np.abs(view.depth - truth.depth)[view.observed] < 0.05 * truth.depth[view.observed] + 0.02
    assert agrees.mean() > 0.97


def test_views_come_one_by_one_with_where_they_came_from(world, path):
    views = world.imagine(path[24:40:4], CAMERA)
    first = next(views)
    assert (first.index, first.count, first.stamp_ns) == (0, 4, 5)
    assert first.references
    assert first.coverage > 0.5
    assert [view.index for view in views] == [1, 2, 3]


def test_what_is_behind_the_robot_is_called_imagined(world, path):
    turned = trajectory("turn", path[24], 2, angle=np.pi)[1:]
    (view,) = world.imagine(turned, CAMERA)
    assert view.observed_fraction < 0.5
    assert view.image.std() > 0


def test_the_same_seed_gives_the_same_views(world, path):
    one, two = (list(world.imagine(path[24:36:6], CAMERA, seed=7)) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.observed, b.observed)


def test_nothing_is_remembered_unless_asked(world, path):
    points, views = len(world.cloud), len(world.bank.views)
    list(world.imagine(path[30:50:5], CAMERA))
    assert (len(world.cloud), len(world.bank.views)) == (points, views)


def test_remembered_views_are_marked_imagined_and_leave_what_was_observed_alone(world, path):
    turned = trajectory("turn", path[24], 4, angle=np.pi)
    before = world.cloud.points[world.cloud.observed].copy()
    list(world.imagine(turned, CAMERA, remember=True))
    observed = world.cloud.observed
    assert (~observed).sum() > 100
    np.testing.assert_array_equal(world.cloud.points[observed], before)
    assert any(view.observed is not None for view in world.bank.views)
    assert world.newest_observation.observed is None


def test_coming_back_to_a_remembered_place_shows_the_same_place(world, path):
    turned = trajectory("turn", path[24], 3, angle=np.pi)[1:]
    first = list(world.imagine(turned, CAMERA, remember=True))[-1]
    again = next(iter(world.imagine(turned[-1:], CAMERA)))
    assert psnr(first.image, again.image) > 25
    assert again.coverage > first.coverage
    assert again.observed_fraction <= first.observed_fraction + 0.02  # remembering is no observing


def test_nothing_imagined_stands_where_a_sensor_saw_through():
    wall = View(
        np.zeros((120, 160, 3), np.uint8), CAMERA, np.eye(4), depth=np.full((120, 160), 4, np.float32), stamp_ns=1
    )
    points = np.array([[0, 0, 2.0], [0, 0, 4.0], [0, 0, 6.0], [0, 0, -2.0], [9, 0, 2.0]])
    assert in_free_space(points, [wall]).tolist() == [True, False, False, False, False]


def test_a_surface_that_several_views_of_a_clip_imagine_is_remembered_once(world, path):
    """Each guesses another distance; in memory the later ones go on from the first."""

    class Guessing:
        name, clip_length = "guessing", 4

        def __call__(self, conditioning, **_):
            for index, guess in zip(range(len(conditioning.world_from_camera)), (1.0, 1.5, 0.7, 2.0), strict=False):
                covered = conditioning.renders.covered[index].cpu().numpy()
                known = conditioning.renders.depth[index].cpu().numpy()
                depth = np.where(covered, known, np.float32(3 * guess)).astype(np.float32)
                image = np.full((*depth.shape, 3), 90, np.uint8)
                yield PipelineFrame(image, depth, np.zeros(depth.shape, bool), confidence=np.zeros(depth.shape))

    turned = path[24].copy()
    turned[:3, :3] = turned[:3, :3] @ np.diag([-1.0, 1.0, -1.0])  # where nothing was seen
    for poses in (turned[None], np.repeat(turned[None], 4, axis=0)):
        memory = WorldModel(Guessing())
        for view in world.bank.views:
            memory.observe(view)
        before = len(memory.cloud)
        views = list(memory.imagine(poses, CAMERA, remember=True))
        assert not views[0].covered.all()
        added = memory.cloud.points[before:]
        if len(poses) == 1:
            alone = len(added)
    assert alone > 1000
    assert len(added) < 1.1 * alone
    off = np.abs(turned[:3, 2] @ (added - turned[:3, 3]).T - 3)
    assert np.percentile(off, 98) < 0.1


def test_an_empty_memory_says_so():
    with pytest.raises(NothingSeenError, match="Nothing was seen yet"):
        WorldModel(load_pipeline("geometric")).imagine(np.eye(4)[None], CAMERA)


def test_a_seed_without_depth_is_refused_and_changes_nothing(world, seen):
    points = len(world.cloud)
    view = seen[0]
    for depth in (None, np.zeros_like(view.depth)):
        with pytest.raises(ValueError, match="no depth"):
            world.observe(View(view.image, CAMERA, view.world_from_camera, depth))
    assert len(world.cloud) == points


def test_bad_paths_are_refused_before_anything_runs(world):
    for poses, words in ((np.full((2, 4, 4), np.nan), "finite"), (np.zeros((0, 4, 4)), "at least one")):
        with pytest.raises(ValueError, match=words):
            world.imagine(poses, CAMERA)


def test_cancelling_between_steps_ends_the_work_and_keeps_memory(world, path):
    done = []

    def on_step(stage, step, steps):
        if done:
            raise Cancelled

    views = world.imagine(path[30:50:5], CAMERA, on_step=on_step)
    done.append(next(views))
    with pytest.raises(Cancelled):
        next(views)
    assert len(done) == 1
    assert list(world.imagine(path[30:31], CAMERA))


def test_a_saved_world_comes_back_whole(world, path, tmp_path):
    expected = next(iter(world.imagine(path[30:31], CAMERA)))
    world.save(tmp_path / "a.wsmap")
    other = WorldModel(load_pipeline("geometric"))
    other.load(tmp_path / "a.wsmap")
    np.testing.assert_array_equal(next(iter(other.imagine(path[30:31], CAMERA))).image, expected.image)


def test_a_bad_map_changes_nothing(world, tmp_path):
    points = len(world.cloud)
    (tmp_path / "bad.wsmap").write_bytes(b"this is no map" * 100)
    with pytest.raises(ArchiveError):
        world.load(tmp_path / "bad.wsmap")
    assert len(world.cloud) == points


def test_reset_forgets(world):
    world.reset()
    assert len(world.cloud) == 0
    assert world.newest_observation is None
