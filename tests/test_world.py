"""The world model as a user of the library runs it, on a procedural world with ground truth."""

from dataclasses import replace

import numpy as np
import pytest

from worldstereo_ros.evaluation.metrics import psnr
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.geometry.views import View
from worldstereo_ros.memory.archive import ArchiveError
from worldstereo_ros.memory.free_space import in_free_space
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.pipelines.base import Cancelled, PipelineFrame
from worldstereo_ros.scenes import make_path, make_scene, seed_of
from worldstereo_ros.scenes.raytracing.render import render_view
from worldstereo_ros.world import EmptyMemoryError, WorldModel, warm_up

CAMERA = Camera.from_fov(160, 120, np.radians(75))


@pytest.fixture(scope="module")
def scene():
    return make_scene("room", seed_of("demo", 3))


@pytest.fixture(scope="module")
def path(scene):
    return make_path(scene, "ground", 60, seed_of("demo", 3))


@pytest.fixture(scope="module")
def observations(scene, path):
    return [render_view(scene, CAMERA, pose, stamp_ns=stamp + 1) for stamp, pose in enumerate(path[:30:6])]


@pytest.fixture
def world(observations):
    world = WorldModel(load_pipeline("geometric"))
    for view in observations:
        world.observe(view)
    return world


def test_imagine_at_an_observation_returns_it_as_observed(observations, world, path):
    (view,) = world.imagine(path[24][None], CAMERA)
    truth = observations[-1]
    assert view.observed_fraction > 0.8
    assert psnr(view.image, truth.image, view.observed_mask) > 35
    agrees = np.abs(view.depth - truth.depth)[view.observed] < 0.05 * truth.depth[view.observed] + 0.02
    assert agrees.mean() > 0.97


def test_imagine_yields_views_one_by_one_with_their_references(world, path):
    views = world.imagine(path[24:40:4], CAMERA)
    first = next(views)
    assert (first.index, first.count, first.stamp_ns) == (0, 4, 5)
    assert first.references
    assert first.coverage > 0.5
    assert [view.index for view in views] == [1, 2, 3]


def test_imagine_labels_views_behind_the_robot_as_imagined(world, path):
    turned = trajectory("turn", path[24], 2, angle=np.pi)[1:]
    (view,) = world.imagine(turned, CAMERA)
    assert view.observed_fraction < 0.5
    assert view.image.std() > 0


def test_imagine_is_reproducible_by_seed(world, path):
    one, two = (list(world.imagine(path[24:36:6], CAMERA, seed=7)) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.observed, b.observed)


def test_imagine_leaves_memory_unchanged_by_default(world, path):
    points, views = len(world.cloud), len(world.bank.views)
    list(world.imagine(path[30:50:5], CAMERA))
    assert (len(world.cloud), len(world.bank.views)) == (points, views)


def test_remember_labels_points_as_imagined_and_keeps_observed_points(world, path):
    turned = trajectory("turn", path[24], 4, angle=np.pi)
    before = world.cloud.points[world.cloud.observed].copy()
    list(world.imagine(turned, CAMERA, remember=True))
    observed = world.cloud.observed
    assert (~observed).sum() > 100
    np.testing.assert_array_equal(world.cloud.points[observed], before)
    assert any(view.observed is not None for view in world.bank.views)
    assert world.newest_observation.observed is None


@pytest.mark.parametrize("pipeline", ["geometric", "small"])
def test_views_are_remembered_as_they_are_given(observations, path, pipeline):
    """`zip(range(n), views)` asks for no view after the last one, and a loop may break in the middle of a clip."""

    def remembered(take):
        world = WorldModel(load_pipeline(pipeline))
        for view in observations:
            world.observe(view)
        turned = trajectory("turn", path[24], 4, angle=np.pi)
        counts = [len(world.bank.views)]
        for _, _view in zip(range(take), world.imagine(turned, CAMERA, remember=True)):  # noqa: B905
            counts.append(len(world.bank.views))
        return counts, world.cloud.points[world.cloud.provenance == Provenance.IMAGINED]

    counts, points = remembered(4)
    assert np.diff(counts).tolist() == [0, 1, 1, 1]  # the first view, which is known, joins no bank
    assert len(points) > 100
    part, fewer = remembered(3)
    assert part == counts[:4]
    np.testing.assert_array_equal(points[: len(fewer)], fewer)


def test_imagine_says_which_poses_a_wall_blocks(observations, world, path):
    ahead = observations[-1]
    distance = float(np.median(ahead.depth[50:70, 70:90]))
    through = trajectory("forward", ahead.world_from_camera, 3, distance=2 * distance + 1)
    assert not next(world.imagine(through, CAMERA)).blocked
    assert any(view.blocked for view in world.imagine(through, CAMERA))
    assert not any(view.blocked for view in world.imagine(path[24:40:4], CAMERA))


def test_imagine_shows_a_remembered_place_again(world, path):
    turned = trajectory("turn", path[24], 3, angle=np.pi)[1:]
    first = list(world.imagine(turned, CAMERA, remember=True))[-1]
    again = next(iter(world.imagine(turned[-1:], CAMERA)))
    assert psnr(first.image, again.image) > 25
    assert again.coverage > first.coverage
    assert again.observed_fraction <= first.observed_fraction + 0.02  # remembered views are not observations


def test_in_free_space_is_true_before_a_measured_surface():
    wall = View(
        np.zeros((120, 160, 3), np.uint8), CAMERA, np.eye(4), depth=np.full((120, 160), 4, np.float32), stamp_ns=1
    )
    points = np.array([[0, 0, 2.0], [0, 0, 4.0], [0, 0, 6.0], [0, 0, -2.0], [9, 0, 2.0]])
    assert in_free_space(points, [wall]).tolist() == [True, False, False, False, False]


def test_remember_adds_a_surface_that_several_views_of_a_clip_show_only_once(world, path):
    """Each view estimates another depth; later ones are aligned to the first."""

    class InconsistentDepth:
        name, clip_length = "inconsistent depth", 4

        def __call__(self, conditioning, **_):
            for index, scale in zip(range(len(conditioning.world_from_camera)), (1.0, 1.5, 0.7, 2.0), strict=False):
                covered = conditioning.renders.covered[index].cpu().numpy()
                known = conditioning.renders.depth[index].cpu().numpy()
                depth = np.where(covered, known, np.float32(3 * scale)).astype(np.float32)
                image = np.full((*depth.shape, 3), 90, np.uint8)
                yield PipelineFrame(image, depth, np.zeros(depth.shape, bool), confidence=np.zeros(depth.shape))

    turned = path[24].copy()
    turned[:3, :3] = turned[:3, :3] @ np.diag([-1.0, 1.0, -1.0])  # towards unobserved space
    for poses in (turned[None], np.repeat(turned[None], 4, axis=0)):
        memory = WorldModel(InconsistentDepth())
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


def test_imagine_raises_when_memory_is_empty():
    with pytest.raises(EmptyMemoryError, match="The memory is empty: nothing was observed yet"):
        WorldModel(load_pipeline("geometric")).imagine(np.eye(4)[None], CAMERA)


def test_observe_rejects_a_view_without_depth_and_keeps_memory(world, observations):
    points = len(world.cloud)
    view = observations[0]
    for depth in (None, np.zeros_like(view.depth)):
        with pytest.raises(ValueError, match="no depth"):
            world.observe(View(view.image, CAMERA, view.world_from_camera, depth))
    assert len(world.cloud) == points


@pytest.mark.parametrize("pipeline", ["geometric", "small"])
def test_a_photo_without_depth_is_estimated_and_never_observed(observations, path, pipeline):
    """The guessed distances are wrong by a fifth, as those of networks often are."""
    truth = observations[2]
    world = WorldModel(load_pipeline(pipeline), depth_estimator=lambda image, camera: 1.2 * truth.depth)
    report = world.observe(replace(truth, depth=None))
    assert report.inserted > 1000
    assert world.cloud.observed_count == 0
    assert world.cloud.estimated.all()
    photo = world.newest_observation
    assert photo.estimated_mask.all()
    assert not photo.observed_mask.any()
    at_photo, *beside = world.imagine(path[12:20:3], CAMERA, remember=True)
    for view in (at_photo, *beside):
        assert view.observed_fraction == 0
    assert at_photo.estimated_fraction > 0.9
    np.testing.assert_array_equal(at_photo.image[at_photo.estimated_mask], truth.image[at_photo.estimated_mask])
    assert world.cloud.observed_count == 0


def test_measured_depth_replaces_the_estimated_depth_of_the_same_frame(observations):
    """A colour frame that arrives before the depth sensor starts leaves no second surface."""
    truth = observations[2]
    world = WorldModel(load_pipeline("geometric"), depth_estimator=lambda image, camera: 1.4 * truth.depth)
    world.observe(replace(truth, depth=None))
    guessed = len(world.cloud)
    assert guessed > 1000
    world.observe(truth)
    alone = WorldModel(load_pipeline("geometric"))
    alone.observe(truth)
    assert world.cloud.observed_count == alone.cloud.observed_count
    assert world.cloud.estimated_count < 0.02 * guessed
    # A later frame without depth adds nothing where memory has an observed surface.
    before = world.cloud.estimated_count
    world.observe(replace(truth, depth=None, stamp_ns=truth.stamp_ns + 1))
    assert world.cloud.estimated_count - before < 0.02 * guessed


def test_estimated_depth_is_no_evidence_for_observed_pixels(observations, path):
    """Frames without depth do not change what is called observed."""

    def observed(views):
        world = WorldModel(load_pipeline("geometric"), depth_estimator=lambda image, camera: 2.5 * truth.depth)
        for view in views:
            world.observe(view)
        return next(iter(world.imagine(path[27][None], CAMERA))).observed_mask

    truth = observations[3]
    with_depth = observed([observations[4]])
    assert with_depth.any()
    with_photo = observed([observations[4], replace(truth, depth=None)])
    assert (with_photo & ~with_depth).mean() < 0.01


def test_imagine_rejects_invalid_paths_immediately(world):
    for poses, words in ((np.full((2, 4, 4), np.nan), "finite"), (np.zeros((0, 4, 4)), "at least one")):
        with pytest.raises(ValueError, match=words):
            world.imagine(poses, CAMERA)


def test_cancelling_between_steps_stops_and_keeps_memory(world, path):
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


def test_save_and_load_restore_the_memories(world, path, tmp_path):
    expected = next(iter(world.imagine(path[30:31], CAMERA)))
    world.save(tmp_path / "a.wsmap")
    other = WorldModel(load_pipeline("geometric"))
    other.load(tmp_path / "a.wsmap")
    np.testing.assert_array_equal(next(iter(other.imagine(path[30:31], CAMERA))).image, expected.image)


def test_load_keeps_memory_when_the_file_is_invalid(world, tmp_path):
    points = len(world.cloud)
    (tmp_path / "bad.wsmap").write_bytes(b"this is no map" * 100)
    with pytest.raises(ArchiveError):
        world.load(tmp_path / "bad.wsmap")
    assert len(world.cloud) == points


def test_reset_clears_memory(world):
    world.reset()
    assert len(world.cloud) == 0
    assert world.newest_observation is None


@pytest.mark.parametrize("has_depth", [True, False])
def test_observe_rejects_imagined_views_and_keeps_the_memory(world, observations, has_depth):
    view = observations[0]
    count = len(world.cloud), len(world.bank)
    imagined = replace(view, observed=np.zeros(view.image.shape[:2], bool), depth=view.depth if has_depth else None)
    world.depth_estimator = lambda image, camera: np.full(image.shape[:2], 2.0, np.float32)
    with pytest.raises(ValueError, match="imagined pixels"):
        world.observe(imagined)
    assert (len(world.cloud), len(world.bank)) == count


def test_warm_up_covers_images_without_depth():
    """Their first one took ten seconds of compilation, in which a robot's images were dropped."""
    estimated = []

    def estimator(image, camera):
        estimated.append(image)
        return np.full(image.shape[:2], 3.0, np.float32)

    warm_up(load_pipeline("geometric"), depth_estimator=estimator)
    assert len(estimated) == 2
    warm_up(load_pipeline("geometric"))
    assert len(estimated) == 2
