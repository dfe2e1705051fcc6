"""Per-pixel confidence: properties that hold for any fitted weights, and its way through memory and files."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import worldstereo_ros
from worldstereo_ros.evaluation import calibration
from worldstereo_ros.evaluation.calibration import Calibration
from worldstereo_ros.evaluation.demo_scenarios import scene_scenario
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.memory.archive import write_archive
from worldstereo_ros.memory.bank import ViewBank
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.pipelines.base import Conditioning, ModelError, PipelineFrame
from worldstereo_ros.pipelines.confidence import (
    CLASSES,
    COLOUR_TOLERANCE,
    FEATURES,
    MAX_SIZE_PX,
    Scale,
    StatisticsCache,
    compute_features,
    load_confidence,
)
from worldstereo_ros.rendering.splatting import Rendering
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.visualization.viewer.loading import load_viewable
from worldstereo_ros.world import WorldModel

PIPELINES = ("geometric", "small")


def grey_view(width: int, height: int, observed: np.ndarray, *, depth: float | None = 3.0, references: int = 1):
    """(frame, conditioning) of a uniform grey view; `observed` is (height, width) bool."""
    camera = Camera.from_fov(width, height, 1.2)
    grey = np.full((height, width, 3), 120, np.uint8)
    plane = np.full((height, width), depth or 0, np.float32)
    pose = np.eye(4)
    renders = Rendering(
        colour=torch.from_numpy(np.where(observed[..., None], grey, np.uint8(128)))[None],
        depth=torch.from_numpy(np.where(observed, plane, np.float32(0)))[None],
        covered=torch.from_numpy(observed)[None],
        provenance=torch.from_numpy(np.where(observed, np.uint8(Provenance.OBSERVED), np.uint8(0)))[None],
    )
    views = [View(grey, camera, pose, plane) for _ in range(max(1, references))]
    conditioning = Conditioning(
        views[0], renders, camera, pose[None], views[:references], np.array([0 if references else -1])
    )
    frame = PipelineFrame(grey, None if depth is None else plane, observed)
    return frame, conditioning


# --- the model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PIPELINES)
def test_confidence_does_not_increase_with_distance_from_the_evidence(name):
    observed = np.zeros((120, 160), bool)
    observed[:, :40] = True
    frame, conditioning = grey_view(160, 120, observed)
    if name == "small":  # it knows planes, which extend less and less
        distance = np.clip((np.arange(160, dtype=np.float32) - 40) / 120, 0, 1)
        frame = replace(frame, plane_absence=np.tile(1 - np.exp(-distance), (120, 1)))
    found = load_confidence(name)(frame, conditioning, 0)
    for row in (found.colour[60], found.depth[60]):
        assert (np.diff(row[44:110]) <= 1e-5).all()
        assert row[42] >= row[-1]  # by how much is tested with a textured image; uniform grey is easy to predict
        assert row[:36].min() >= row[44:].max() - 1e-6  # observed pixels have the highest confidence


@pytest.mark.parametrize("name", PIPELINES)
def test_confidence_decreases_with_distance_in_textured_images(name):
    observed = np.zeros((120, 160), bool)
    observed[:, :40] = True
    frame, conditioning = grey_view(160, 120, observed)
    squares = np.random.default_rng(0).integers(60, 180, (15, 20, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    confidence = load_confidence(name)(replace(frame, image=squares), conditioning, 0).colour
    assert confidence[:, 42].mean() > confidence[:, 120:].mean() + 0.1


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("label", CLASSES)
@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_confidence_does_not_increase_with_any_feature(name, label, seed):
    random = np.random.default_rng(seed)
    values = random.uniform(-1, 3, len(FEATURES)).astype(np.float32)
    worse = values + random.uniform(0, 2, len(FEATURES)).astype(np.float32) * (random.random(len(FEATURES)) < 0.3)
    for scale in load_confidence(name).scales[label].values():
        one, other = scale(np.stack([values, worse]))
        assert other <= one + 1e-6
        assert 0 <= other <= one <= 1


@pytest.mark.parametrize("name", PIPELINES)
def test_expected_error_is_consistent_with_confidence(name):
    model = load_confidence(name)
    for label, observed in (("imagined", False), ("observed", True)):
        scale = model.scales[label]["colour"]
        error = model.expected_error(scale.confidence, np.full(len(scale.confidence), observed))
        np.testing.assert_allclose(error, scale.expected_error, atol=2e-3)
        assert error.min() >= 0
        assert error.max() <= 1


@pytest.mark.parametrize("size", [(8, 6), (53, 37), (640, 480), (90, 300)])
@pytest.mark.parametrize("case", ["all", "none", "half", "no depth", "no observation"])
def test_features_and_confidence_are_finite_for_all_sizes_and_cases(size, case):
    width, height = size
    observed = np.full((height, width), case == "all")
    if case == "half":
        observed[height // 2 :] = True
    arguments = grey_view(
        width,
        height,
        observed,
        depth=None if case == "no depth" else 3.0,
        references=0 if case == "no observation" else 2,
    )
    found = compute_features(*arguments, 0, StatisticsCache())
    assert max(found.shape[:2]) == min(MAX_SIZE_PX, max(size))
    assert found.shape[2] == len(FEATURES)
    assert np.isfinite(found).all()
    confidence = load_confidence("small")(*arguments, 0)
    assert (confidence.depth is None) == (case == "no depth")
    for array in confidence:
        if array is not None:
            assert array.shape == (height, width)
            assert array.dtype == np.float32
            assert np.isfinite(array).all()
            assert 0 <= array.min() <= array.max() <= 1


def test_pixels_without_depth_have_no_confidence_of_depth():
    frame, conditioning = grey_view(64, 48, np.zeros((48, 64), bool))
    depth = frame.depth.copy()
    depth[:, :20] = 0
    found = load_confidence("geometric")(replace(frame, depth=depth), conditioning, 0)
    assert (found.depth[:, :20] == 0).all()
    assert (found.depth[:, 30:] > 0).all()
    assert (found.colour > 0).all()


@pytest.mark.parametrize("name", PIPELINES)
def test_a_view_that_shows_nothing_seen_has_a_low_confidence(name):
    """The camera looks back, into a place of which two textured observations of the other side say nothing."""
    random = np.random.default_rng(0)
    frame, conditioning = grey_view(160, 120, np.zeros((120, 160), bool))
    camera, depth = conditioning.camera, np.full((120, 160), 3, np.float32)
    views = []
    for x in (0.0, 0.3):
        squares = random.integers(0, 255, (12, 16, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
        pose = np.eye(4)
        pose[0, 3] = x
        views.append(View(squares, camera, pose, depth))
    turned = np.diag([-1.0, 1.0, -1.0, 1.0])
    conditioning = replace(conditioning, world_from_camera=turned[None], observations=views, references=views)
    image = random.integers(0, 255, (12, 16, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
    found = load_confidence(name)(replace(frame, image=image), conditioning, 0)
    assert found.colour.mean() < 0.25
    assert found.depth.mean() < 0.35


def test_imagined_views_are_no_evidence():
    observed = np.zeros((120, 160), bool)
    observed[:, :40] = True
    frame, conditioning = grey_view(160, 120, observed)
    pose = np.eye(4)
    pose[0, 3] = 0.5
    imagined = View(
        frame.image, conditioning.camera, pose, np.full((120, 160), 3, np.float32), observed=np.zeros((120, 160), bool)
    )
    more = replace(conditioning, references=[*conditioning.references, imagined], start_view=imagined)
    for one, other in zip(*(load_confidence("small")(frame, c, 0) for c in (conditioning, more)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_imagined_points_limit_the_confidence_and_are_no_evidence():
    observed = np.zeros((120, 160), bool)
    observed[:, :40] = True
    frame, conditioning = grey_view(160, 120, observed)
    before = load_confidence("small")(frame, conditioning, 0)
    provenance = conditioning.renders.provenance.clone()
    provenance[:, :, 40:100] = Provenance.IMAGINED
    renders = replace(conditioning.renders, provenance=provenance, covered=provenance > 0)
    stored = np.full((1, 120, 160, 2), 0.3, np.float32)
    stored[..., 1] = 0.2
    found = load_confidence("small")(frame, replace(conditioning, renders=renders, stored_confidence=stored), 0)
    for one, other, limit in zip(before, found, (0.3, 0.2), strict=True):
        np.testing.assert_allclose(other[:, 40:100], np.minimum(one[:, 40:100], limit), atol=1e-6)
        np.testing.assert_allclose(other[:, :40], one[:, :40], atol=1e-6)
        np.testing.assert_allclose(other[:, 100:], one[:, 100:], atol=1e-6)


def test_scale_rejects_functions_that_are_not_monotone():
    good = load_confidence("geometric").scales["imagined"]["colour"]
    again = Scale.from_dict(json.loads(json.dumps(good.to_dict())))
    values = np.random.default_rng(0).uniform(0, 3, (50, len(FEATURES))).astype(np.float32)
    np.testing.assert_allclose(again(values), good(values), atol=1e-3)
    name, (knots, steps) = next(iter(good.functions.items()))
    for changes in (
        {"functions": {name: (knots, steps[::-1])}},
        {"functions": {name: (knots[::-1], steps)}},
        {"functions": {name: (knots[1:], steps)}},
        {"functions": {"no such feature": (knots, steps)}},
        {"expected_error": good.expected_error[::-1]},
        {"confidence": good.confidence[::-1]},
        {"offset": np.nan},
    ):
        with pytest.raises(InputError, match=r"expected|unknown features: no such feature"):
            replace(good, **changes)


def test_missing_confidence_file_is_a_model_error(tmp_path, monkeypatch):
    monkeypatch.setattr(worldstereo_ros, "__path__", [str(tmp_path)])
    with pytest.raises(ModelError, match=r"confidence\.json cannot be read .* Reinstall the package"):
        load_confidence.__wrapped__("small")  # without its cache


# --- asking again ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "seed"),
    [
        ("geometric", "room", 0),
        ("geometric", "room", 1),
        ("geometric", "corridor", 0),
        ("geometric", "warehouse", 0),
        ("small", "room", 0),
        ("small", "warehouse", 0),
    ],
)
def test_asking_again_raises_no_confidence(name, kind, seed):
    """The same four views three times, remembered: what was imagined does not confirm itself."""
    scenario = scene_scenario(kind, seed, 24, width=160, height=120)
    world = WorldModel(load_pipeline(name))
    for view in scenario.observed_views:
        world.observe(view)
    path, camera = scenario.path[13:17], scenario.observed_views[0].camera
    requests = []
    for _ in range(3):
        views = list(world.imagine(path, camera, remember=True))
        requests.append([np.stack(layer) for layer in zip(*map(layers, views), strict=True)])
    always = np.logical_and.reduce([imagined for imagined, _, _ in requests])
    assert always.mean() > 0.05
    for which in (1, 2):
        means = [float(request[which][always].mean()) for request in requests]
        # A pixel may show a surface that another view imagined, and an image imagined anew differs a little.
        assert max(means[1:]) <= means[0] + 0.01, means
        assert means[2] <= means[1] + 0.005, means


def layers(view: ImaginedView) -> tuple[np.ndarray, ...]:
    """(imagined, confidence, confidence of depth) of the pixels of a view."""
    return view.provenance == Provenance.IMAGINED, view.confidence, view.depth_confidence


# --- world model ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wall() -> tuple[WorldModel, list[ImaginedView]]:
    """A world model that observed a wall three metres ahead, and views of a path beyond the end of the wall."""
    random = np.random.default_rng(0)
    camera = Camera.from_fov(160, 120, 1.2)
    texture = cv2.resize(random.integers(0, 255, (12, 16, 3), dtype=np.uint8), (160, 120))
    world = WorldModel(load_pipeline("geometric"))
    world.observe(View(texture, camera, np.eye(4), np.full((120, 160), 3, np.float32), stamp_ns=1))
    path = trajectory("right", np.eye(4), 4, distance=2.0)
    return world, list(world.imagine(path, camera, remember=True))


def test_imagined_views_have_confidence(wall):
    for view in wall[1]:
        assert view.confidence is not None
        assert view.confidence.shape == view.image.shape[:2]
        assert np.isfinite(view.confidence).all()
    last = wall[1][-1]
    assert 0.2 < last.observed_fraction < 0.9
    assert last.confidence[last.observed].mean() > last.confidence[~last.observed].mean() + 0.1


def test_confidence_of_the_pipeline_takes_precedence():
    class WithConfidence:
        name, clip_length = "with confidence", 1

        def __call__(self, conditioning, **_):
            shape = conditioning.camera.height, conditioning.camera.width
            image = np.zeros((*shape, 3), np.uint8)
            yield PipelineFrame(image, None, np.zeros(shape, bool), confidence=np.full(shape, 0.25, np.float32))

    camera = Camera.from_fov(64, 48, 1.2)
    world = WorldModel(WithConfidence())
    world.observe(View(np.zeros((48, 64, 3), np.uint8), camera, np.eye(4), np.ones((48, 64), np.float32)))
    (view,) = world.imagine(np.eye(4)[None], camera)
    assert (view.confidence == 0.25).all()


def test_imagined_points_keep_confidence_in_memory_and_maps(wall, tmp_path):
    cloud = wall[0].cloud
    assert (~cloud.observed).sum() > 100
    assert (cloud.confidence[cloud.observed] == 1).all()
    imagined = cloud.confidence[~cloud.observed]
    lowest, highest = (f(view.confidence) for f, view in ((np.min, wall[1][-1]), (np.max, wall[1][1])))
    assert imagined.min() >= min(view.confidence.min() for view in wall[1]) - 1e-4
    assert imagined.max() <= max(lowest, highest) + 1e-4
    assert imagined.std() > 0
    wall[0].save(tmp_path / "a.wsmap")
    other = WorldModel(load_pipeline("geometric"))
    other.load(tmp_path / "a.wsmap")
    np.testing.assert_array_equal(other.cloud.confidence, cloud.confidence)


@pytest.mark.parametrize("has_confidence", [True, False])
def test_maps_of_version_1_still_load(wall, tmp_path, has_confidence):
    cloud, bank = wall[0].cloud.state(), ViewBank().state()
    levels, weight = cloud.pop("confidence"), cloud.pop("weight")
    cloud |= {"confidence": weight, "max_confidence": cloud.pop("max_weight")}
    del cloud["depth_confidence"]
    cloud["observed"] = cloud.pop("provenance") == Provenance.OBSERVED
    if has_confidence:
        cloud["certainty"] = levels
    write_archive(tmp_path / "old.wsmap", cloud, bank, {})
    world = WorldModel(load_pipeline("geometric"))
    world.load(tmp_path / "old.wsmap")
    np.testing.assert_array_equal(world.cloud.weight, wall[0].cloud.weight)
    expected = wall[0].cloud.confidence if has_confidence else world.cloud.observed.astype(np.float32)
    np.testing.assert_array_equal(world.cloud.confidence, expected)


# --- the cloud -------------------------------------------------------------------------------------------------------


def test_imagining_a_voxel_again_never_raises_its_confidence_and_observing_sets_it_to_one():
    cloud = CloudMemory(voxel_size=0.1)
    point, colour = np.array([[0.05, 0.05, 0.05]]), np.full((1, 3), 9, np.uint8)
    cloud.insert_points(point, colour, False, confidence=0.6, depth_confidence=0.4)
    cloud.insert_points(point, colour, False, confidence=0.2, depth_confidence=0.8)
    np.testing.assert_allclose(cloud.confidence, [0.4], atol=1e-4)
    np.testing.assert_allclose(cloud.depth_confidence, [0.4], atol=1e-4)
    for _ in range(300):  # however often it is imagined
        cloud.insert_points(point, colour, False, confidence=0.9, depth_confidence=0.9)
    np.testing.assert_allclose(cloud.confidence, [0.4], atol=1e-4)
    np.testing.assert_allclose(cloud.depth_confidence, [0.4], atol=1e-4)
    for _ in range(300):  # the mean of integers must converge
        cloud.insert_points(point, colour, False, confidence=0.1)
    np.testing.assert_allclose(cloud.confidence, [0.1], atol=2e-3)
    cloud.insert_points(point, colour, int(Provenance.ESTIMATED), depth_confidence=0.7)
    assert cloud.confidence.tolist() == [1.0]  # a camera saw the colour
    np.testing.assert_allclose(cloud.depth_confidence, [0.7], atol=1e-4)
    cloud.insert_points(point, colour, True)
    assert (cloud.confidence.tolist(), cloud.depth_confidence.tolist()) == ([1.0], [1.0])
    cloud.insert_points(point, colour, False, confidence=0.1)  # observed points stay unchanged
    assert cloud.confidence.tolist() == [1.0]


def test_pruning_keeps_the_confidence_of_other_points():
    cloud = CloudMemory(voxel_size=0.1, max_radius=5.0)
    points = np.array([[100.0, 0, 0], [1, 0, 0], [2, 0, 0]])
    cloud.insert_points(points, np.zeros((3, 3), np.uint8), False, confidence=np.array([0.1, 0.2, 0.3]))
    view = View(np.zeros((4, 4, 3), np.uint8), Camera.from_fov(4, 4, 1.0), np.eye(4), np.zeros((4, 4), np.float32))
    cloud.insert(view)
    cloud.prune()
    order = np.argsort(cloud.points[:, 0])
    np.testing.assert_allclose(cloud.confidence[order], [0.2, 0.3], atol=1e-4)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, np.nan, np.ones(2)])
def test_a_confidence_out_of_range_is_rejected(wrong):
    cloud = CloudMemory()
    with pytest.raises(ValueError, match="confidence"):
        cloud.insert_points(np.zeros((1, 3)), np.zeros((1, 3), np.uint8), False, confidence=wrong)
    assert len(cloud) == 0


# --- files and messages ----------------------------------------------------------------------------------------------


def test_written_views_keep_confidence(wall, tmp_path):
    write_sequence(tmp_path / "imagined", wall[1])
    view = wall[1][-1]
    image = cv2.imread(str(tmp_path / "imagined" / "confidence" / "000003.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_allclose(image / 255, view.confidence, atol=1 / 255)
    back = load_viewable(tmp_path / "imagined").imagined[-1]
    np.testing.assert_allclose(back.confidence, view.confidence, atol=1 / 255)


def test_resizing_keeps_confidence(wall):
    view = wall[1][0].resized(80, 60)
    assert view.confidence.shape == (60, 80)
    assert set(np.unique(view.confidence)) <= set(np.unique(wall[1][0].confidence))


def test_messages_contain_confidence(wall):
    pytest.importorskip("worldstereo_ros.msg", reason="the ROS interfaces are not built")
    from std_msgs.msg import Header

    from worldstereo_ros.ros.client.client import view_from_message
    from worldstereo_ros.ros.conversions.messages import view_message

    view = wall[1][-1]
    message = view_message(view, Header(frame_id="camera"), "map")
    assert (message.confidence.encoding, message.confidence.header.frame_id) == ("mono8", "camera")
    np.testing.assert_allclose(view_from_message(message).confidence, view.confidence, atol=0.51 / 255)
    without = view_message(replace(view, confidence=None), Header(), "map")
    assert len(without.confidence.data) == 0
    assert view_from_message(without).confidence is None


def test_point_clouds_contain_confidence():
    clouds = pytest.importorskip("worldstereo_ros.ros.conversions.clouds", reason="ROS is not installed")
    from std_msgs.msg import Header

    random = np.random.default_rng(0)
    points = random.normal(size=(5, 3)).astype(np.float32)
    points[2, 1] = np.nan
    colours, confidence = random.integers(0, 255, (5, 3), dtype=np.uint8), random.random(5).astype(np.float32)
    for observed in (None, np.array([True, False, True, False, True])):
        message = clouds.cloud_message(points, colours, Header(), observed=observed, confidence=confidence)
        names = [field.name for field in message.fields]
        assert names == ["x", "y", "z", "rgb", *(["observed"] if observed is not None else []), "confidence"]
        rows = np.frombuffer(message.data, np.float32).reshape(message.width, -1)
        left = [0, 1, 3, 4]  # what is not finite is left out
        np.testing.assert_array_equal(rows[:, -1], confidence[left])
        assert message.point_step == 4 * len(names) == 4 * rows.shape[1]
        back, back_colours = clouds.cloud_arrays(message)
        np.testing.assert_array_equal(back, points[left])
        np.testing.assert_array_equal(back_colours, colours[left])


# --- the evaluation --------------------------------------------------------------------------------------------------


def _judged(honest: bool) -> calibration.CalibrationRow:
    """Frames whose error is exactly what was expected, or has nothing to do with it."""
    random = np.random.default_rng(0)
    model = load_confidence("geometric")
    found = Calibration()
    for _ in range(4):
        levels = np.sort(random.choice(model.scales["imagined"]["colour"].confidence, 64)).repeat(64)
        confidence = levels.reshape(64, 64).astype(np.float32)
        observed = np.zeros((64, 64), bool)
        error = model.expected_error(confidence, observed)
        if honest:  # as many right as it says, and in the same order
            level = 255 * np.where(
                random.random(error.shape) < confidence, error * COLOUR_TOLERANCE, COLOUR_TOLERANCE + error
            )
        else:
            level = 255 * random.random(error.shape)
        image = np.rint(level)[..., None].repeat(3, axis=2).astype(np.uint8)
        found.add("a", "things", "geometric", image, np.zeros_like(image), confidence, observed)
    (row,) = found.rows()
    return row


def test_honest_predictions_are_told_from_others():
    honest, blind = _judged(True), _judged(False)
    assert honest.rank > 0.5
    assert honest.rank_blocks > honest.rank
    assert honest.calibration_error < 0.03
    assert honest.rank_observed is None
    assert honest.imagined == 1
    assert abs(blind.rank) < 0.05
    assert blind.calibration_error > 0.3
    assert sum(part.share for part in honest.confidence_bins) == pytest.approx(1)


def test_calibration_is_plotted_and_written(tmp_path):
    found = Calibration()
    with pytest.raises(ValueError, match="No pipeline gave a confidence"):
        found.write(tmp_path / "a.png")
    with pytest.raises(ValueError, match="ends in"):
        found.write(tmp_path / "a.txt")
    random = np.random.default_rng(0)
    for sequence, kind in (("a", "worlds"), ("b", "worlds"), ("c", "recordings")):
        for pipeline in PIPELINES:
            image = random.integers(0, 255, (40, 60, 3), dtype=np.uint8)
            confidence = random.random((40, 60)).astype(np.float32)
            found.add(sequence, kind, pipeline, image, 255 - image, confidence, confidence > 0.5)
    names = [(row.data, row.pipeline) for row in found.rows()]
    assert names == [(d, p) for p in PIPELINES for d in ("a", "b", "worlds")] + [("recordings", p) for p in PIPELINES]
    found.write(tmp_path / "a.json")
    assert len(json.loads((tmp_path / "a.json").read_text())["rows"]) == 8
    found.write(tmp_path / "a.png")
    picture = cv2.imread(str(tmp_path / "a.png"))
    assert picture.std() > 0
    assert len(calibration.calibration_table(found.rows()).rows) == 8
