"""The classes of the cloud memory: what each may do to the others, and that imagining is no evidence."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.geometry.views import View
from worldstereo_ros.memory.cloud import CloudMemory

CAMERA = Camera.from_fov(64, 48, 1.2)
SHAPE = (48, 64)
VOXEL = 0.05
EVERYWHERE, NOWHERE = np.ones(SHAPE, bool), np.zeros(SHAPE, bool)


def wall(kind, distance=2.0, *, colour=100, pose=None, sure=None):
    """A wall straight ahead whose pixels are all of one class; `sure` is the confidence of both colour and depth."""
    image = np.full((*SHAPE, 3), colour, np.uint8)
    view = View(image, CAMERA, np.eye(4) if pose is None else pose, np.full(SHAPE, distance, np.float32))
    if kind == Provenance.IMAGINED:
        view = replace(view, observed=NOWHERE)
    elif kind == Provenance.ESTIMATED:
        view = replace(view, estimated=EVERYWHERE)
    if sure is not None:
        view = replace(view, confidence=np.full(SHAPE, sure, np.float32), depth_confidence=np.full(SHAPE, sure))
    assert (view.provenance == kind).all()
    return view


def memory_of(*views):
    memory = CloudMemory(VOXEL)
    for view in views:
        memory.insert(view)
    return memory


@pytest.mark.parametrize("first", [1, 2, 3])
@pytest.mark.parametrize("second", [1, 2, 3])
def test_a_point_gives_way_to_a_higher_class_only(first, second):
    memory = memory_of(wall(Provenance(first), colour=10))
    report = memory.insert(wall(Provenance(second), colour=200))
    assert (memory.provenance == max(first, second)).all()
    if second > first:
        assert report.promoted == len(memory)
        assert (memory.colours == 200).all()
    elif second < first:
        assert report.rejected == 48 * 64
        assert (memory.colours == 10).all()
    else:
        assert report.merged == 48 * 64
    np.testing.assert_array_equal(memory.observed, memory.provenance == Provenance.OBSERVED)
    np.testing.assert_array_equal(memory.estimated, memory.provenance == Provenance.ESTIMATED)
    assert memory.observed_count == memory.observed.sum()
    assert memory.estimated_count == memory.estimated.sum()


@pytest.mark.parametrize("kind", [Provenance.IMAGINED, Provenance.ESTIMATED])
def test_measured_depth_carves_what_was_not_measured(kind):
    memory = memory_of(wall(kind, 1.0))
    before = len(memory)
    report = memory.insert(wall(Provenance.OBSERVED, 3.0))
    assert report.carved > 0.8 * before
    near = memory.points[:, 2] < 2
    assert near.sum() == before - report.carved
    assert (memory.provenance[~near] == Provenance.OBSERVED).all()


@pytest.mark.parametrize("kind", [Provenance.IMAGINED, Provenance.ESTIMATED])
def test_depth_that_was_not_measured_carves_nothing(kind):
    memory = memory_of(wall(Provenance.IMAGINED, 1.0))
    assert memory.insert(wall(kind, 3.0)).carved == 0
    # Of a view that is measured in its left half, only that half carves.
    left = np.arange(64)[None].repeat(48, 0) < 32
    partly = replace(wall(Provenance.OBSERVED, 3.0), estimated=~left)
    assert memory.insert(partly).carved > 100
    near = memory.points[memory.points[:, 2] < 2]
    near = near[np.abs(near[:, 1]) < 0.4]  # at the border of the image nothing is carved
    assert not ((near[:, 0] > -0.6) & (near[:, 0] < -2 * VOXEL)).any()
    assert (near[:, 0] > 2 * VOXEL).sum() > 100


def test_remove_estimated_removes_the_points_of_a_view():
    photo = wall(Provenance.ESTIMATED)
    elsewhere = wall(Provenance.ESTIMATED, 4.0)
    memory = memory_of(elsewhere)
    before = memory.points.copy()
    added = memory.insert(photo).added
    assert added > 1000
    assert memory.remove_estimated(photo) == added
    np.testing.assert_array_equal(memory.points, before)
    assert memory.remove_estimated(photo) == 0
    assert memory.insert(photo).added == added  # its voxels are free again


def test_remove_estimated_keeps_other_classes():
    photo = wall(Provenance.ESTIMATED)
    right = trajectory("right", np.eye(4), 2, distance=1.0)[1]
    memory = memory_of(photo, wall(Provenance.OBSERVED, pose=right))
    memory.insert(wall(Provenance.IMAGINED, 3.0))
    kept = {kind: int((memory.provenance == kind).sum()) for kind in Provenance}
    removed = memory.remove_estimated(photo)
    assert removed == kept[Provenance.ESTIMATED] > 100
    for kind in (Provenance.IMAGINED, Provenance.OBSERVED):
        assert (memory.provenance == kind).sum() == kept[kind] > 100
    with pytest.raises(ValueError, match="no depth"):
        memory.remove_estimated(replace(photo, depth=None))


# --- confidence ------------------------------------------------------------------------------------------------------

levels = hnp.arrays(np.float32, 6, elements=st.floats(0, 1, width=32))
LINE = np.stack([np.arange(6) + 0.5, np.zeros(6), np.zeros(6)], axis=1)  # one point for each voxel


def insert_line(memory, kind, confidence, depth_confidence, weight=1.0):
    memory.insert_points(
        LINE, np.zeros((6, 3), np.uint8), int(kind), weight, confidence=confidence, depth_confidence=depth_confidence
    )
    order = np.argsort(memory.points[:, 0])
    return memory.confidence[order], memory.depth_confidence[order]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(levels, levels, st.floats(0.1, 10)), min_size=2, max_size=8))
def test_imagining_a_point_again_never_raises_its_confidences(insertions):
    memory = CloudMemory(1.0)
    before = insert_line(memory, Provenance.IMAGINED, *insertions[0])
    for insertion in insertions[1:]:
        now = insert_line(memory, Provenance.IMAGINED, *insertion)
        for old, new, inserted in zip(before, now, insertion[:2], strict=True):
            assert (new <= old).all()
            assert (new >= np.minimum(old, inserted) - 1e-4).all()  # a mean: never below both
        before = now
    assert (memory.provenance == Provenance.IMAGINED).all()


@settings(max_examples=60, deadline=None)
@given(levels, levels, hnp.arrays(np.float32, 6, elements=st.floats(0.125, 8, width=32)), st.permutations(range(6)))
def test_pixels_of_one_insertion_are_averaged_in_any_order(colour, depth, weight, order):
    def inserted(memory, *columns):
        point = np.full((6, 3), 0.5)
        memory.insert_points(
            point, np.zeros((6, 3), np.uint8), int(Provenance.IMAGINED), *columns[:1],
            confidence=columns[1], depth_confidence=columns[2],
        )  # fmt: skip
        return np.concatenate([memory.confidence, memory.depth_confidence])

    memory = CloudMemory(1.0, max_weight=100.0)
    order = list(order)
    found = inserted(memory, weight[order], colour[order], depth[order])
    expected = [np.average(values.astype(np.float64), weights=weight) for values in (colour, depth)]
    np.testing.assert_allclose(found, expected, atol=2e-4)
    # A later insertion is another statement: it may lower them, but not raise them.
    before = found
    for _ in range(3):
        after = inserted(memory, weight, np.maximum(colour, before[0]), np.ones(6))
        assert (after <= before).all()
        before = after


@settings(max_examples=40, deadline=None)
@given(levels, levels)
def test_a_higher_class_sets_the_confidences_anew(imagined, estimated):
    memory = CloudMemory(1.0)
    insert_line(memory, Provenance.IMAGINED, imagined, imagined, weight=50.0)
    colour, depth = insert_line(memory, Provenance.ESTIMATED, None, estimated)
    assert (colour == 1).all()  # a camera saw it
    np.testing.assert_allclose(depth, estimated, atol=1e-4)
    colour, depth = insert_line(memory, Provenance.OBSERVED, None, None)
    assert (colour == 1).all()
    assert (depth == 1).all()


def test_confidences_of_a_view_without_them_follow_from_the_class():
    for kind, colour, depth in ((1, 0, 0), (2, 1, 0), (3, 1, 1)):
        memory = memory_of(wall(Provenance(kind)))
        assert set(memory.confidence.tolist()) == {colour}
        assert set(memory.depth_confidence.tolist()) == {depth}
    memory = memory_of(wall(Provenance.ESTIMATED, sure=0.25))
    np.testing.assert_allclose(memory.depth_confidence, 0.25, atol=1e-4)
    np.testing.assert_allclose(memory.depth_confidence_at(np.array([3, 5])), 0.25, atol=1e-4)
