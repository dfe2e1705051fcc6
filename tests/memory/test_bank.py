"""The view bank: retrieval against golden numbers, eviction, and saved states."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.memory.bank import ViewBank, image_feature

CAMERA = Camera.from_fov(40, 30, 1.2)


def view(pose=None, *, seed=0, observed=None, depth=None, stamp_ns=0):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    image = np.kron(blocks, np.ones((10, 10, 1), np.uint8))
    return View(image, CAMERA, np.eye(4) if pose is None else pose, depth, observed, stamp_ns)


def imagined(of):
    return replace(of, observed=np.zeros(of.image.shape[:2], bool))


def turned(degrees, position=(0, 0, 0)):
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("y", degrees, degrees=True).as_matrix()
    pose[:3, 3] = position
    return pose


@pytest.mark.parametrize("name", ["view0_traj0", "view1_traj2"])
def test_retrieve_matches_golden_numbers(shared_golden, name):
    from safetensors.numpy import load_file

    golden = load_file(shared_golden / "geometry.safetensors")
    width, height = (int(n) for n in golden["ret.size_wh"])
    bank = ViewBank()
    for K, w2c in zip(golden["ret.bank_K"], golden["ret.bank_w2c"], strict=True):
        # Stored at a quarter of the size: retrieval must scale the intrinsics to the target's size.
        camera = Camera.from_matrix(K, width, height).resized(width // 4, height // 4)
        image = np.zeros((height // 4, width // 4, 3), np.uint8)
        bank.add(View(image, camera, invert_pose(w2c.astype(np.float64))))
    camera = Camera.from_matrix(golden[f"ret.{name}.K"][0], width, height)
    found = bank.retrieve(camera, invert_pose(golden[f"ret.{name}.w2c"].astype(np.float64)))
    np.testing.assert_array_equal(found.index, golden[f"ret.{name}.best"])
    np.testing.assert_allclose(found.score, golden[f"ret.{name}.score"], atol=1e-5)
    # Near zero the arc cosine of float32 poses is accurate to the square root of their precision only.
    np.testing.assert_allclose(found.angle, golden[f"ret.{name}.angle_deg"], atol=0.03)
    assert found.distinct == sorted(set(found.index.tolist()))


def test_retrieve_finds_the_view_itself():
    bank = ViewBank()
    poses = np.stack([turned(angle) for angle in range(0, 360, 60)])
    for k, pose in enumerate(poses):
        assert bank.add(view(pose, seed=k)) == k
    found = bank.retrieve(CAMERA, poses[[4, 1, 1]])
    assert found.index.tolist() == [4, 1, 1]
    np.testing.assert_allclose(found.score, 1.0, atol=1e-9)
    np.testing.assert_allclose(found.angle, 0.0, atol=1e-4)
    assert found.distinct == [1, 4]


def test_retrieve_without_overlap_returns_minus_one():
    bank = ViewBank()
    assert bank.retrieve(CAMERA, np.eye(4)[None]).index.tolist() == [-1]
    bank.add(view(turned(0, (1000, 0, 0))))
    found = bank.retrieve(CAMERA, np.stack([np.eye(4), turned(0, (1000, 0, 1))]))
    assert found.index.tolist() == [-1, 0]
    assert found.score[0] == 0
    assert found.angle[0] == 180
    assert found.distinct == [0]


def test_retrieve_selects_at_most_limit_views_and_the_best_of_them_per_pose():
    bank = ViewBank()
    poses = np.stack([turned(angle, (0.02 * angle, 0, 0)) for angle in range(0, 360, 20)])
    for k, pose in enumerate(poses):
        bank.add(view(pose, seed=k))
    free = bank.retrieve(CAMERA, poses, limit=100)
    assert len(free.distinct) == len(poses)
    found = bank.retrieve(CAMERA, poses, limit=6)
    assert len(found.distinct) == 6
    scores, _ = bank.scores(CAMERA, poses)
    np.testing.assert_array_equal(found.index, np.array(found.distinct)[scores[:, found.distinct].argmax(axis=1)])
    # Spread around the circle, not six neighbours: no gap of more than five of the 18 views.
    gaps = np.diff([*found.distinct, found.distinct[0] + len(poses)])
    assert gaps.max() <= 6


def test_retrieve_prefers_different_appearance_and_high_scores():
    # Two groups of poses; all views of the first have the same image.
    similar = [view(turned(a), seed=0) for a in (0, 4, 8)]
    different = [view(turned(a), seed=a) for a in (12, 16)]
    bank = ViewBank()
    for each in similar + different:
        bank.add(each)
    poses = np.stack([v.world_from_camera for v in similar + different])
    assert len(set(bank.retrieve(CAMERA, poses, limit=3).distinct) & {0, 1, 2}) == 1
    # A view that is the best of ten poses is selected first.
    repeated = np.concatenate([poses, np.repeat(poses[1:2], 10, axis=0)])
    assert 1 in bank.retrieve(CAMERA, repeated, limit=1).distinct


def test_image_feature_distinguishes_images_and_can_be_replaced():
    a, b = view(seed=1).image, view(seed=2).image
    noisy = (a.astype(int) + np.random.default_rng(0).integers(-8, 9, a.shape)).clip(0, 255).astype(np.uint8)
    feature = image_feature(a)
    assert feature.shape == (320,)
    assert np.linalg.norm(feature) == pytest.approx(1, abs=1e-5)
    assert feature @ image_feature(noisy) > 0.9 > 0.7 > feature @ image_feature(b)
    assert np.isfinite(image_feature(np.zeros((5, 7, 3), np.uint8))).all()
    calls = []
    bank = ViewBank(feature=lambda image: calls.append(image.shape) or image.mean(axis=(0, 1)))
    bank.add(view())
    assert calls == [(30, 40, 3)]
    bank.feature = lambda image: np.array([np.nan])
    with pytest.raises(ValueError, match="feature"):
        bank.add(view())
    assert len(bank) == 1


def test_add_evicts_the_most_redundant_view():
    bank = ViewBank(3)
    for angle, seed in ((0, 0), (90, 1), (1, 0)):
        bank.add(view(turned(angle), seed=seed, stamp_ns=angle))
    bank.add(view(turned(180), seed=3, stamp_ns=180))
    assert [v.stamp_ns for v in bank.views] == [90, 1, 180]


def test_add_evicts_imagined_views_before_observed_ones():
    bank = ViewBank(3)
    bank.add(view(turned(0), seed=0, stamp_ns=1))
    bank.add(imagined(view(turned(90), seed=1, stamp_ns=2)))
    bank.add(view(turned(0), seed=0, stamp_ns=3))
    bank.add(view(turned(0), seed=0, stamp_ns=4))
    assert [v.stamp_ns for v in bank.views] == [1, 3, 4]
    assert bank.add(imagined(view(turned(90), seed=5))) == -1
    assert [v.stamp_ns for v in bank.views] == [1, 3, 4]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 11)), min_size=1, max_size=25), st.integers(1, 5))
def test_bank_is_bounded_and_keeps_the_newest_observation(steps, bound):
    bank = ViewBank(bound, feature=lambda image: image.mean(axis=(0, 1)))
    newest = None
    for stamp, (seen, place) in enumerate(steps):
        each = view(turned(30 * place), seed=place, stamp_ns=stamp)
        observed_before = sum(v.observed is None for v in bank.views)
        bank.add(each if seen else imagined(each))
        newest = stamp if seen else newest
        stamps = [v.stamp_ns for v in bank.views]
        assert len(bank) <= bound
        assert stamps == sorted(stamps)
        assert newest is None or newest in stamps
        if not seen:
            assert sum(v.observed is None for v in bank.views) == observed_before


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 4)), min_size=1, max_size=15), st.integers(1, 40_000))
def test_bank_is_bounded_in_bytes(steps, bound):
    bank = ViewBank(10, max_bytes=bound, feature=lambda image: image.mean(axis=(0, 1)))
    newest = None
    for stamp, (seen, scale) in enumerate(steps):
        image = np.full((8 * scale, 8 * scale, 3), 17 * stamp, np.uint8)
        depth = np.ones(image.shape[:2], np.float32)
        each = View(image, Camera.from_fov(8 * scale, 8 * scale, 1.0), turned(30 * stamp), depth, stamp_ns=stamp)
        bank.add(each if seen else imagined(each))
        newest = stamp if seen else newest
        assert bank.nbytes <= bound or len(bank) == 1
        assert newest is None or newest in [v.stamp_ns for v in bank.views]


def test_views_keep_no_larger_buffer_alive():
    """A cropped image would keep the whole one, and count as the part only."""
    large = np.zeros((60, 40, 3), np.uint8)
    message = np.frombuffer(bytearray(2 * 30 * 40 * 4), np.float32).reshape(2, 30, 40)
    bank = ViewBank()
    bank.add(View(large[:30], CAMERA, np.eye(4), depth=message[0] + 1))
    bank.add(View(large[:30], CAMERA, np.eye(4), depth=message[1]))
    for stored in bank.views:
        assert stored.image.base is None
        assert not np.shares_memory(stored.depth, message)
    assert bank.nbytes == 2 * 30 * 40 * (3 + 4)
    whole = View(np.zeros((30, 40, 3), np.uint8), CAMERA, np.eye(4))
    bank.add(whole)
    assert bank.views[-1] is whole


def test_limit_in_bytes_is_said_once(caplog):
    caplog.set_level("INFO")
    bank = ViewBank(4, max_bytes=3 * 30 * 40 * 3)
    for index in range(6):
        bank.add(view(turned(30 * index), seed=index, stamp_ns=index))
        assert bool(caplog.messages) == (index > 2)
    assert len(caplog.messages) == 1
    assert "with 3 of at most 4 views" in caplog.text
    caplog.clear()
    full = ViewBank(2)
    for index in range(6):
        full.add(view(turned(30 * index), seed=index, stamp_ns=index))
    assert not caplog.messages


def test_bank_rejects_a_limit_without_bytes():
    with pytest.raises(ValueError, match="max_bytes"):
        ViewBank(max_bytes=0)


def test_from_state_with_the_limits_of_another_bank():
    bank = ViewBank(4096)
    for angle in (0, 90, 1, 180):
        bank.add(view(turned(angle), seed=angle, stamp_ns=angle))
    twin = ViewBank.from_state(bank.state(), like=ViewBank(2, max_bytes=10**6))
    assert (twin.max_views, twin.max_bytes, len(twin)) == (2, 10**6, 2)
    one = ViewBank.from_state(bank.state(), like=ViewBank(64, max_bytes=30 * 40 * 3))
    assert [v.stamp_ns for v in one.views] == [180]
    assert len(ViewBank.from_state(bank.state())) == 4


def test_from_state_restores_all_views():
    bank = ViewBank(5)
    depth = np.full((30, 40), 2.0, np.float32)
    bank.add(view(turned(10), seed=1, depth=depth, stamp_ns=2**62))
    bank.add(imagined(view(turned(20), seed=2)))
    made = view(turned(30), seed=3)
    bank.add(ImaginedView(**vars(made), conditioning=made.image, covered=depth > 0, index=1, count=2))
    twin = ViewBank.from_state({name: array.copy() for name, array in bank.state().items()})
    assert twin.max_views == 5
    for a, b in itertools.zip_longest(bank.views, twin.views):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.world_from_camera, b.world_from_camera)
        assert (a.camera, a.stamp_ns) == (b.camera, b.stamp_ns)
        assert (a.depth is None) == (b.depth is None)
        np.testing.assert_array_equal(a.observed_mask, b.observed_mask)
    path = trajectory("turn", np.eye(4), 5)
    np.testing.assert_array_equal(bank.retrieve(CAMERA, path).index, twin.retrieve(CAMERA, path).index)


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("max_views", np.array(10**9), "max_views"),
        ("count", np.array(7), "7 views"),
        ("count", np.array([1.0]), "count"),
        ("0.image", np.zeros((3, 3), np.uint8), "image"),
        ("0.camera", np.zeros(4), "camera"),
        ("0.camera", np.full(6, np.nan), "camera"),
        ("0.world_from_camera", np.zeros((4, 4)), "rotation"),
        ("0.world_from_camera", np.zeros(3), "shape"),
        ("0.depth", np.zeros((30, 40), np.int32), "depth"),
        ("0.observed", np.zeros((30, 40), np.uint8), "mask"),
    ],
)
def test_from_state_rejects_invalid_states(name, value, word):
    bank = ViewBank(5)
    bank.add(view(depth=np.ones((30, 40), np.float32)))
    with pytest.raises(ValueError, match=word):
        ViewBank.from_state({**bank.state(), name: value})
    state = bank.state()
    del state["0.image"]
    with pytest.raises(ValueError, match="lacks"):
        ViewBank.from_state(state)


def test_retrieve_rejects_invalid_arguments():
    bank = ViewBank()
    bank.add(view())
    with pytest.raises(ValueError, match="limit"):
        bank.retrieve(CAMERA, np.eye(4)[None], limit=0)
    with pytest.raises(ValueError, match="path"):
        bank.retrieve(CAMERA, np.zeros((0, 4, 4)))
    with pytest.raises(ValueError, match="max_views"):
        ViewBank(0)
