"""The same view, observed again, is no second witness of what it shows."""

from dataclasses import replace

import numpy as np
import pytest

from worldstereo_ros.evaluation.metrics import seen_pixels
from worldstereo_ros.evaluation.world_sequences import world_sequence
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose, pose_from_quaternion
from worldstereo_ros.geometry.view_overlap import distinct_viewpoints
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.overlap import Overlap, measure_overlap
from worldstereo_ros.io.datasets import open_sequence
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.pipelines.geometric.references import select_references
from worldstereo_ros.pipelines.geometric.registration import (
    ASSUMED_ERROR_RAD,
    MIN_BASELINE,
    NeighbourOverlaps,
    measure_registration,
)
from worldstereo_ros.world import WorldModel

CAMERA = Camera.from_fov(160, 120, np.radians(75))
INVARIANCE = 0.002  # allowed change of share, precision and recall


def jittered(view: View, seed: int) -> View:
    """The view from a pose that sensor noise moves by 1 mm and 0.05 degrees, as that of a parked robot."""
    rng = np.random.default_rng(seed)
    turn = rng.normal(0, np.radians(0.05) / 2, 3)
    noise = pose_from_quaternion(rng.normal(0, 0.001, 3), (*turn, 1.0))
    return replace(view, world_from_camera=view.world_from_camera @ noise, stamp_ns=view.stamp_ns + seed)


def provenance(observed: list[View], targets: list[View]) -> tuple[float, float, float]:
    """Share, precision and recall of observed pixels."""
    world = WorldModel(GeometricPipeline(threads=1))
    for view in observed:
        world.observe(view)
    poses = np.stack([target.world_from_camera for target in targets])
    correct = labelled = seen_count = count = 0
    for view, target in zip(world.imagine(poses, targets[0].camera), targets, strict=True):
        known, seen = target.depth > 0, seen_pixels(target, observed)
        correct += (view.observed_mask & seen).sum()
        labelled += (view.observed_mask & known).sum()
        seen_count += seen.sum()
        count += known.sum()
    return labelled / count, correct / labelled, correct / seen_count


@pytest.fixture(scope="module")
def walk():
    return world_sequence("test", 6, views=13, camera=CAMERA)  # slanted surfaces, which need two witnesses


@pytest.mark.parametrize("indices", [(0,), (0, 4, 8)])
def test_duplicates_change_nothing(walk, indices):
    views = [walk[index] for index in indices]
    targets = [walk[index] for index in range(1, 13, 3)]
    once = provenance(views, targets)
    assert once[0] > 0.2
    for copies in (2, 3):
        assert provenance(views * copies, targets) == pytest.approx(once, abs=INVARIANCE)


def test_a_parked_robot_does_not_confirm_itself(walk):
    views, targets = [walk[0], walk[6]], [walk[index] for index in range(1, 13, 3)]
    once = provenance(views, targets)
    parked = [jittered(view, seed) for seed in range(4) for view in views]
    # Noise in the pose changes a few pixels beside edges; eight more witnesses would change a fiftieth of the image.
    assert provenance([*parked, *views], targets) == pytest.approx(once, abs=0.007)


@pytest.mark.parametrize("name", ["rgbd_tum_fr3_cabinet", "rgbd_hololens_office_a"])
def test_duplicates_change_nothing_on_recordings(shared_data, name):
    sequence = open_sequence(shared_data / name)
    views, targets = [sequence[index] for index in (0, 20, 40)], [sequence[index] for index in range(1, 50, 12)]
    once, twice = provenance(views, targets), provenance(views * 2, targets)
    assert twice == pytest.approx(once, abs=INVARIANCE)


def test_copies_do_not_fill_the_reference_slots(walk):
    parked = [jittered(walk[0], seed) for seed in range(9)]
    other = walk[6]
    target = walk[3]
    selected = select_references([*parked, other], target.depth, CAMERA, target.world_from_camera, limit=2)
    assert selected == [parked[-1], other] or [id(v) for v in selected] == [id(parked[-1]), id(other)]


def test_the_newest_of_near_identical_views_is_used(walk):
    view = walk[0]
    repainted = replace(view, image=255 - view.image, stamp_ns=view.stamp_ns + 1)
    (selected,) = select_references([repainted, view], view.depth, CAMERA, view.world_from_camera)
    assert selected is repainted


def test_distinct_viewpoints_keeps_order_and_kind(walk):
    first, second = walk[0], walk[6]
    again = replace(first, stamp_ns=first.stamp_ns + 1)
    imagined = replace(first, observed=np.zeros(first.depth.shape, bool))
    wide = replace(first, camera=Camera.from_fov(160, 120, np.radians(100)))
    views = [second, first, imagined, wide, again]
    assert [id(v) for v in distinct_viewpoints(views)] == [id(v) for v in (second, again, imagined, wide)]
    assert len(distinct_viewpoints(views, limit=2)) == 2
    assert distinct_viewpoints([]) == []


def test_an_overlap_with_a_copy_does_not_measure_the_pose_error(walk):
    assert measure_overlap(walk[0], walk[0]).baseline == 0
    moved = invert_pose(walk[0].world_from_camera) @ walk[2].world_from_camera
    distance = np.median(np.linalg.norm(CAMERA.rays() * walk[0].depth[..., None], axis=2))
    expected = np.linalg.norm(moved[:3, 3]) / distance
    assert measure_overlap(walk[0], walk[2]).baseline == pytest.approx(expected, rel=0.3)
    colours = np.zeros((0, 2, 3))
    copy, apart = Overlap(colours, 1e-4, 0.0), Overlap(colours, 0.02, 2 * MIN_BASELINE)
    registration = measure_registration([walk[0], walk[1]], {(0, 1): copy})
    np.testing.assert_array_equal(registration.errors, [ASSUMED_ERROR_RAD] * 2)
    assert not registration.checked.any()
    assert not registration.known
    registration = measure_registration([walk[0], walk[1], walk[2]], {(0, 1): copy, (0, 2): apart})
    np.testing.assert_array_equal(registration.checked, [True, False, True])
    assert registration.known


def test_views_are_checked_against_their_neighbours_in_memory(walk):
    views = [walk[0], walk[4], walk[8], walk[8]]
    neighbours = NeighbourOverlaps()
    overlaps = neighbours(views)
    pairs = [(walk[0], walk[4]), (walk[4], walk[0]), (walk[8], walk[4])]
    assert set(overlaps) <= {(id(one), id(other)) for one, other in [*pairs, (walk[4], walk[8])]}
    assert len(overlaps) == 3  # the copy adds none
    registration = measure_registration([walk[8]], {}, overlaps)  # a camera that sees one of the views alone
    assert registration.known
    assert neighbours(views) == overlaps  # cached
    assert NeighbourOverlaps()([walk[0]]) == {}
