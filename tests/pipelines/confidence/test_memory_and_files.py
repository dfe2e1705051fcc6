"""The confidence of views on its way through the world model, the cloud, files and messages."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.memory.archive import write_archive
from worldstereo_ros.memory.bank import ViewBank
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.pipelines.base import PipelineFrame
from worldstereo_ros.visualization.viewer.loading import load_viewable
from worldstereo_ros.world import WorldModel

# --- world model -----------------------------------------------------------------------------------------------------


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

    from worldstereo_ros.ros.conversions.messages import view_from_message, view_message

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
