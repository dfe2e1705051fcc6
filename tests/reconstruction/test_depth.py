import numpy as np
import pytest
import torch
from helpers.photo_scene import arc, render
from scipy.spatial.transform import Rotation

from worldstereo_ros.geometry.similarity import Similarity
from worldstereo_ros.reconstruction.features import RegistrationError
from worldstereo_ros.reconstruction.geometry_models import (
    NetworkGeometry,
    align_geometry,
    estimate_geometry,
    load_geometry_model,
    network_size,
    parse_geometry,
)
from worldstereo_ros.reconstruction.neighbours import find_neighbours, pair_scores
from worldstereo_ros.reconstruction.plane_sweep import (
    SweepSettings,
    SweepView,
    cross_check,
    drop_small_regions,
    plane_inverse_depths,
    sweep,
    warp_matrices,
)
from worldstereo_ros.reconstruction.sgbm import match_pair, match_pairs
from worldstereo_ros.reconstruction.sweep_numba import LEVELS
from worldstereo_ros.reconstruction.sweep_torch import sweep_planes
from worldstereo_ros.utils.errors import InputError

VIEWS = [render(pose) for pose in arc(5, step_deg=7)]
SWEPT = [SweepView.of(view) for view in VIEWS]
NEAR, FAR = 1.5, 7.0
SETTINGS = SweepSettings(planes=64)


@pytest.fixture(scope="module")
def depths():
    found = []
    for row in range(5):
        others = [SWEPT[k] for k in range(5) if k != row and abs(k - row) <= 2]
        found.append(sweep(SWEPT[row], others, NEAR, FAR, SETTINGS)[0])
    return found


def _errors(depth, view):
    known = (depth > 0) & (view.depth > 0)
    return np.abs(depth[known] / view.depth[known] - 1)


def test_confirmed_depth_is_true_and_covers_most_of_the_photograph(depths):
    others = [(depths[k], SWEPT[k]) for k in (0, 1, 3, 4)]
    confirmed, count = cross_check(depths[2], SWEPT[2], others)
    errors = _errors(confirmed, VIEWS[2])
    assert (confirmed > 0).mean() > 0.75
    assert (errors < 0.02).mean() > 0.97
    assert np.median(errors) < 0.004
    assert (count[confirmed > 0] >= 2).all()
    assert (count[confirmed == 0] == 0).all()


def test_depth_that_no_other_view_confirms_is_thrown_away(depths):
    wrong = np.where(VIEWS[2].depth > 0, VIEWS[2].depth * 1.2, 0).astype(np.float32)
    others = [(depths[k], SWEPT[k]) for k in (0, 1, 3, 4)]
    confirmed, _ = cross_check(wrong, SWEPT[2], others)
    assert (confirmed > 0).mean() < 0.05
    one, _ = cross_check(VIEWS[2].depth, SWEPT[2], others[:1], needed=2)
    assert not one.any()


def test_depth_that_no_surface_around_it_supports_is_thrown_away():
    slanted = np.zeros((100, 200), np.float32)
    slanted[:, :40] = 1.0
    slanted[:, 60:] = 20 * 1.01 ** np.arange(140, dtype=np.float32)  # 1 % a pixel
    noisy = slanted.copy()
    noisy[20:26, 100:106] *= 1.2
    noisy[50, 10] = 7.0
    speckles = noisy != slanted
    kept = drop_small_regions(noisy, 40)
    np.testing.assert_array_equal(kept, np.where(speckles, 0, slanted))
    np.testing.assert_array_equal(drop_small_regions(noisy, 36)[20:26, 100:106], noisy[20:26, 100:106])
    assert not drop_small_regions(noisy, 40 * 100 + 1)[:, :40].any()
    nothing = np.zeros((4, 5), np.float32)
    np.testing.assert_array_equal(drop_small_regions(nothing, 3), nothing)


def test_torch_and_numba_give_the_same_depth():
    view, *others = (SweepView.of(VIEWS[k].resized(80, 60)) for k in (2, 1, 3))
    expected, scores = sweep(view, others, NEAR, FAR, SweepSettings(planes=24))
    reference = np.rint(view.grey * LEVELS).astype(np.int32)
    images = np.stack([other.grey for other in others])
    sizes = np.array([image.shape for image in images])
    inverse = plane_inverse_depths(NEAR, FAR, 24)
    settings = SweepSettings(planes=24)
    found, found_scores = sweep_planes(
        reference, images, sizes, *warp_matrices(view, others), inverse, settings, torch.device("cpu")
    )
    assert ((expected > 0) == (found > 0)).mean() > 0.995
    both = (expected > 0) & (found > 0)
    assert (np.abs(found[both] / expected[both] - 1) < 1e-3).mean() > 0.99
    assert (np.abs(found_scores - scores) < 1e-3).mean() > 0.99


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_and_the_cpu_give_the_same_depth():
    expected = sweep(SWEPT[2], [SWEPT[1], SWEPT[3]], NEAR, FAR, SETTINGS)[0]
    found = sweep(SWEPT[2], [SWEPT[1], SWEPT[3]], NEAR, FAR, SETTINGS, "cuda")[0]
    both = (expected > 0) & (found > 0)
    assert ((expected > 0) == (found > 0)).mean() > 0.99
    assert (np.abs(found[both] / expected[both] - 1) < 2e-3).mean() > 0.98


def test_the_number_of_threads_changes_nothing(monkeypatch):
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(sweep(SWEPT[2], [SWEPT[1], SWEPT[3]], NEAR, FAR, SweepSettings(planes=16)))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_neighbours_of_another_size_work():
    small = SweepView.of(VIEWS[3].resized(200, 150))
    depth = sweep(SWEPT[2], [SWEPT[1], small], NEAR, FAR, SETTINGS)[0]
    assert (_errors(depth, VIEWS[2]) < 0.03).mean() > 0.85


def test_a_sweep_without_neighbours_or_range_is_an_error():
    with pytest.raises(InputError, match="no neighbour"):
        sweep(SWEPT[0], [], NEAR, FAR)
    for near, far in ((0.0, 2.0), (3.0, 2.0), (1.0, np.inf)):
        with pytest.raises(InputError, match="near < far"):
            sweep(SWEPT[0], [SWEPT[1]], near, far)


def test_a_view_without_texture_gets_no_depth():
    flat = SweepView(np.full_like(SWEPT[0].grey, 90), SWEPT[0].camera, SWEPT[0].world_from_camera)
    assert not sweep(flat, [SWEPT[1]], NEAR, FAR, SETTINGS)[0].any()


def test_sgbm_gives_true_depth_where_it_gives_any():
    depth = match_pairs(SWEPT[2], [SWEPT[1], SWEPT[3]], NEAR, FAR)
    assert (depth > 0).mean() > 0.4
    assert (_errors(depth, VIEWS[2]) < 0.03).mean() > 0.9


def test_sgbm_takes_pairs_one_above_the_other():
    lower = VIEWS[2].world_from_camera.copy()
    lower[:3, 3] += 0.25 * lower[:3, 1]
    depth = match_pair(SWEPT[2], SweepView.of(render(lower)), NEAR, FAR)
    assert (depth > 0).mean() > 0.25
    assert (_errors(depth, VIEWS[2]) < 0.03).mean() > 0.9
    assert not match_pair(SWEPT[2], SWEPT[2], NEAR, FAR).any()  # no baseline


# --- neighbours ------------------------------------------------------------------------------------------------------


def test_neighbours_are_those_of_a_good_angle_on_both_sides():
    from worldstereo_ros.reconstruction.mapping import known_calibration
    from worldstereo_ros.reconstruction.sparse_model import SparseModel

    poses = arc(9, step_deg=2)
    random = np.random.default_rng(0)
    points = np.column_stack([random.uniform(-0.5, 0.5, (200, 2)), np.full(200, 3.0)])
    count = len(poses)
    model = SparseModel(
        np.arange(count), (known_calibration(VIEWS[0].camera),) * count, poses, points,
        np.zeros((200, 3), np.uint8), np.zeros(200),
        np.repeat(np.arange(count), 200), np.tile(np.arange(200), count), np.zeros((200 * count, 2)),
    )  # fmt: skip
    scores = pair_scores(model)
    np.testing.assert_allclose(scores, scores.T)
    assert scores[0].argmax() in (3, 4, 5)  # 8 degrees apart
    middle = find_neighbours(model, 4)[4]
    assert min(middle.rows) < 4 < max(middle.rows)
    depths = model.depths_of(4)
    assert middle.near < depths.min() < depths.max() < middle.far


# --- networks --------------------------------------------------------------------------------------------------------


def _as_network(similarity: Similarity) -> NetworkGeometry:
    """What a perfect network would give, in a frame and a unit of its own."""
    back = similarity.inverse()
    poses = back.poses(np.stack([view.world_from_camera for view in VIEWS]))
    depth = np.stack([view.depth for view in VIEWS]) * np.float32(back.scale)
    return NetworkGeometry(depth, np.ones_like(depth), poses)


@pytest.mark.parametrize("scale", [0.05, 1.0, 40.0])
def test_a_networks_depth_is_brought_to_the_unit_of_the_poses(scale):
    similarity = Similarity(scale, Rotation.random(random_state=3).as_matrix(), np.array([3.0, -7.0, 20.0]))
    poses = np.stack([view.world_from_camera for view in VIEWS])
    depth, errors = align_geometry(_as_network(similarity), poses)
    assert errors.similarity.scale == pytest.approx(scale, rel=1e-6)
    assert (depth > 0).mean() > 0.8  # edges are left out
    for layer, view in zip(depth, VIEWS, strict=True):
        assert _errors(layer, view).max() < 1e-4
    resized = estimate_geometry(lambda images: _resized(similarity, images), [v.image for v in VIEWS], poses)
    assert (_errors(resized[0], VIEWS[0]) < 0.02).mean() > 0.95


def _resized(similarity, images):
    import cv2

    network = _as_network(similarity)
    size = images.shape[2], images.shape[1]
    depth = np.stack([cv2.resize(d, size, interpolation=cv2.INTER_NEAREST_EXACT) for d in network.depth])
    return NetworkGeometry(depth, np.ones_like(depth), network.world_from_camera)


def test_a_network_that_contradicts_the_poses_is_refused():
    poses = np.stack([view.world_from_camera for view in VIEWS])
    network = _as_network(Similarity.identity())
    network.world_from_camera[:, :3, 3] = np.random.default_rng(0).normal(size=(5, 3))
    with pytest.raises(InputError, match="differ from those of the photographs"):
        align_geometry(network, poses)


def test_a_network_needs_its_package_its_weights_and_a_gpu(tmp_path):
    weights = tmp_path / "weights.safetensors"
    with pytest.raises(InputError, match="do not exist"):
        parse_geometry(f"pi3:{weights}")
    with pytest.raises(InputError, match="pi3:PATH"):
        parse_geometry("other:weights")
    weights.write_bytes(b"x")
    assert parse_geometry(f"vggt:{weights}") == ("vggt", weights)
    with pytest.raises(RegistrationError, match="CUDA GPU"):
        load_geometry_model("pi3", weights, "cpu")


def test_networks_get_multiples_of_their_patch():
    for size in ((1920, 1080), (540, 960), (100, 50)):
        width, height = network_size(*size)
        assert width % 14 == height % 14 == 0
        assert width * height <= 255_000
    assert network_size(1920, 1080) == (672, 378)
