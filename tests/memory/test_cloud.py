"""The cloud memory: comparison with a plain dictionary, and properties of fusion, eviction and provenance."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.geometry.views import View
from worldstereo_ros.memory import _voxels_numba, cloud
from worldstereo_ros.memory.cloud import CloudMemory

CAMERA = Camera.from_fov(64, 48, 1.2)
VOXEL = 0.05


def wall(distance=2.0, *, observed=None, colour=100, pose=None, stamp_ns=0):
    image = np.full((48, 64, 3), colour, np.uint8)
    depth = np.full((48, 64), distance, np.float32)
    return View(image, CAMERA, np.eye(4) if pose is None else pose, depth, observed, stamp_ns)


def imagined(view):
    return replace(view, observed=np.zeros(view.image.shape[:2], bool))


def keys_of(points, voxel=VOXEL):
    return np.floor(np.asarray(points, np.float64) / voxel).astype(np.int64)


def check(memory):
    """Checks that the table, the lists and the dense arrays are consistent."""
    count = len(memory)
    keys = memory._arrays["keys"][:count]
    assert len(np.unique(keys)) == count
    stored = memory._table_keys != 0
    assert stored.sum() == count
    assert sorted(memory._table_points[stored]) == list(range(count))
    for key in keys:
        slot = _voxels_numba.find(memory._table_keys, key)
        assert keys[memory._table_points[slot]] == key
    previous, following = memory._links
    walked = 0
    for kind in range(3):
        at, before = memory._state[_voxels_numba.HEAD + kind], -1
        turns = []
        while at != -1:
            assert previous[at] == before
            assert memory.provenance[at] == kind + 1
            turns.append(memory._arrays["turns"][at])
            before, at = at, following[at]
            walked += 1
        assert turns == sorted(turns)
        assert memory._state[_voxels_numba.TAIL + kind] == before
    assert walked == count


class Plain:
    """Reference implementation: the same rules on a dictionary, one point at a time, without a budget."""

    def __init__(self, cap):
        self.cap, self.voxels = cap, {}

    def insert(self, points, colours, classes, weights):
        for point, colour, kind, weight in zip(points, colours, classes, weights, strict=True):
            key = tuple(keys_of(point))
            old = self.voxels.get(key)
            if old is None or kind > old[2]:
                self.voxels[key] = (point.astype(float), colour.astype(float), kind, min(weight, self.cap))
            elif kind == old[2]:
                share = weight / (old[3] + weight)
                self.voxels[key] = (
                    old[0] + share * (point - old[0]),
                    old[1] + share * (colour - old[1]),
                    kind,
                    min(old[3] + weight, self.cap),
                )


batches = st.lists(
    st.tuples(
        st.integers(0, 2**31), st.integers(1, 60), st.sampled_from(["observed", "estimated", "imagined", "mixed"])
    ),
    min_size=1,
    max_size=8,
)


def draw(seed, count, kind, extent=4):
    rng = np.random.default_rng(seed)
    points = ((rng.integers(-extent, extent, (count, 3)) + rng.uniform(0.1, 0.9, (count, 3))) * VOXEL).astype(
        np.float32
    )
    colours = rng.integers(0, 256, (count, 3), dtype=np.uint8)
    classes = rng.integers(1, 4, count, dtype=np.uint8)
    if kind != "mixed":
        classes[:] = Provenance[kind.upper()]
    return points, colours, classes, rng.uniform(0.1, 2, count).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(batches)
def test_fusion_matches_a_plain_dictionary(parts):
    memory, plain = CloudMemory(VOXEL, 10_000, max_weight=5.0), Plain(5.0)
    for part in parts:
        arrays = draw(*part)
        memory.insert_points(*arrays)
        plain.insert(*arrays)
    check(memory)
    assert len(memory) == len(plain.voxels)
    for key, point, colour, kind, weight in zip(
        keys_of(memory.points), memory.points, memory.colours, memory.provenance, memory.weight, strict=True
    ):
        expected = plain.voxels[tuple(key)]
        np.testing.assert_allclose(point, expected[0], atol=1e-5)
        assert np.abs(colour - expected[1]).max() <= 0.55
        assert kind == expected[2]
        assert weight == pytest.approx(expected[3], rel=1e-4)


@settings(max_examples=60, deadline=None)
@given(batches, st.integers(1, 80))
def test_memory_is_bounded_and_evicts_lower_classes_first(parts, budget):
    memory = CloudMemory(VOXEL, budget)
    for part in parts:
        points, colours, classes, weights = draw(*part)
        held = dict(zip(map(tuple, keys_of(memory.points)), memory.provenance.tolist(), strict=True))
        report = memory.insert_points(points, colours, classes, weights)
        check(memory)
        assert len(memory) <= budget
        assert report.count == len(memory)
        # Every point of the batch is counted exactly once.
        counted = report.added + report.merged + report.promoted + report.rejected + report.dropped
        assert counted == len(points)
        now = {tuple(key) for key in keys_of(memory.points)}
        for kind in (Provenance.ESTIMATED, Provenance.OBSERVED):
            held_higher = {key for key, old in held.items() if old >= kind}
            held_lower = sum(old < kind for old in held.values())
            new_higher = {tuple(key) for key in keys_of(points[classes >= kind])} - held_higher
            if len(new_higher) <= held_lower:
                assert held_higher <= now, "a point was evicted although points of a lower class existed"


@settings(max_examples=40, deadline=None)
@given(batches, st.randoms(use_true_random=False))
def test_provenance_is_independent_of_insertion_order(parts, random):
    def provenance(order):
        memory = CloudMemory(VOXEL, 10_000)
        for part in order:
            memory.insert_points(*draw(*part))
        return dict(zip(map(tuple, keys_of(memory.points)), memory.provenance.tolist(), strict=True))

    shuffled = list(parts)
    random.shuffle(shuffled)
    assert provenance(parts) == provenance(shuffled)


@settings(max_examples=40, deadline=None)
@given(batches)
def test_imagined_points_never_change_observed_ones(parts):
    memory = CloudMemory(VOXEL, 10_000)
    memory.insert_points(*draw(1, 60, "observed"))
    before = {name: array.copy() for name, array in memory.state().items()}
    for seed, count, _ in parts:
        memory.insert_points(*draw(seed, count, "imagined"))
    after = memory.state()
    for name in ("points", "colours", "weight", "confidence", "stamp_ns", "spacing", "provenance"):
        np.testing.assert_array_equal(after[name][: len(before["keys"])], before[name])


def test_insert_places_a_wall_and_merges_repeated_views():
    memory = CloudMemory(0.02)
    first = memory.insert(wall())
    assert first.added > 1000
    assert first.flying == 0
    np.testing.assert_allclose(memory.points[:, 2], 2.0, atol=1e-5)
    points, colours = memory.points.copy(), memory.colours.copy()
    again = memory.insert(wall())
    assert again.added == 0
    np.testing.assert_allclose(memory.points, points, atol=1e-5)
    np.testing.assert_array_equal(memory.colours, colours)
    assert (memory.colours == 100).all()


def test_spacing_is_the_larger_of_voxel_and_pixel():
    pixel = 2.0 / CAMERA.fx
    fine, coarse = CloudMemory(0.001), CloudMemory(0.5)
    fine.insert(wall())
    coarse.insert(wall())
    assert np.median(fine.spacing) == pytest.approx(pixel, rel=0.2)
    assert (coarse.spacing == 0.5).all()


def test_weight_decreases_with_distance_and_viewing_angle():
    near, far, slanted = CloudMemory(0.001), CloudMemory(0.001), CloudMemory(0.001)
    near.insert(wall(1.0))
    far.insert(wall(4.0))
    middle = near.weight[np.abs(near.points[:, :2]).max(axis=1) < 0.1]
    middle_far = far.weight[np.abs(far.points[:, :2]).max(axis=1) < 0.4]
    assert np.median(middle) / np.median(middle_far) == pytest.approx(16, rel=0.02)
    # A plane turned by 60 degrees around the vertical: z = 1 + x tan 60, in rays 1/z = 1 - x' tan 60.
    depth = 1 / (1 - CAMERA.rays()[..., 0] * np.tan(np.radians(60)))
    slanted.insert(replace(wall(), depth=np.where((depth > 0.2) & (depth < 5), depth, 0).astype(np.float32)))
    centre = np.abs(slanted.points[:, :2]).max(axis=1) < 0.05
    assert np.median(slanted.weight[centre]) == pytest.approx(0.5, abs=0.03)


def test_insert_skips_flying_pixels():
    view = wall(3.0)
    depth = view.depth.copy()
    depth[12:36, 16:48] = 1.0
    depth[12:36, 15] = depth[12:36, 48] = 2.0  # what an interpolating sensor reports at the edge
    depth[5, 5] = 0.7  # a lone outlier
    memory = CloudMemory(0.01)
    report = memory.insert(replace(view, depth=depth))
    assert report.flying >= 49
    z = memory.points[:, 2]
    assert np.all((np.abs(z - 1) < 0.01) | (np.abs(z - 3) < 0.01))
    assert len(memory) > 2500


def test_insert_keeps_a_steep_floor():
    rays = CAMERA.rays()
    with np.errstate(divide="ignore"):
        depth = np.where(rays[..., 1] > 0.25, 1.2 / rays[..., 1], 0).astype(np.float32)
    report = CloudMemory(0.001).insert(replace(wall(), depth=depth))
    known = int((depth > 0).sum())
    assert known > 500
    assert report.flying <= 64  # the row below the unknown part has no neighbours above to fit a plane


def test_insert_rejects_invalid_input_and_leaves_the_memory_unchanged():
    memory = CloudMemory(VOXEL)
    memory.insert(wall())
    before = memory.state()
    depth = wall().depth
    bad = {
        "no depth": replace(wall(), depth=None),
        "float": replace(wall(), depth=depth.astype(np.uint16)),
        "negative": replace(wall(), depth=-depth),
        "origin": wall(pose=trajectory("forward", np.eye(4), 2, distance=1e6)[1]),
    }
    for word, view in bad.items():
        with pytest.raises(ValueError, match=word):
            memory.insert(view)
    with pytest.raises(ValueError, match="shape"):
        memory.insert_points(np.zeros((3, 2)), np.zeros((3, 3), np.uint8), True)
    with pytest.raises(ValueError, match="uint8"):
        memory.insert_points(np.zeros((3, 3)), np.zeros((3, 3)), True)
    with pytest.raises(ValueError, match="weight"):
        memory.insert_points(np.zeros((3, 3)), np.zeros((3, 3), np.uint8), True, weight=0.0)
    with pytest.raises(ValueError, match="origin"):
        memory.insert_points(np.full((3, 3), 1e9), np.zeros((3, 3), np.uint8), True)
    after = memory.state()
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -np.inf])
def test_insert_reports_a_view_without_usable_depth(value):
    memory = CloudMemory(VOXEL)
    report = memory.insert(wall(value))
    assert (report.inserted, report.unknown, len(memory)) == (0, 48 * 64, 0)
    assert "Nothing was inserted" in str(report)


def test_insert_skips_unknown_pixels_only():
    depth = wall().depth.copy()
    depth[:, :10], depth[:, 10:20], depth[:, 20:30] = np.nan, np.inf, 0
    memory = CloudMemory(0.001)
    report = memory.insert(replace(wall(), depth=depth))
    assert report.unknown == 48 * 30
    assert np.isfinite(memory.points).all()
    assert len(memory) > 48 * 30


def test_observation_replaces_imagined_points():
    memory = CloudMemory(VOXEL)
    memory.insert(imagined(wall(colour=10)))
    assert not memory.observed.any()
    report = memory.insert(wall(colour=200))
    assert report.promoted > 0
    assert memory.observed.all()
    assert (memory.colours == 200).all()
    assert memory.insert(imagined(wall(colour=10))).rejected == 48 * 64
    assert (memory.colours == 200).all()


def test_observation_carves_imagined_points_in_free_space():
    memory = CloudMemory(VOXEL)
    memory.insert(imagined(wall(1.0)))
    there = len(memory)
    report = memory.insert(wall(3.0))
    assert report.carved > 0.8 * there
    check(memory)
    kept = CloudMemory(VOXEL, carve=False)
    kept.insert(imagined(wall(1.0)))
    assert kept.insert(wall(3.0)).carved == 0
    # An observed surface in front is not carved.
    seen = CloudMemory(VOXEL)
    seen.insert(wall(1.0))
    assert seen.insert(wall(3.0)).carved == 0


def test_points_beyond_max_radius_expire():
    memory = CloudMemory(VOXEL, max_radius=3.0)
    poses = trajectory("forward", np.eye(4), 4, distance=9.0)
    for pose in poses:
        memory.insert(wall(pose=pose))
        check(memory)
        assert np.linalg.norm(memory.points - pose[:3, 3], axis=1).max() <= 3.0 + VOXEL
    assert memory.insert(wall(2.9, pose=poses[-1])).too_far > 0


def test_points_older_than_max_age_expire():
    memory = CloudMemory(VOXEL, max_age=1.0)
    memory.insert(wall(1.0, stamp_ns=10**9))
    memory.insert(wall(2.0, stamp_ns=int(1.9e9)))
    memory.insert(wall(3.0, stamp_ns=int(2.5e9)))
    assert set(memory.stamp_ns.tolist()) == {int(1.9e9), int(2.5e9)}
    assert memory.prune() == 0
    # A clock that restarts (a bag played again) must not remove the memory.
    before = len(memory)
    memory.insert(wall(4.0, stamp_ns=1000))
    assert len(memory) > before


def test_insert_sweeps_in_parts_and_prune_at_once(monkeypatch):
    monkeypatch.setattr(cloud, "SWEEP_POINTS", 300)
    memory = CloudMemory(VOXEL, max_age=1.0)
    memory.insert(wall(1.0, stamp_ns=10**9))
    memory.insert(wall(3.0, stamp_ns=10**9))
    old = len(memory)
    assert old > 1500
    poses = trajectory("right", np.eye(4), 3, distance=0.01)
    reports = [memory.insert(wall(2.0, pose=pose, stamp_ns=3 * 10**9)) for pose in poses[:2]]
    gone = [report.expired for report in reports]
    assert all(100 < number <= 300 for number in gone)
    check(memory)
    assert memory.prune() == old - sum(gone)
    assert set(memory.stamp_ns.tolist()) == {3 * 10**9}
    check(memory)


def test_accuracy_is_the_same_far_from_the_origin():
    offset = np.array([1000.0, -1000.0, 500.0])
    poses = trajectory("right", np.eye(4), 3, distance=0.3)
    near, far = CloudMemory(0.02), CloudMemory(0.02)
    for pose in poses:
        moved = pose.copy()
        moved[:3, 3] += offset
        near.insert(wall(pose=pose))
        far.insert(wall(pose=moved))
    check(far)
    assert len(far) == pytest.approx(len(near), rel=0.02)
    assert np.abs(far.points[:, 2] - offset[2] - 2).max() < 1e-3


def test_from_state_restores_a_memory_that_continues_identically():
    memory = CloudMemory(VOXEL, 900, max_radius=20.0, max_age=None)
    memory.insert(wall(stamp_ns=5))
    memory.insert(imagined(wall(1.5, pose=trajectory("left", np.eye(4), 2)[1])))
    twin = CloudMemory.from_state(memory.state())
    check(twin)
    assert (twin.max_points, twin.max_radius, twin.max_age) == (900, 20.0, None)
    for each in (memory, twin):
        each.insert(wall(4.0, stamp_ns=9))
        check(each)
    for name, array in memory.state().items():
        np.testing.assert_array_equal(twin.state()[name], array)


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("points", np.zeros((2, 3), np.float32), "points"),
        ("keys", None, "twice"),
        ("weight", None, "invalid"),
        ("max_points", np.array(3.0), "budget"),
        ("max_points", np.array(1e15), "max_points"),
        ("voxel_size", np.array([np.nan]), "NaN; a number"),
    ],
)
def test_from_state_rejects_invalid_states(name, value, word):
    memory = CloudMemory(VOXEL)
    memory.insert(wall())
    state = memory.state()
    if value is None:
        value = state[name].copy()
        value[1] = value[0] if name == "keys" else -1
    with pytest.raises(ValueError, match=word):
        CloudMemory.from_state({**state, name: value})
    del state[name]
    with pytest.raises(ValueError, match=name):
        CloudMemory.from_state(state)


def test_cloud_memory_rejects_settings_out_of_range():
    for bad in ({"voxel_size": 0}, {"voxel_size": np.nan}, {"max_points": 0}, {"max_points": 10**12}, {"max_age": -1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            CloudMemory(**bad)


def test_arrays_are_views_of_the_memory():
    memory = CloudMemory(VOXEL)
    memory.insert(wall())
    assert np.shares_memory(memory.points, memory.points)
    assert memory.points.flags.c_contiguous
    memory.clear()
    assert len(memory) == 0
    assert memory.insert(wall()).added > 0
