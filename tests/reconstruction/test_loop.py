"""The loop over a trajectory: captures of a segment, checks against them, and the update of the geometry."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.photo_scene import arc, render

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.similarity import Similarity, mean_rotation
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.base import PipelineFrame
from worldstereo_ros.reconstruction.geometry_models import NetworkGeometry
from worldstereo_ros.reconstruction.loop import describe_checks, imagine_place
from worldstereo_ros.reconstruction.relocalisation import MAX_DRIFT, Relocaliser
from worldstereo_ros.reconstruction.segment_captures import SegmentPipeline, order_captures
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.world import EmptyMemoryError, WorldModel

POSES = arc(9, 5.0)
TRUTHS = [render(pose) for pose in POSES]
CAMERA = TRUTHS[0].camera
GIVEN = (0, 4, 8)
ASKED = np.array([1, 2, 3, 5, 6, 7])


class TruePipeline:
    """Shows the place as it is, but for `shift` pixels; its clips have three views. Remembers what it was given."""

    name = "true"
    clip_length = 3
    selects_references = True

    def __init__(self, shifts: dict[int, int] | None = None, distance: float = 1.0, confidence: float = 0.9) -> None:
        self.shifts, self.distance, self.confidence = shifts or {}, distance, confidence
        self.calls: list = []

    def __call__(self, conditioning, *, prompt, generator, on_step):
        self.calls.append(conditioning)
        for pose in conditioning.world_from_camera:
            number = int(np.abs(POSES - pose).max(axis=(1, 2)).argmin())
            truth = TRUTHS[number]
            image = np.roll(truth.image, self.shifts.get(number, 0), axis=1)
            depth = (truth.depth * self.distance).astype(np.float32)
            confidence = np.full(depth.shape, self.confidence, np.float32)
            nowhere = np.zeros(depth.shape, bool)
            yield PipelineFrame(image, depth, nowhere, confidence=confidence, depth_confidence=confidence)


def small_world(pipeline, given=GIVEN, rows: slice = slice(60, 120)) -> WorldModel:
    """A world that observed a band of the given photographs, so that there is something left to imagine."""
    world = WorldModel(pipeline)
    for number in given:
        view = TRUTHS[number]
        depth = np.zeros_like(view.depth)
        depth[rows] = view.depth[rows]
        world.observe(replace(view, depth=depth))
    return world


def captured(world: WorldModel) -> tuple[np.ndarray, np.ndarray]:
    cloud = world.cloud
    known = cloud.provenance != Provenance.IMAGINED
    order = np.lexsort(cloud.points[known].T)
    return cloud.points[known][order].copy(), cloud.colours[known][order].copy()


# --- the loop --------------------------------------------------------------------------------------------------------


def test_update_adds_imagined_points_and_leaves_captured_ones_alone():
    pipeline = TruePipeline()
    world = small_world(pipeline)
    before, views = captured(world), [view for view in world.bank.views if view.is_observation]
    found = list(imagine_place(world, POSES[ASKED], CAMERA))
    assert [one.view.index for one in found] == list(range(6))
    assert [one.segment for one in found] == [0, 0, 0, 1, 1, 1]
    assert all(one.in_geometry and not one.check.drifted for one in found)
    for one, other in zip(before, captured(world), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [view for view in world.bank.views if view.is_observation] == views
    imagined = world.cloud.provenance == Provenance.IMAGINED
    assert imagined.sum() > 1000
    # The second segment sees what the first imagined, and continues from its last view.
    first, second = pipeline.calls
    assert second.renders.covered.float().mean() > first.renders.covered.float().mean() + 0.2
    assert second.start_view.image is found[2].view.image


def test_without_update_memory_stays_as_it_was():
    pipeline = TruePipeline()
    world = small_world(pipeline)
    count, views = len(world.cloud), len(world.bank)
    found = list(imagine_place(world, POSES[ASKED], CAMERA, update=False))
    assert (len(world.cloud), len(world.bank)) == (count, views)
    assert not any(one.in_geometry for one in found)


def test_the_geometry_is_updated_before_the_last_view_of_a_segment_is_given():
    world = small_world(TruePipeline())
    count = len(world.cloud)
    views = imagine_place(world, POSES[ASKED], CAMERA)
    for _ in range(2):
        next(views)
    assert len(world.cloud) == count
    next(views)
    assert len(world.cloud) > count


def test_views_that_drift_stay_out_and_no_segment_continues_from_them():
    drifting = {int(number): 20 for number in ASKED[:3]}
    pipeline = TruePipeline(drifting)
    world = small_world(pipeline)
    count = len(world.cloud)
    found = list(imagine_place(world, POSES[ASKED], CAMERA))
    assert [one.in_geometry for one in found] == [False] * 3 + [True] * 3
    assert all(one.check.pixels == pytest.approx(20, abs=1) for one in found[:3])
    assert pipeline.calls[1].start_view.is_observation
    assert len(world.cloud) > count
    text = " ".join(describe_checks(found))
    assert "3 drifted" in text
    assert "0, 1, 2" in text


def test_depth_that_is_more_likely_wrong_stays_out():
    world = small_world(TruePipeline(confidence=0.4))
    count = len(world.cloud)
    list(imagine_place(world, POSES[[2]], CAMERA))
    assert len(world.cloud) == count
    list(imagine_place(world, POSES[[2]], CAMERA, min_depth_confidence=0.3))
    assert len(world.cloud) > count


def test_a_network_is_tied_back_by_its_captures():
    scale, turn = 0.2, mean_rotation(np.array([[[0, -1.0, 0], [1, 0, 0], [0, 0, 1]]]))
    seen = []

    def network(images: np.ndarray) -> NetworkGeometry:
        # Its own frame and unit; it sees captures first. Imagined views get poses that say nothing.
        seen.append(len(images))
        numbers = [*GIVEN, *ASKED[:3]]
        away = Similarity(1 / scale, turn, np.array([3.0, -1.0, 2.0]))
        poses = away.poses(POSES[numbers])
        poses[3:, :3, 3] += 100
        depth = np.stack([
            torch.nn.functional.interpolate(
                torch.from_numpy(TRUTHS[n].depth)[None, None], images.shape[1:3], mode="nearest"
            )[0, 0].numpy()
            for n in numbers
        ]) / scale  # fmt: skip
        return NetworkGeometry(depth.astype(np.float32), np.ones(depth.shape, np.float32), poses)

    world = small_world(TruePipeline(distance=1.6))  # whose own depth is far off
    list(imagine_place(world, POSES[ASKED[:3]], CAMERA, network=network))
    assert seen == [6]
    imagined = world.cloud.points[world.cloud.provenance == Provenance.IMAGINED]
    surfaces = np.minimum.reduce([
        np.abs(imagined[:, 2] - 4.0), np.abs(imagined[:, 1] - 0.9), np.abs(imagined[:, 2] - 2.5),
    ])  # fmt: skip
    assert np.median(surfaces) < 0.03


def test_captures_are_those_that_saw_most():
    pipeline = TruePipeline()
    world = small_world(pipeline)
    for captures in ("visible", "published"):
        pipeline.calls.clear()
        found = list(imagine_place(world, POSES[[1, 2]], CAMERA, captures=captures, limit=1, update=False))
        assert found[0].captures == (0,) or found[0].captures == (1,)
        (call,) = pipeline.calls
        assert [view.image for view in call.captures] == [world.bank.views[found[0].captures[0]].image]
        assert len(call.references) <= 2  # the best of each view
        assert len(call.observations) == 3
    list(imagine_place(world, POSES[[7]], CAMERA, limit=1, update=False))
    np.testing.assert_array_equal(pipeline.calls[-1].captures[0].image, TRUTHS[8].image)


def test_the_published_count_also_counts_what_is_hidden():
    front, behind = TRUTHS[4], TRUTHS[4]
    hidden = replace(behind, depth=np.full_like(behind.depth, 9.0), image=255 - behind.image)
    world = WorldModel(TruePipeline())
    world.observe(front)
    conditioning = []

    class Spy(TruePipeline):
        def __call__(self, given, **options):
            conditioning.append(given)
            return super().__call__(given, **options)

    world.pipeline = Spy()
    world.bank.add(replace(hidden, world_from_camera=POSES[5]))
    list(imagine_place(world, POSES[[4]], CAMERA, update=False))
    visible, published = (SegmentPipeline(world.pipeline, name, 2).choose(conditioning[0]) for name in
                          ("visible", "published"))  # fmt: skip
    assert visible.indices == [0]
    assert published.indices == [0, 1]


@pytest.mark.parametrize("captures", ["visible", "published"])
def test_each_view_of_a_segment_can_be_warped_from_the_capture_that_saw_most_of_it(captures):
    """Even if the model attends to fewer captures than the segment has views in different places."""
    pipeline = TruePipeline()
    list(imagine_place(small_world(pipeline), POSES[[1, 7]], CAMERA, captures=captures, limit=1, update=False))
    (call,) = pipeline.calls
    assert len(call.captures) == 1
    best = [call.references[int(index)].image for index in call.reference_index]
    np.testing.assert_array_equal(best[0], TRUTHS[0].image)
    np.testing.assert_array_equal(best[1], TRUTHS[8].image)
    pipeline.selects_references = False  # no more than what its transformer attends to
    list(imagine_place(small_world(pipeline), POSES[[1, 7]], CAMERA, captures=captures, limit=1, update=False))
    assert len(pipeline.calls[-1].references) == 1


def test_bad_input_is_named():
    world = small_world(TruePipeline())
    for options in ({"segment": 0}, {"captures": "nearest"}, {"limit": 0}, {"cuts": [9]}):
        with pytest.raises(InputError):
            imagine_place(world, POSES[ASKED], CAMERA, **options)
    with pytest.raises(EmptyMemoryError):
        next(imagine_place(WorldModel(TruePipeline()), POSES[ASKED], CAMERA))


def test_order_of_captures_depends_on_their_poses_alone():
    views = [TRUTHS[number] for number in (0, 2, 3, 6, 8)]
    expected = [views[i].world_from_camera for i in order_captures(views)]
    for seed in range(4):
        mixed = [views[i] for i in np.random.default_rng(seed).permutation(len(views))]
        np.testing.assert_array_equal([mixed[i].world_from_camera for i in order_captures(mixed)], expected)
    steps = np.diff(np.stack(expected)[:, 0, 3])
    assert (steps > 0).all() or (steps < 0).all()


# --- relocalisation --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def relocaliser() -> Relocaliser:
    return Relocaliser([TRUTHS[number] for number in GIVEN])


def test_a_true_picture_is_where_it_was_asked_for(relocaliser):
    check = relocaliser.check(TRUTHS[2])
    assert check.located
    assert not check.drifted
    assert check.degrees < 0.1
    assert check.share_of_depth < 0.003
    assert check.pixels < 0.5


def test_features_in_one_corner_tell_no_pose(relocaliser):
    corner = np.full_like(TRUTHS[4].image, 128)
    corner[100:128, 40:72] = TRUTHS[4].image[100:128, 40:72]
    check = relocaliser.check(replace(TRUTHS[4], image=corner))
    assert check.located
    assert check.degrees is None
    assert check.pixels < 0.5
    assert "degrees" not in str(check)


@pytest.mark.parametrize("number", [1, 3])
def test_the_pose_that_a_picture_shows_is_found(relocaliser, number):
    shown = TRUTHS[number]
    check = relocaliser.check(replace(shown, world_from_camera=POSES[2], depth=None))
    distance = np.linalg.norm(POSES[number][:3, 3] - POSES[2][:3, 3])
    assert check.drifted
    assert check.distance == pytest.approx(distance, rel=0.03)
    assert "drifted" in str(check)


def test_drift_begins_at_the_stated_share_of_the_diagonal(relocaliser):
    limit = MAX_DRIFT * np.hypot(CAMERA.width, CAMERA.height)
    for pixels, drifted in ((int(limit) - 1, False), (int(limit) + 2, True)):
        check = relocaliser.check(replace(TRUTHS[2], image=np.roll(TRUTHS[2].image, pixels, axis=1)))
        assert check.pixels == pytest.approx(pixels, abs=0.5)
        assert check.drifted == drifted


def test_noise_where_captures_show_much_is_drift_and_an_empty_place_is_not(relocaliser):
    noise = np.random.default_rng(0).integers(0, 255, TRUTHS[2].image.shape, dtype=np.uint8)
    check = relocaliser.check(replace(TRUTHS[2], image=noise))
    assert check.drifted
    assert not check.located
    away = POSES[2].copy()
    away[:3, :3] = away[:3, :3] @ np.diag([-1.0, 1, -1])  # looks back, where no capture looked
    check = relocaliser.check(View(noise, CAMERA, away, np.full(noise.shape[:2], 2, np.float32)))
    assert not check.drifted
    assert "not located" in str(check)
