"""Recordings as they come: rectified images, body frames, other units, lost poses, damaged and changed messages."""

import logging

import cv2
import numpy as np
import pytest
from helpers.recordings import (
    BASE_FROM_CAMERA,
    HEIGHT,
    SECOND,
    START,
    TYPES,
    WIDTH,
    drive,
    header,
    image_message,
    info_message,
    odometry,
    transforms,
)

from worldstereo_ros.geometry.camera_axes import BODY_FROM_OPTICAL
from worldstereo_ros.io.bags.views import BagError, BagWriter, read_views
from worldstereo_ros.utils.errors import InputError

STAMPS, IMAGES, DEPTHS, BASE = drive()
TYPE_OF = {
    "Image": "sensor_msgs/msg/Image",
    "CameraInfo": "sensor_msgs/msg/CameraInfo",
    "TFMessage": "tf2_msgs/msg/TFMessage",
    "Odometry": "nav_msgs/msg/Odometry",
}


def write_bag(path, *rows):
    """Writes rows of (topic, message, receive time)."""
    with BagWriter(path) as writer:
        for topic, message, stamp in rows:
            writer.add_topic(topic, message.__msgtype__)
            writer.write(topic, message, stamp)


def drive_rows(*, image_topic="/cam/image", frame="camera_optical", static=BASE_FROM_CAMERA, depth=None, info=None):
    """Rows of the drive: static transform, then each frame with transform, camera_info, image, depth."""
    rows = [("/tf_static", transforms((0, "base_link", frame, static)), START)]
    for i, (stamp, image, pose) in enumerate(zip(STAMPS, IMAGES, BASE, strict=True)):
        rows.append(("/tf", transforms((stamp, "odom", "base_link", pose)), stamp))
        rows.append(("/cam/camera_info", info(i) if info else info_message(stamp), stamp))
        rows.append((image_topic, image_message(stamp, image, frame), stamp))
        if depth is not None:
            rows.append(("/cam/depth", depth(i), stamp))
    return rows


def read(path, topic="/cam/image", **options):
    return list(read_views(path, topic, **options))


EXPECTED = BASE @ BASE_FROM_CAMERA


def check_poses(views, expected=EXPECTED):
    np.testing.assert_allclose([view.world_from_camera for view in views], expected, atol=1e-9)


# --- conventions -----------------------------------------------------------------------------------------------------


def rectified_info(i):
    info = info_message(STAMPS[i], d=(-0.3, 0.1, 0.0, 0.0, 0.0))
    info.p = np.array([33.0, 0, 15.5, 0, 0, 33.0, 11.5, 0, 0, 0, 1, 0])
    return info


def test_rectified_images_are_seen_with_p_by_the_topic_or_as_told(tmp_path, caplog):
    write_bag(tmp_path / "a", *drive_rows(image_topic="/cam/image_rect_color", info=rectified_info))
    views = read(tmp_path / "a", "/cam/image_rect_color")
    assert views[0].camera.fx == 33
    np.testing.assert_array_equal(views[2].image, IMAGES[2])
    assert "rectified by the name of the topic" in caplog.text
    raw = read(tmp_path / "a", "/cam/image_rect_color", rectified="false")
    assert raw[0].camera.fx == 30
    assert (raw[2].image != IMAGES[2]).any()
    write_bag(tmp_path / "b", *drive_rows(info=rectified_info))
    assert read(tmp_path / "b")[0].camera.fx == 30
    assert read(tmp_path / "b", rectified="true")[0].camera.fx == 33
    with pytest.raises(InputError, match="auto, true, false"):
        read(tmp_path / "b", rectified="perhaps")


def test_images_of_a_body_frame_are_turned_with_a_warning(tmp_path, caplog):
    link = np.eye(4)
    link[:3, 3] = BASE_FROM_CAMERA[:3, 3]
    write_bag(tmp_path / "a", *drive_rows(frame="camera_link", static=link))
    check_poses(read(tmp_path / "a"), BASE @ link @ BODY_FROM_OPTICAL)
    assert "'camera_link' of the images is taken to have body axes" in caplog.text
    assert "--camera-axes optical" in caplog.text
    caplog.clear()
    check_poses(read(tmp_path / "a", camera_axes="optical"), BASE @ link)
    check_poses(read(tmp_path / "a", camera_axes="body"), BASE @ link @ BODY_FROM_OPTICAL)
    write_bag(tmp_path / "b", *drive_rows(frame="cam0"))  # optical axes by another name
    check_poses(read(tmp_path / "b"))
    assert not caplog.text


@pytest.mark.parametrize(
    ("unit", "dtype", "encoding", "counts"),
    [
        ("0.1mm", "<u2", "16UC1", lambda depth: np.rint(depth * 10000)),
        ("0.00025", "<u2", "16UC1", lambda depth: np.rint(depth * 4000)),
        ("mm", "<f4", "32FC1", lambda depth: depth * 1000),
        ("m", "<f4", "32FC1", lambda depth: depth),
        ("auto", "<u2", "16UC1", lambda depth: np.rint(depth * 1000)),
    ],
)
def test_depth_is_read_in_its_unit(tmp_path, unit, dtype, encoding, counts):
    def depth_message(i):
        data = counts(DEPTHS[i]).astype(dtype).view(np.uint8).reshape(-1)
        fields = (HEIGHT, WIDTH, encoding, 0, data.size // HEIGHT, data)
        return TYPES["sensor_msgs/msg/Image"](header(STAMPS[i], "camera_optical"), *fields)

    write_bag(tmp_path / "a", *drive_rows(depth=depth_message))
    for view, depth in zip(read(tmp_path / "a", depth_topic="/cam/depth", depth_unit=unit), DEPTHS, strict=True):
        np.testing.assert_allclose(view.depth, depth, atol=2e-4)
    with pytest.raises(InputError, match="depth unit is 'inch'"):
        read(tmp_path / "a", depth_topic="/cam/depth", depth_unit="inch")


def test_a_tolerance_pairs_images_with_late_depth(tmp_path, caplog):
    late = drive_rows(depth=lambda i: image_message(STAMPS[i] + 45_000_000, DEPTHS[i]))
    write_bag(tmp_path / "a", *late)
    with pytest.raises(BagError, match=r"within 0\.03 s; the nearest is 0\.045 s away.*--tolerance"):
        read(tmp_path / "a", depth_topic="/cam/depth")
    views = read(tmp_path / "a", depth_topic="/cam/depth", tolerance=0.05)
    np.testing.assert_allclose([view.depth for view in views], DEPTHS, atol=1e-6)
    for tolerance in (-1.0, float("nan")):
        with pytest.raises(InputError, match="tolerance"):
            read(tmp_path / "a", tolerance=tolerance)
    rows = [row for row in late if row[2] != STAMPS[2] or row[0] != "/cam/depth"]
    write_bag(tmp_path / "b", *rows)
    assert len(read(tmp_path / "b", depth_topic="/cam/depth", tolerance=0.05)) == 4
    assert "1 of the images on '/cam/image' was left out. The image at" in caplog.text


# --- what is lost, damaged or changes --------------------------------------------------------------------------------


@pytest.mark.parametrize(("translation", "rotation"), [(np.nan, np.nan), (0.0, 0.0), (np.inf, 1.0)])
def test_an_invalid_transform_elsewhere_is_left_out(tmp_path, caplog, translation, rotation):
    bad = transforms((START, "base_link", "rear_wheel", np.eye(4)), (START, "base_link", "mast", np.eye(4)))
    bad.transforms[0].transform.translation.x = translation
    bad.transforms[0].transform.rotation.w = rotation
    write_bag(tmp_path / "a", *drive_rows(), ("/tf", bad, START), ("/tf", bad, START))
    check_poses(read(tmp_path / "a"))
    assert caplog.text.count("left out") == 1
    assert "2 of the transforms on '/tf' were left out. The first: 'rear_wheel' in 'base_link'" in caplog.text
    assert np.isfinite(read(tmp_path / "a", world_frame="mast")[0].world_from_camera).all()


def test_lost_odometry_is_left_out(tmp_path, caplog):
    rows = [row for row in drive_rows() if row[0] != "/tf"]
    for i, (stamp, pose) in enumerate(zip(STAMPS, BASE, strict=True)):
        message = odometry(stamp, pose)
        if i == 2:
            message.pose.pose = TYPES["geometry_msgs/msg/Pose"](
                TYPES["geometry_msgs/msg/Point"](0.0, 0.0, 0.0),
                TYPES["geometry_msgs/msg/Quaternion"](0.0, 0.0, 0.0, 0.0),
            )
        rows.append(("/odom", message, stamp))
    write_bag(tmp_path / "a", *rows)
    views = read(tmp_path / "a", pose_topic="/odom")
    check_poses([view for view in views if view.stamp_ns != STAMPS[2]], np.delete(EXPECTED, 2, axis=0))
    assert "1 of the poses on '/odom' was left out" in caplog.text
    all_lost = [(t, m, s) for t, m, s in rows if t != "/odom" or s == STAMPS[2]]
    write_bag(tmp_path / "b", *all_lost)
    with pytest.raises(BagError, match=r"'/odom' .* has no valid pose.*norm 0"):
        read(tmp_path / "b", pose_topic="/odom")


def damaged(message):
    """An image whose data is shorter than its sizes."""
    message.data = message.data[:100]
    return message


def test_a_damaged_image_is_left_out_and_the_next_takes_its_place(tmp_path, caplog):
    def rows(bad):
        found = []
        for topic, message, stamp in drive_rows(depth=lambda i: image_message(STAMPS[i], DEPTHS[i])):
            found.append((topic, damaged(message) if (topic, stamp) in bad else message, stamp))
        return found

    bad = {("/cam/image", STAMPS[0]), ("/cam/depth", STAMPS[2])}
    write_bag(tmp_path / "a", *rows(bad))
    views = read(tmp_path / "a", depth_topic="/cam/depth")
    assert [view.stamp_ns for view in views] == [STAMPS[1], STAMPS[3], STAMPS[4]]
    np.testing.assert_array_equal(views[0].image, IMAGES[1])
    np.testing.assert_allclose(views[0].depth, DEPTHS[1], atol=1e-6)
    assert "1 of the images on '/cam/image' was left out" in caplog.text
    assert "1 of the depth images on '/cam/depth' was left out" in caplog.text
    assert [view.stamp_ns for view in read(tmp_path / "a", max_views=1)] == [STAMPS[1]]
    chosen = read(tmp_path / "a", depth_topic="/cam/depth", max_views=3)
    assert [view.stamp_ns for view in chosen] == [STAMPS[1], STAMPS[3], STAMPS[4]]
    write_bag(tmp_path / "b", *rows({("/cam/image", stamp) for stamp in STAMPS}))
    with pytest.raises(BagError, match=r"No image on '/cam/image' in .* can be used.*100 bytes"):
        read(tmp_path / "b")


def test_messages_that_do_not_decode_are_left_out(tmp_path, caplog):
    with BagWriter(tmp_path / "a") as writer:
        for topic, message, stamp in drive_rows():
            writer.add_topic(topic, message.__msgtype__)
            writer.write(topic, message, stamp)
            if topic in ("/tf", "/cam/camera_info"):
                writer.write(topic, b"\0\1\0\0" + b"\xff" * 9, stamp)
    check_poses(read(tmp_path / "a"))
    assert "5 of the messages on '/tf' were left out" in caplog.text
    assert "5 of the camera_infos on '/cam/camera_info' were left out" in caplog.text


def test_each_image_is_seen_with_the_camera_info_of_its_time_and_size(tmp_path):
    small = [cv2.resize(image, (16, 12)) for image in IMAGES]

    def info(i):
        if i == 0:
            return info_message(STAMPS[i], fx=0.0)  # not calibrated yet
        return info_message(STAMPS[i], fx=30.0 + i) if i < 3 else info_message(STAMPS[i], 16, 12, fx=15.0)

    rows = []
    for topic, message, stamp in drive_rows(info=info):
        late = topic == "/cam/image" and stamp >= STAMPS[3]
        rows.append((topic, image_message(stamp, small[STAMPS.index(stamp)]) if late else message, stamp))
    write_bag(tmp_path / "a", *rows)
    cameras = [view.camera for view in read(tmp_path / "a")]
    assert [camera.fx for camera in cameras] == [31, 31, 32, 15, 15]
    assert [camera.width for camera in cameras] == [WIDTH, WIDTH, WIDTH, 16, 16]
    # The size changes one image before its camera_info does.
    early = [(t, image_message(s, small[2]) if t == "/cam/image" and s == STAMPS[2] else m, s) for t, m, s in rows]
    write_bag(tmp_path / "b", *early)
    assert [view.camera.fx for view in read(tmp_path / "b")] == [31, 31, 15, 15, 15]


def test_borders_that_the_lens_did_not_see_are_no_part_of_the_views(tmp_path):
    def info(i):
        return info_message(STAMPS[i], d=(0.5, 0.1, 0.0, 0.0, 0.0))

    bright = [np.full_like(image, 200) for image in IMAGES]
    rows = [
        (topic, image_message(stamp, bright[0]) if topic == "/cam/image" else message, stamp)
        for topic, message, stamp in drive_rows(info=info, depth=lambda i: image_message(STAMPS[i], DEPTHS[i] * 0 + 2))
    ]
    write_bag(tmp_path / "a", *rows)
    view = read(tmp_path / "a", depth_topic="/cam/depth")[0]
    assert view.camera.width < WIDTH
    assert (view.image == 200).all()
    assert (view.depth == 2).all()


# --- transforms ------------------------------------------------------------------------------------------------------


def test_a_camera_that_tf_lacks_is_an_error_with_its_name(tmp_path):
    rows = [row for row in drive_rows() if row[0] != "/tf_static"]
    write_bag(tmp_path / "a", *rows)
    with pytest.raises(BagError, match=r"no frame 'camera_optical' in TF.*frames are base_link, odom.*/tf_static"):
        read(tmp_path / "a")
    nameless = [(t, image_message(s, IMAGES[0], "") if t == "/cam/image" else m, s) for t, m, s in drive_rows()]
    write_bag(tmp_path / "b", *nameless)
    with pytest.raises(BagError, match=r"'/cam/image' have no frame_id"):
        read(tmp_path / "b")


def test_a_frame_that_changes_its_parent_gives_the_pose_of_its_time(tmp_path):
    """The robot is on a lift whose floor is a frame of its own from the fourth image on."""
    lifted = np.eye(4)
    lifted[2, 3] = 3.0
    rows = [row for row in drive_rows() if row[0] != "/tf" or row[2] < STAMPS[3]]
    rows.append(("/tf_static", transforms((0, "odom", "lift", lifted)), START))
    rows += [("/tf", transforms((STAMPS[i], "lift", "base_link", BASE[i])), STAMPS[i]) for i in (3, 4)]
    write_bag(tmp_path / "a", *rows)
    check_poses(read(tmp_path / "a"), np.concatenate([EXPECTED[:3], lifted @ EXPECTED[3:]]))


def test_images_with_one_pose_only_are_warned_of(tmp_path, caplog):
    rows = [row for row in drive_rows() if row[0] != "/tf"]
    write_bag(tmp_path / "a", *rows)
    check_poses(read(tmp_path / "a"), np.repeat(BASE_FROM_CAMERA[None], 5, axis=0))
    assert "All 5 images on '/cam/image' have the same pose" in caplog.text


def test_nothing_is_said_of_a_good_recording(tmp_path, caplog):
    write_bag(tmp_path / "a", *drive_rows(depth=lambda i: image_message(STAMPS[i] + SECOND // 100, DEPTHS[i])))
    with caplog.at_level(logging.WARNING):
        assert len(read(tmp_path / "a", depth_topic="/cam/depth")) == 5
    assert not caplog.text
