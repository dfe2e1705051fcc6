"""Views and paths from bags: posed RGB-D, topic detection, errors of invalid bags."""

import numpy as np
import pytest
from helpers.recordings import (
    BASE_FROM_CAMERA,
    SECOND,
    START,
    WIDTH,
    drive,
    image_message,
    info_message,
    pose_stamped,
    record,
)

from worldstereo_ros.geometry.poses import pose_from_quaternion
from worldstereo_ros.io.bags.views import (
    Bag,
    BagError,
    BagWriter,
    camera_info_beside,
    find_topics,
    read_views,
)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_read_views_restores_recorded_views(tmp_path, storage):
    record(tmp_path / "drive", storage)
    stamps, images, depths, base = drive()
    views = list(read_views(tmp_path / "drive", "/cam/image", depth_topic="/cam/depth"))
    assert [view.stamp_ns for view in views] == stamps
    for view, image, depth, pose in zip(views, images, depths, base, strict=True):
        np.testing.assert_array_equal(view.image, image)
        np.testing.assert_allclose(view.depth, depth, atol=1e-6)
        np.testing.assert_allclose(view.world_from_camera, pose @ BASE_FROM_CAMERA, atol=1e-9)
        assert (view.camera.fx, view.camera.cx, view.camera.width) == (30.0, 15.5, WIDTH)
    # The file without the metadata of its folder, and fewer views.
    file = next(p for p in (tmp_path / "drive").iterdir() if p.suffix in (".mcap", ".db3"))
    few = list(read_views(file, "/cam/image", max_views=3))
    assert [view.stamp_ns for view in few] == [stamps[0], stamps[2], stamps[4]]
    assert few[0].depth is None


def test_read_views_decodes_compressed_images(tmp_path):
    record(tmp_path / "drive", compressed=True)
    views = list(read_views(tmp_path / "drive", "/cam/image", depth_topic="/cam/depth"))
    np.testing.assert_array_equal(views[3].image, drive()[1][3])


def test_read_views_takes_poses_from_a_topic(tmp_path):
    _, _, _, base = drive()
    record(tmp_path / "stamped", tf=False, poses="geometry_msgs/msg/PoseStamped")
    views = list(read_views(tmp_path / "stamped", "/cam/image", pose_topic="/pose"))
    np.testing.assert_allclose([v.world_from_camera for v in views], base @ BASE_FROM_CAMERA, atol=1e-9)
    # Odometry is the pose of base_link; the static transform gives the camera.
    record(tmp_path / "odometry", poses="nav_msgs/msg/Odometry")
    views = list(read_views(tmp_path / "odometry", "/cam/image", pose_topic="/pose"))
    np.testing.assert_allclose([v.world_from_camera for v in views], base @ BASE_FROM_CAMERA, atol=1e-9)


def test_read_views_without_poses_returns_one_view_at_the_origin(tmp_path):
    record(tmp_path / "drive", tf=False)
    views = list(read_views(tmp_path / "drive", "/cam/image", depth_topic="/cam/depth"))
    assert len(views) == 1
    np.testing.assert_array_equal(views[0].world_from_camera, np.eye(4))


def test_read_views_interpolates_poses(tmp_path):
    stamps, images, _, _ = drive(3)
    with BagWriter(tmp_path / "a") as writer:
        writer.add_topic("/cam/image", "sensor_msgs/msg/Image")
        writer.add_topic("/cam/camera_info", "sensor_msgs/msg/CameraInfo")
        writer.add_topic("/pose", "geometry_msgs/msg/PoseStamped")
        writer.write("/cam/camera_info", info_message(START), START)
        ends = [np.eye(4), pose_from_quaternion((2, 0, 0), (0, 0, np.sin(np.pi / 4), np.cos(np.pi / 4)))]
        for stamp, pose in zip((stamps[0], stamps[2]), ends, strict=True):
            writer.write("/pose", pose_stamped(stamp, pose), stamp)
        writer.write("/cam/image", image_message(stamps[1], images[1]), stamps[1])
        writer.write("/cam/image", image_message(stamps[2] + SECOND, images[2]), stamps[2])  # no pose within a second
    (view,) = read_views(tmp_path / "a", "/cam/image", pose_topic="/pose")
    half = pose_from_quaternion((1, 0, 0), (0, 0, np.sin(np.pi / 8), np.cos(np.pi / 8)))
    np.testing.assert_allclose(view.world_from_camera, half, atol=1e-9)


def test_read_views_uses_the_root_of_the_transforms_as_world(tmp_path):
    record(tmp_path / "drive")
    base = drive()[3]
    for world in ("", "map", "odom"):
        views = list(read_views(tmp_path / "drive", "/cam/image", world_frame=world))
        np.testing.assert_allclose([v.world_from_camera for v in views], base @ BASE_FROM_CAMERA, atol=1e-9)
    moved = next(read_views(tmp_path / "drive", "/cam/image", world_frame="base_link"))
    np.testing.assert_allclose(moved.world_from_camera, BASE_FROM_CAMERA, atol=1e-9)


def test_read_views_undistorts_images(tmp_path):
    record(tmp_path / "drive", info=info_message(START, d=(-0.3, 0.1, 0.0, 0.0, 0.0)))
    view = next(read_views(tmp_path / "drive", "/cam/image", depth_topic="/cam/depth"))
    raw = drive()[1][0]
    assert (view.image != raw).any()
    np.testing.assert_allclose(view.image[12, 16].astype(int), raw[12, 16].astype(int), atol=12)  # the middle stays
    recorded = set(np.rint(drive()[2][0] * 1000).reshape(-1).tolist())
    assert set(np.rint(view.depth * 1000).reshape(-1).tolist()) <= recorded, "depth was blended"


def test_camera_info_beside_follows_image_transport():
    assert camera_info_beside("/cam/image_raw") == "/cam/camera_info"
    assert camera_info_beside("/cam/color/image_raw/compressed") == "/cam/color/camera_info"
    assert camera_info_beside("/image") == "/camera_info"


def test_find_topics_detects_colour_and_registered_depth(tmp_path):
    record(tmp_path / "drive")
    with Bag(tmp_path / "drive") as bag:
        assert find_topics(bag) == ("/cam/image", "/cam/depth")
    views = list(read_views(tmp_path / "drive"))
    assert len(views) == 5
    np.testing.assert_array_equal(views[2].image, drive()[1][2])
    assert views[2].depth is not None
    with BagWriter(tmp_path / "other") as writer:
        for name in ("a/image", "color/image_raw"):
            writer.add_topic(f"/{name}", "sensor_msgs/msg/Image")
            writer.write(f"/{name}", image_message(START, drive()[1][0]), START)
            info = camera_info_beside(f"/{name}")
            writer.add_topic(info, "sensor_msgs/msg/CameraInfo")
            writer.write(info, info_message(START), START)
        # Depth of another frame is not registered to the colour image.
        writer.add_topic("/stereo/depth", "sensor_msgs/msg/Image")
        writer.write("/stereo/depth", image_message(START, drive()[2][0], "other_frame"), START)
    with Bag(tmp_path / "other") as bag:
        assert find_topics(bag) == ("/color/image_raw", "")
    with BagWriter(tmp_path / "none") as writer:
        writer.add_topic("/image", "sensor_msgs/msg/Image")
        writer.write("/image", image_message(START, drive()[1][0]), START)
    with pytest.raises(BagError, match=r"no colour images with a camera_info beside them.*/image \(sensor_msgs"):
        list(read_views(tmp_path / "none"))


# --- invalid bags ----------------------------------------------------------------------------------------------------


def test_missing_topic_error_lists_the_topics(tmp_path):
    record(tmp_path / "drive")
    with pytest.raises(
        BagError, match=r"'/front/image'.*Matching topics: /cam/depth, /cam/image\..*/chatter \(std_msgs"
    ):
        next(read_views(tmp_path / "drive", "/front/image"))
    with pytest.raises(BagError, match=r"'/cam/nothing' for the camera_info"):
        next(read_views(tmp_path / "drive", "/cam/image", camera_info_topic="/cam/nothing"))
    with pytest.raises(BagError, match=r"'/chatter' has type std_msgs/msg/String; .* was expected for the depth image"):
        next(read_views(tmp_path / "drive", "/cam/image", depth_topic="/chatter"))


def test_read_views_rejects_unknown_frames_and_unsynchronised_depth(tmp_path):
    record(tmp_path / "drive", depth_shift=10 * SECOND)
    with pytest.raises(BagError, match=r"no frame 'world'; the frames are base_link, camera_optical, map, odom"):
        next(read_views(tmp_path / "drive", "/cam/image", world_frame="world"))
    with pytest.raises(BagError, match=r"within 0.03 s.*one clock"):
        next(read_views(tmp_path / "drive", "/cam/image", depth_topic="/cam/depth"))


@pytest.mark.parametrize(
    ("info", "sentence"),
    [
        (info_message(START, width=64), "Its size is 32x24; the camera_info has 64x24"),
        (info_message(START, fx=0.0), "the camera is not calibrated"),
        (info_message(START, d=(0.1, 0.2)), "with 2 coefficients"),
    ],
)
def test_read_views_rejects_invalid_camera_info(tmp_path, info, sentence):
    record(tmp_path / "drive", info=info)
    with pytest.raises(BagError, match=sentence):
        next(read_views(tmp_path / "drive", "/cam/image"))


def test_read_views_rejects_colour_as_depth(tmp_path):
    record(tmp_path / "drive", colour_as_depth=True)
    with pytest.raises(BagError, match=r"'/cam/depth' at \d+\.\d+ s .* encoding 'rgb8'; depth is 16UC1"):
        next(read_views(tmp_path / "drive", "/cam/image", depth_topic="/cam/depth"))
    with pytest.raises(BagError, match="both the colour and the depth"):
        next(read_views(tmp_path / "drive", "/cam/image", depth_topic="/cam/image"))


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_read_views_rejects_truncated_bags(tmp_path, storage):
    record(tmp_path / "drive", storage)
    file = next(p for p in (tmp_path / "drive").iterdir() if p.suffix in (".mcap", ".db3"))
    raw = file.read_bytes()
    for length in [0, 1, 8, 37, 100, len(raw) // 3, len(raw) // 2, len(raw) - 5000]:
        file.write_bytes(raw[:length])
        for source in (file, tmp_path / "drive"):
            with pytest.raises(BagError, match=r"bag .* cannot be read|has no messages on"):
                list(read_views(source, "/cam/image", depth_topic="/cam/depth"))


def test_read_views_returns_views_or_raises_for_damaged_bytes(tmp_path):
    record(tmp_path / "drive")
    file = next((tmp_path / "drive").glob("*.mcap"))
    raw = file.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(raw)
        for at in rng.integers(0, len(raw), 20):
            damaged[at] ^= int(rng.integers(1, 256))
        file.write_bytes(damaged)
        try:
            list(read_views(file, "/cam/image", depth_topic="/cam/depth"))
        except BagError:
            refused += 1
    assert refused > 10


def test_read_views_rejects_paths_that_are_not_bags(tmp_path):
    with pytest.raises(BagError, match="does not exist"):
        next(read_views(tmp_path / "nothing", "/a"))
    with pytest.raises(BagError, match=r"no metadata\.yaml and 0"):
        next(read_views(tmp_path, "/a"))
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(BagError, match="cannot be read"):
        next(read_views(tmp_path / "a.txt", "/a"))
