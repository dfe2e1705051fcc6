"""Depth from models, and its scale from what is known."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldstereo_ros.depth.alignment import DepthError, align_depth, align_to_known, complete_depth
from worldstereo_ros.depth.estimators import ASSUMED_FAR, ASSUMED_NEAR, HubDepth, SmallDepth, choose_depth, small_depth
from worldstereo_ros.evaluation import evaluate
from worldstereo_ros.evaluation.depth import depth_errors, errors_of, means
from worldstereo_ros.evaluation.depth_baselines import CONSTANT_M, ConstantDepth, GroundPlane, fit_ground, ground_depth
from worldstereo_ros.evaluation.world_sequences import world_sequence
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.inpainting import fill_depth
from worldstereo_ros.io.datasets import open_sequence
from worldstereo_ros.weights.bundled import bundled_folder
from worldstereo_ros.world import WorldModel

CAMERA = Camera.from_fov(70, 56, 1.0)


def _scene(rng: np.random.Generator, shape=(40, 60)) -> np.ndarray:
    """(H, W) metres: a floor that runs away and boxes before it."""
    depth = np.linspace(8.0, 1.0, shape[0])[:, None] * np.ones(shape)
    for _ in range(4):
        y, x = rng.integers(0, shape[0] - 10), rng.integers(0, shape[1] - 15)
        depth[y : y + 10, x : x + 15] = rng.uniform(0.8, 5.0)
    return depth.astype(np.float32)


# --- alignment -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    scale=st.floats(0.01, 100),
    shift=st.floats(-0.05, 0.5),
    outliers=st.floats(0, 0.3),
    seed=st.integers(0, 2**32 - 1),
)
def test_scale_and_shift_are_found_among_outliers(scale, shift, outliers, seed):
    rng = np.random.default_rng(seed)
    truth = _scene(rng)
    disparity = (1 / truth - shift) / scale
    reference = truth * rng.normal(1, 0.005, truth.shape).astype(np.float32)
    wrong = rng.random(truth.shape) < outliers
    reference[wrong] = rng.uniform(0.3, 12, int(wrong.sum()))
    reference[rng.random(truth.shape) < 0.5] = 0  # a sparse sensor
    found = align_depth(disparity, reference)
    assert found.scale == pytest.approx(scale, rel=0.02)
    assert found.shift == pytest.approx(shift, abs=0.01)
    np.testing.assert_allclose(found.depth, truth, rtol=0.03)
    assert found.inlier_fraction > 0.95 - outliers
    assert found.references == int((reference > 0).sum())


def test_depth_in_a_wrong_scale_is_brought_to_the_reference():
    truth = _scene(np.random.default_rng(1))
    found = align_depth(truth * 7.5, truth, kind="depth")
    assert found.scale == pytest.approx(7.5, rel=1e-4)
    assert found.shift == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(found.depth, truth, rtol=1e-4)


def test_a_flat_wall_tells_the_scale_alone():
    predicted = np.full((20, 30), 4.0, np.float32)
    found = align_depth(predicted, np.full((20, 30), 2.0, np.float32), kind="depth")
    assert (found.scale, found.shift) == (pytest.approx(2.0), 0.0)
    np.testing.assert_allclose(found.depth, 2.0)


def test_unknown_pixels_stay_unknown_and_the_far_side_of_infinity_too():
    truth = _scene(np.random.default_rng(2))
    predicted = truth.copy()
    predicted[:5] = 0
    predicted[5, 5] = np.nan
    depth = align_depth(predicted, truth, kind="depth").depth
    assert (depth[:5] == 0).all()
    assert depth[5, 5] == 0
    # A shift below zero puts the farthest disparities behind infinity: those pixels are unknown, not negative.
    disparity = 1 / truth + 0.2
    disparity[0, 0] = 0.1
    assert align_depth(disparity, truth).depth[0, 0] == 0


def test_equal_inputs_give_equal_results():
    rng = np.random.default_rng(3)
    truth = _scene(rng)
    noisy = truth * rng.normal(1, 0.05, truth.shape).astype(np.float32)
    a, b = align_depth(1 / truth, noisy), align_depth(1 / truth, noisy)
    assert (a.scale, a.shift) == (b.scale, b.shift)


def test_what_cannot_be_aligned_is_said():
    truth = _scene(np.random.default_rng(4))
    few = np.zeros_like(truth)
    few[:3, :10] = 1
    with pytest.raises(DepthError, match="Only 30 pixels have both"):
        align_depth(1 / truth, few)
    noise = np.random.default_rng(5).uniform(0.2, 40, truth.shape)
    with pytest.raises(DepthError, match=r"Only \d+% of 2400 references agree"):
        align_depth(1 / truth, noise, tolerance=0.02)
    with pytest.raises(DepthError, match="agree"):
        align_depth(truth, truth)  # depth given as disparity: near and far are turned around
    with pytest.raises(DepthError, match="equal is needed"):
        align_depth(truth, truth[1:])
    with pytest.raises(DepthError, match="kind 'inverse'"):
        align_depth(truth, truth, kind="inverse")


def test_what_memory_knows_corrects_an_estimate():
    truth = _scene(np.random.default_rng(6))
    known = truth.copy()
    known[:, 20:] = 0
    np.testing.assert_allclose(align_to_known(truth * 3, known), truth, rtol=1e-3)
    # Too little known, or none of it agreeing, leaves the estimate as it was.
    np.testing.assert_array_equal(align_to_known(truth * 3, np.zeros_like(truth)), truth * 3)


def test_real_depth_in_a_hidden_scale_is_recovered(shared_data):
    view = open_sequence(shared_data / "rgbd_hololens_office_a")[20]
    rng = np.random.default_rng(0)
    with np.errstate(divide="ignore"):
        relative = np.where(view.depth > 0, (1 / view.depth - 0.07) / 3.3, 0)
    relative *= rng.normal(1, 0.01, relative.shape)
    sparse = np.where(rng.random(view.depth.shape) < 0.01, view.depth, 0)
    wrong = (sparse > 0) & (rng.random(sparse.shape) < 0.2)
    sparse[wrong] = rng.uniform(0.5, 8, int(wrong.sum()))
    found = align_depth(np.where(view.depth > 0, relative, np.nan), sparse)
    known = view.depth > 0
    assert np.median(np.abs(found.depth[known] / view.depth[known] - 1)) < 0.02


# --- hub models ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Tiny random models in the published format: relative and metric Depth Anything, and GLPN."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    backbone = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=56,
        patch_size=14, out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False,
        apply_layernorm=True,
    )  # fmt: skip
    processor = transformers.DPTImageProcessor(size={"height": 56, "width": 56}, ensure_multiple_of=14)
    for kind in ("relative", "metric"):
        config = transformers.DepthAnythingConfig(
            backbone_config=backbone, reassemble_hidden_size=16, patch_size=14, neck_hidden_sizes=[8, 8, 16, 16],
            fusion_hidden_size=8, head_hidden_size=8, depth_estimation_type=kind, max_depth=20,
        )  # fmt: skip
        transformers.DepthAnythingForDepthEstimation(config).save_pretrained(folder / kind)
        processor.save_pretrained(folder / kind)
    return folder


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (CAMERA.height, CAMERA.width, 3), dtype=np.uint8)


def _raw(folder, picture):
    """What the network says, without the pipeline."""
    import torch
    import transformers
    from PIL import Image

    network = transformers.AutoModelForDepthEstimation.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    with torch.inference_mode():
        out = network(**processor(images=Image.fromarray(picture), return_tensors="pt")).predicted_depth
        out = torch.nn.functional.interpolate(out[None], size=picture.shape[:2], mode="bicubic", align_corners=False)
    return out[0, 0].numpy()


def test_a_metric_model_gives_metres(checkpoints, picture):
    model = HubDepth(checkpoints / "metric")
    assert model.output == "metric"
    depth = model(picture, CAMERA)
    assert depth.shape == picture.shape[:2]
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, _raw(checkpoints / "metric", picture), rtol=1e-3, atol=1e-3)


def test_a_relative_model_is_turned_from_disparity_to_depth(checkpoints, picture):
    model = HubDepth(str(checkpoints / "relative"), "cpu")
    assert model.output == "disparity"
    disparity, depth = model.predict(picture), model(picture, CAMERA)
    np.testing.assert_allclose(disparity, _raw(checkpoints / "relative", picture), rtol=1e-3, atol=1e-4)
    # The larger the disparity, the nearer; and the middle 96 % lie between the assumed ends.
    order = np.argsort(disparity.reshape(-1))
    assert (np.diff(depth.reshape(-1)[order]) <= 1e-6).all()
    assert np.quantile(depth, 0.5) > ASSUMED_NEAR
    assert depth.max() <= ASSUMED_FAR * 1.0001
    # Whatever was assumed, alignment to known depth undoes it.
    truth = 1 / (0.3 * (disparity - disparity.min()) / np.ptp(disparity) + 0.2)
    inside = (disparity > np.percentile(disparity, 2.1)) & (disparity < np.percentile(disparity, 97.9))
    aligned = align_depth(depth, np.where(inside, truth, 0), kind="depth").depth
    np.testing.assert_allclose(aligned[inside], truth[inside], rtol=1e-2)


def test_the_output_can_be_said_where_the_configuration_is_wrong(checkpoints, picture):
    assert HubDepth(checkpoints / "relative", output="metric").output == "metric"
    with pytest.raises(DepthError, match="'metric' or 'disparity' was expected"):
        HubDepth(checkpoints / "relative", output="feet")


def test_models_that_cannot_be_had_are_one_sentence(checkpoints, tmp_path, monkeypatch):
    with pytest.raises(DepthError, match=r"There is no folder .*nothing"):
        HubDepth(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DepthError, match=r"cannot be loaded: .*safetensors"):
        HubDepth(tmp_path / "empty")
    with pytest.raises(DepthError, match=r"'nobody/no-such-depth-model' cannot be loaded: .*hf download"):
        HubDepth("nobody/no-such-depth-model", local_files_only=True)


def test_pickled_and_damaged_weights_are_refused(checkpoints, tmp_path):

    import torch

    pickled = tmp_path / "pickled"
    shutil.copytree(checkpoints / "metric", pickled)
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(DepthError, match="cannot be loaded"):
        HubDepth(pickled)
    damaged = tmp_path / "damaged"
    shutil.copytree(checkpoints / "metric", damaged)
    weights = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(DepthError, match="cannot be loaded"):
        HubDepth(damaged)


def test_a_model_that_estimates_no_depth_is_refused(checkpoints, tmp_path):

    other = tmp_path / "other"
    shutil.copytree(checkpoints / "metric", other)
    config = json.loads((other / "config.json").read_text())
    config["model_type"] = "bert"
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(DepthError, match="cannot be loaded"):
        HubDepth(other)


def test_values_that_are_no_depth_are_refused(checkpoints, picture, monkeypatch):
    model = HubDepth(checkpoints / "metric")
    monkeypatch.setattr(model, "predict", lambda image: np.full(image.shape[:2], -1.0, np.float32))
    with pytest.raises(DepthError, match="no depth that can be used"):
        model(picture, CAMERA)
    relative = HubDepth(checkpoints / "relative")
    monkeypatch.setattr(relative, "predict", lambda image: np.ones(image.shape[:2], np.float32))
    with pytest.raises(DepthError, match="one distance everywhere"):
        relative(picture, CAMERA)


def test_a_model_that_says_nan_is_refused(checkpoints, picture, monkeypatch):
    import torch

    model = HubDepth(checkpoints / "metric")
    with torch.no_grad():
        for parameter in model._pipeline.model.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(DepthError, match="not finite"):
        model(picture, CAMERA)


# --- the network that ships, and who is asked ----------------------------------------------------------------------


@pytest.fixture
def own_network(tmp_path):
    """A folder with a copy of the network that ships, to damage."""
    folder = tmp_path / "network"
    shutil.copytree(bundled_folder("small") / "base" / "depth", folder)
    return folder


def test_the_shipped_network_gives_metres_to_any_picture(picture):
    estimator = choose_depth()
    assert isinstance(estimator, SmallDepth)
    depth = estimator(picture, CAMERA)
    assert depth.shape == picture.shape[:2]
    assert depth.dtype == np.float32
    assert 0.2 < np.median(depth) < 20
    twice = Camera(CAMERA.width, CAMERA.height, 2 * CAMERA.fx, 2 * CAMERA.fy, CAMERA.cx, CAMERA.cy)
    np.testing.assert_allclose(estimator(picture, twice), 2 * depth, rtol=1e-4)


def test_one_function_chooses_who_gives_depth(checkpoints, own_network, monkeypatch, tmp_path):
    assert choose_depth("none") is None
    assert choose_depth("small").folder == bundled_folder("small") / "base" / "depth"
    assert choose_depth(str(own_network)).folder == own_network
    assert isinstance(choose_depth(str(checkpoints / "metric")), HubDepth)
    with pytest.raises(DepthError, match="no folder"):
        choose_depth(str(tmp_path / "nothing"))
    assert small_depth(tmp_path) is None

    # An installation without the network: named, it is missed at once; else with the first picture, not before.
    monkeypatch.setattr("worldstereo_ros.depth.estimators.shipped_folder", lambda name: tmp_path / "lacking")
    with pytest.raises(DepthError, match=r"no depth network in .*lacking.*depth_model"):
        choose_depth("small")
    waiting = choose_depth("")
    with pytest.raises(DepthError, match="no depth network"):
        waiting(np.zeros((CAMERA.height, CAMERA.width, 3), np.uint8), CAMERA)


def test_a_damaged_network_is_refused_with_a_sentence(own_network):
    weights = own_network / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(DepthError, match="cannot be loaded"):
        choose_depth(str(own_network))


def test_a_picture_of_nothing_but_sky_has_no_depth(own_network, picture, monkeypatch):
    from worldstereo_ros.models.depth_network import DepthNetwork, MonocularDepth

    empty = np.zeros(picture.shape[:2], np.float32)
    monkeypatch.setattr(DepthNetwork, "predict", lambda *_: MonocularDepth(empty, empty))
    with pytest.raises(DepthError, match="nothing but sky"):
        choose_depth(str(own_network))(picture, CAMERA)


def test_a_seed_without_depth_is_remembered_and_one_that_may_not_be_guessed_is_refused(picture):
    from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline

    view = View(picture, CAMERA, np.eye(4))
    world = WorldModel(GeometricPipeline(), depth_estimator=choose_depth("small"))
    world.observe(view)
    assert len(world.cloud) > 100
    with pytest.raises(ValueError, match="no depth estimator"):
        WorldModel(GeometricPipeline(), depth_estimator=choose_depth("none")).observe(view)


# --- what was imagined -----------------------------------------------------------------------------------------------


def test_what_memory_lacks_goes_on_in_the_shape_that_is_seen():
    rng = np.random.default_rng(2)
    truth = _scene(rng, (60, 80))
    known = truth.copy()
    known[:, 50:] = 0
    out = complete_depth(known, truth * 1.7)
    np.testing.assert_array_equal(out[:, :50], truth[:, :50])
    np.testing.assert_allclose(out[:, 50:], truth[:, 50:], rtol=1e-3)
    smooth = np.abs(fill_depth(known)[:, 50:] / truth[:, 50:] - 1).mean()
    assert np.abs(out[:, 50:] / truth[:, 50:] - 1).mean() < 0.1 * smooth

    # A scale that drifts over the picture leaves no step at the border of what is known.
    drift = np.exp(np.linspace(-0.5, 0.5, 80))[None, :]
    flat = np.full((60, 80), 3.0, np.float32)
    known = np.where(np.arange(80)[None, :] < 50, flat, 0)
    out = complete_depth(known, (flat * drift).astype(np.float32))
    assert np.abs(np.log(out[:, 50] / 3)).max() < 0.08


def test_depth_that_cannot_be_completed_is_filled_smoothly():
    known = np.zeros((40, 50), np.float32)
    known[:10, :10] = 2.0  # too little to compare with
    estimate = np.full((40, 50), 5.0, np.float32)
    np.testing.assert_array_equal(complete_depth(known, estimate), fill_depth(known))
    known[:20] = 2.0
    sky = estimate.copy()
    sky[:, 25:] = 0
    out = complete_depth(known, sky)
    np.testing.assert_allclose(out[:, 25:], fill_depth(known)[:, 25:])
    np.testing.assert_allclose(out[:, :20], 2.0, rtol=0.02)
    with pytest.raises(DepthError, match="equal is needed"):
        complete_depth(known, estimate[:-1])


# --- how far it is off -----------------------------------------------------------------------------------------------


def test_errors_with_and_without_alignment():
    truth = _scene(np.random.default_rng(5))
    abs_rel, delta, aligned, aligned_delta, scale = errors_of(truth * 2, truth)
    assert (abs_rel, delta) == (pytest.approx(1.0), 0.0)
    assert (aligned, aligned_delta) == (pytest.approx(0, abs=1e-6), 1.0)
    assert scale == pytest.approx(0.5)
    assert errors_of(truth, np.zeros_like(truth)) is None


def test_baselines_are_what_they_say():
    camera = Camera.from_fov(64, 48, 1.1)
    image = np.zeros((48, 64, 3), np.uint8)
    assert (ConstantDepth()(image, camera) == np.float32(CONSTANT_M)).all()
    rows = ground_depth(camera, 1.0, 4.0)
    below = (np.arange(48) - camera.cy) / camera.fy
    floor = below > 1 / 4.0
    np.testing.assert_allclose(rows[floor], 1 / below[floor], rtol=1e-5)
    np.testing.assert_allclose(rows[~floor & (below < 1 / 8)], 4.0)
    assert GroundPlane()(image, camera).shape == (48, 64)
    scene = np.broadcast_to(rows[:, None], (48, 64)).copy()
    height, wall, middle = fit_ground([(scene, camera)])
    assert height == pytest.approx(1.0, rel=0.15)
    assert wall == pytest.approx(4.0, rel=0.15)
    assert middle == pytest.approx(np.median(scene), rel=0.1)


def test_a_sequence_is_measured_beside_the_baselines():
    sequence = world_sequence("validation", 0, views=3, camera=Camera.from_fov(64, 48, 1.2))
    shown = []
    truths = {view.image.tobytes(): view.depth for view in sequence}
    rows = depth_errors([sequence], {"truth": lambda image, camera: truths[image.tobytes()] * 1.2}, shown=shown)
    found = {row.estimator: row for row in rows}
    assert found["truth"].abs_rel == pytest.approx(0.2, rel=1e-3)
    assert found["truth"].aligned_abs_rel == pytest.approx(0, abs=1e-4)
    assert found["truth"].scale == pytest.approx(1 / 1.2, rel=1e-3)
    assert found["truth"].frames == found["constant"].frames == 3
    assert found["constant"].abs_rel > 0.05
    assert len(shown) == 1
    assert means(rows) == []


def test_protocol_mono_has_figures_without_any_download():
    sequence = world_sequence("validation", 0, views=3, camera=Camera.from_fov(64, 48, 1.2))
    rows = {row.pipeline: row for row in evaluate([sequence], "mono", ["geometric"])}
    assert rows["geometric"].frames == 2
    assert 0 < rows["geometric"].abs_rel < 2
    assert rows["geometric"].psnr > 8
