"""Recordings made here, read here, without ROS."""

import io

import numpy as np
import pytest
from PIL import Image
from rosbags.typesys import Stores, get_typestore

from worldstereo_ros import imagery
from worldstereo_ros.bagfiles import register_type
from worldstereo_ros.bags import Bag, BagError, BagWriter, camera_info_beside, find_topics, read_path, read_views
from worldstereo_ros.camera import pose_from_quaternion, quaternion_from_pose, trajectory
from worldstereo_ros.posetracks import TransformTree, UnknownPoseError

WIDTH, HEIGHT = 32, 24
STORE = get_typestore(Stores.ROS2_JAZZY)
T = STORE.types
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
BASE_FROM_CAMERA = pose_from_quaternion((0.2, 0.0, 0.5), (-0.5, 0.5, -0.5, 0.5))  # z up base, optical camera


def _time(ns: int):
    return T["builtin_interfaces/msg/Time"](sec=ns // SECOND, nanosec=ns % SECOND)


def _header(ns: int, frame: str):
    return T["std_msgs/msg/Header"](stamp=_time(ns), frame_id=frame)


def _image(ns: int, image: np.ndarray, frame: str = "camera_optical"):
    encoding, height, width, step, data = (
        imagery.encode_colour(image) if image.dtype == np.uint8 else imagery.encode_depth(image, "16UC1")
    )
    return T["sensor_msgs/msg/Image"](_header(ns, frame), height, width, encoding, 0, step, data)


def _info(ns: int, width: int = WIDTH, height: int = HEIGHT, fx: float = 30.0, d=()):
    k = np.array([fx, 0, 15.5, 0, fx, 11.5, 0, 0, 1])
    roi = T["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    return T["sensor_msgs/msg/CameraInfo"](
        _header(ns, "camera_optical"), height, width, "plumb_bob", np.array(d, dtype=np.float64), k,
        np.eye(3).reshape(-1), np.zeros(12), 0, 0, roi,
    )  # fmt: skip


def _pose(matrix: np.ndarray):
    t, q = quaternion_from_pose(matrix)
    return T["geometry_msgs/msg/Pose"](
        T["geometry_msgs/msg/Point"](*map(float, t)), T["geometry_msgs/msg/Quaternion"](*map(float, q))
    )


def _pose_stamped(ns: int, matrix: np.ndarray, frame: str = "map"):
    return T["geometry_msgs/msg/PoseStamped"](_header(ns, frame), _pose(matrix))


def _odometry(ns: int, matrix: np.ndarray, child: str = "base_link"):
    zero = T["geometry_msgs/msg/Vector3"](0.0, 0.0, 0.0)
    twist = T["geometry_msgs/msg/TwistWithCovariance"](T["geometry_msgs/msg/Twist"](zero, zero), np.zeros(36))
    pose = T["geometry_msgs/msg/PoseWithCovariance"](_pose(matrix), np.zeros(36))
    return T["nav_msgs/msg/Odometry"](_header(ns, "odom"), child, pose, twist)


def _transforms(*transforms):
    out = []
    for ns, parent, child, matrix in transforms:
        t, q = quaternion_from_pose(matrix)
        out.append(
            T["geometry_msgs/msg/TransformStamped"](
                _header(ns, parent),
                child,
                T["geometry_msgs/msg/Transform"](
                    T["geometry_msgs/msg/Vector3"](*map(float, t)), T["geometry_msgs/msg/Quaternion"](*map(float, q))
                ),
            )
        )
    return T["tf2_msgs/msg/TFMessage"](out)


def _drive(count: int = 5):
    """(stamps, images, depths, map_from_base) of a short drive at 10 Hz."""
    rng = np.random.default_rng(0)
    stamps = [START + i * SECOND // 10 for i in range(count)]
    images = rng.integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)
    depths = rng.integers(500, 4000, (count, HEIGHT, WIDTH)).astype(np.float32) / 1000
    depths[:, :3] = 0
    base = trajectory("orbit", np.eye(4), count)
    return stamps, images, depths, base


def _record(
    path, storage="mcap", *, tf=True, info=None, poses=None, compressed=False, depth_shift=0, colour_as_depth=False
) -> None:
    stamps, images, depths, base = _drive()
    with BagWriter(path, storage=storage) as writer:
        image_type = "sensor_msgs/msg/CompressedImage" if compressed else "sensor_msgs/msg/Image"
        for topic, kind in {
            "/cam/image": image_type,
            "/cam/depth": "sensor_msgs/msg/Image",
            "/cam/camera_info": "sensor_msgs/msg/CameraInfo",
            "/tf": "tf2_msgs/msg/TFMessage",
            "/tf_static": "tf2_msgs/msg/TFMessage",
            "/plan": "nav_msgs/msg/Path",
            "/chatter": "std_msgs/msg/String",
        }.items():
            writer.add_topic(topic, kind, latched=topic == "/tf_static")
        if poses:
            writer.add_topic("/pose", poses)
        writer.write("/cam/camera_info", info or _info(START), START)
        writer.write("/chatter", T["std_msgs/msg/String"]("hello"), START)
        if tf:
            static = _transforms((0, "base_link", "camera_optical", BASE_FROM_CAMERA))
            writer.write("/tf_static", static, START)
        for stamp, image, depth, pose in zip(stamps, images, depths, base, strict=True):
            # The depth image comes first and 5 ms off.
            writer.write(
                "/cam/depth", _image(stamp + 5_000_000 + depth_shift, image if colour_as_depth else depth), stamp
            )
            if compressed:
                png = io.BytesIO()
                Image.fromarray(image).save(png, "PNG")
                data = np.frombuffer(png.getvalue(), np.uint8)
                message = T["sensor_msgs/msg/CompressedImage"](_header(stamp, "camera_optical"), "png", data)
            else:
                message = _image(stamp, image)
            writer.write("/cam/image", message, stamp + 1)
            if tf:
                writer.write(
                    "/tf", _transforms((stamp, "map", "odom", np.eye(4)), (stamp, "odom", "base_link", pose)), stamp
                )
            if poses == "nav_msgs/msg/Odometry":
                writer.write("/pose", _odometry(stamp, pose), stamp)
            elif poses:
                writer.write("/pose", _pose_stamped(stamp, pose @ BASE_FROM_CAMERA), stamp)
        path_message = T["nav_msgs/msg/Path"](_header(START, "map"), [_pose_stamped(0, pose) for pose in base])
        writer.write("/plan", T["nav_msgs/msg/Path"](_header(START, "map"), []), START)
        writer.write("/plan", path_message, START)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_views_come_back_as_they_were_recorded(tmp_path, storage):
    _record(tmp_path / "drive", storage)
    stamps, images, depths, base = _drive()
    views = list(read_views(tmp_path / "drive", "/cam/image", depth_topic="/cam/depth"))
    assert [view.stamp_ns for view in views] == stamps
    for view, image, depth, pose in zip(views, images, depths, base, strict=True):
        np.testing.assert_array_equal(view.image, image)
        np.testing.assert_allclose(view.depth, depth, atol=1e-6)
        np.testing.assert_allclose(view.world_from_camera, pose @ BASE_FROM_CAMERA, atol=1e-9)
        assert (view.camera.fx, view.camera.cx, view.camera.width) == (30.0, 15.5, WIDTH)
    # The file alone, without its folder's metadata, and fewer views.
    file = next(p for p in (tmp_path / "drive").iterdir() if p.suffix in (".mcap", ".db3"))
    few = list(read_views(file, "/cam/image", wanted=3))
    assert [view.stamp_ns for view in few] == [stamps[0], stamps[2], stamps[4]]
    assert few[0].depth is None


def test_compressed_images_are_read(tmp_path):
    _record(tmp_path / "drive", compressed=True)
    views = list(read_views(tmp_path / "drive", "/cam/image", depth_topic="/cam/depth"))
    np.testing.assert_array_equal(views[3].image, _drive()[1][3])


def test_poses_from_topics(tmp_path):
    _, _, _, base = _drive()
    _record(tmp_path / "stamped", tf=False, poses="geometry_msgs/msg/PoseStamped")
    views = list(read_views(tmp_path / "stamped", "/cam/image", pose_topic="/pose"))
    np.testing.assert_allclose([v.world_from_camera for v in views], base @ BASE_FROM_CAMERA, atol=1e-9)
    # Odometry is of base_link; the static transform leads on to the camera.
    _record(tmp_path / "odometry", poses="nav_msgs/msg/Odometry")
    views = list(read_views(tmp_path / "odometry", "/cam/image", pose_topic="/pose"))
    np.testing.assert_allclose([v.world_from_camera for v in views], base @ BASE_FROM_CAMERA, atol=1e-9)


def test_a_recording_without_poses_gives_one_view_at_the_origin(tmp_path):
    _record(tmp_path / "drive", tf=False)
    views = list(read_views(tmp_path / "drive", "/cam/image", depth_topic="/cam/depth"))
    assert len(views) == 1
    np.testing.assert_array_equal(views[0].world_from_camera, np.eye(4))


def test_poses_are_interpolated_between_their_stamps(tmp_path):
    stamps, images, _, _ = _drive(3)
    with BagWriter(tmp_path / "a") as writer:
        writer.add_topic("/cam/image", "sensor_msgs/msg/Image")
        writer.add_topic("/cam/camera_info", "sensor_msgs/msg/CameraInfo")
        writer.add_topic("/pose", "geometry_msgs/msg/PoseStamped")
        writer.write("/cam/camera_info", _info(START), START)
        ends = [np.eye(4), pose_from_quaternion((2, 0, 0), (0, 0, np.sin(np.pi / 4), np.cos(np.pi / 4)))]
        for stamp, pose in zip((stamps[0], stamps[2]), ends, strict=True):
            writer.write("/pose", _pose_stamped(stamp, pose), stamp)
        writer.write("/cam/image", _image(stamps[1], images[1]), stamps[1])
        writer.write("/cam/image", _image(stamps[2] + SECOND, images[2]), stamps[2])  # no pose within a second
    (view,) = read_views(tmp_path / "a", "/cam/image", pose_topic="/pose")
    half = pose_from_quaternion((1, 0, 0), (0, 0, np.sin(np.pi / 8), np.cos(np.pi / 8)))
    np.testing.assert_allclose(view.world_from_camera, half, atol=1e-9)


def test_the_root_of_the_transforms_is_the_world_where_none_is_named(tmp_path):
    _record(tmp_path / "drive")
    base = _drive()[3]
    for world in ("", "map", "odom"):
        views = list(read_views(tmp_path / "drive", "/cam/image", world_frame=world))
        np.testing.assert_allclose([v.world_from_camera for v in views], base @ BASE_FROM_CAMERA, atol=1e-9)
    moved = next(read_views(tmp_path / "drive", "/cam/image", world_frame="base_link"))
    np.testing.assert_allclose(moved.world_from_camera, BASE_FROM_CAMERA, atol=1e-9)


def test_distorted_images_are_straightened(tmp_path):
    _record(tmp_path / "drive", info=_info(START, d=(-0.3, 0.1, 0.0, 0.0, 0.0)))
    view = next(read_views(tmp_path / "drive", "/cam/image", depth_topic="/cam/depth"))
    raw = _drive()[1][0]
    assert (view.image != raw).any()
    np.testing.assert_allclose(view.image[12, 16].astype(int), raw[12, 16].astype(int), atol=12)  # the middle stays
    recorded = set(np.rint(_drive()[2][0] * 1000).reshape(-1).tolist())
    assert set(np.rint(view.depth * 1000).reshape(-1).tolist()) <= recorded, "depth was blended"


def test_the_newest_path_with_poses_is_read(tmp_path):
    _record(tmp_path / "drive")
    base = _drive()[3]
    np.testing.assert_allclose(read_path(tmp_path / "drive", "/plan"), base, atol=1e-9)
    moved = read_path(tmp_path / "drive", "/plan", base_frame="base_link", camera_frame="camera_optical")
    np.testing.assert_allclose(moved, base @ BASE_FROM_CAMERA, atol=1e-9)
    with pytest.raises(BagError, match="no frame 'moon'"):
        read_path(tmp_path / "drive", "/plan", world_frame="moon")
    with pytest.raises(BagError, match=r"'/cam/image' holds sensor_msgs/msg/Image"):
        read_path(tmp_path / "drive", "/cam/image")


def test_camera_info_lies_beside_the_image():
    assert camera_info_beside("/cam/image_raw") == "/cam/camera_info"
    assert camera_info_beside("/cam/color/image_raw/compressed") == "/cam/color/camera_info"
    assert camera_info_beside("/image") == "/camera_info"


def test_topics_are_found_where_none_is_named(tmp_path):
    _record(tmp_path / "drive")
    with Bag(tmp_path / "drive") as bag:
        assert find_topics(bag) == ("/cam/image", "/cam/depth")
    views = list(read_views(tmp_path / "drive"))
    assert len(views) == 5
    np.testing.assert_array_equal(views[2].image, _drive()[1][2])
    assert views[2].depth is not None
    with BagWriter(tmp_path / "other") as writer:
        for name in ("a/image", "color/image_raw"):
            writer.add_topic(f"/{name}", "sensor_msgs/msg/Image")
            writer.write(f"/{name}", _image(START, _drive()[1][0]), START)
            info = camera_info_beside(f"/{name}")
            writer.add_topic(info, "sensor_msgs/msg/CameraInfo")
            writer.write(info, _info(START), START)
        # Depth of another frame is not registered to the colour image.
        writer.add_topic("/stereo/depth", "sensor_msgs/msg/Image")
        writer.write("/stereo/depth", _image(START, _drive()[2][0], "other_frame"), START)
    with Bag(tmp_path / "other") as bag:
        assert find_topics(bag) == ("/color/image_raw", "")
    with BagWriter(tmp_path / "none") as writer:
        writer.add_topic("/image", "sensor_msgs/msg/Image")
        writer.write("/image", _image(START, _drive()[1][0]), START)
    with pytest.raises(BagError, match=r"no colour images with a camera_info beside them.*/image \(sensor_msgs"):
        list(read_views(tmp_path / "none"))


# --- recordings that are not right -----------------------------------------------------------------------------------


def test_a_missing_topic_names_those_there_are(tmp_path):
    _record(tmp_path / "drive")
    with pytest.raises(
        BagError, match=r"'/front/image'.*Topics that fit: /cam/depth, /cam/image\..*/chatter \(std_msgs"
    ):
        next(read_views(tmp_path / "drive", "/front/image"))
    with pytest.raises(BagError, match=r"'/cam/nothing' for the camera_info"):
        next(read_views(tmp_path / "drive", "/cam/image", camera_info_topic="/cam/nothing"))
    with pytest.raises(BagError, match=r"'/chatter' holds std_msgs/msg/String; the depth image is one of"):
        next(read_views(tmp_path / "drive", "/cam/image", depth_topic="/chatter"))


def test_frames_and_clocks_that_do_not_meet_are_named(tmp_path):
    _record(tmp_path / "drive", depth_shift=10 * SECOND)
    with pytest.raises(BagError, match=r"no frame 'world'; the frames are base_link, camera_optical, map, odom"):
        next(read_views(tmp_path / "drive", "/cam/image", world_frame="world"))
    with pytest.raises(BagError, match=r"within 0.03 s.*one clock"):
        next(read_views(tmp_path / "drive", "/cam/image", depth_topic="/cam/depth"))


@pytest.mark.parametrize(
    ("info", "sentence"),
    [
        (_info(START, width=64), "It is 32x24; the camera_info says 64x24"),
        (_info(START, fx=0.0), "the camera is not calibrated"),
        (_info(START, d=(0.1, 0.2)), "with 2 coefficients"),
    ],
)
def test_camera_infos_that_do_not_fit_are_named(tmp_path, info, sentence):
    _record(tmp_path / "drive", info=info)
    with pytest.raises(BagError, match=sentence):
        next(read_views(tmp_path / "drive", "/cam/image"))


def test_a_colour_topic_given_as_depth_is_named(tmp_path):
    _record(tmp_path / "drive", colour_as_depth=True)
    with pytest.raises(BagError, match=r"'/cam/depth' at \d+\.\d+ s .* encoding 'rgb8'; depth is 16UC1"):
        next(read_views(tmp_path / "drive", "/cam/image", depth_topic="/cam/depth"))
    with pytest.raises(BagError, match="both the colour and the depth"):
        next(read_views(tmp_path / "drive", "/cam/image", depth_topic="/cam/image"))


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_recordings_cut_off_anywhere_give_a_sentence(tmp_path, storage):
    _record(tmp_path / "drive", storage)
    file = next(p for p in (tmp_path / "drive").iterdir() if p.suffix in (".mcap", ".db3"))
    raw = file.read_bytes()
    for length in [0, 1, 8, 37, 100, len(raw) // 3, len(raw) // 2, len(raw) - 5000]:
        file.write_bytes(raw[:length])
        for source in (file, tmp_path / "drive"):
            with pytest.raises(BagError, match=r"recording .* cannot be read|has no messages on"):
                list(read_views(source, "/cam/image", depth_topic="/cam/depth"))


def test_recordings_with_damaged_bytes_give_a_sentence_or_views(tmp_path):
    _record(tmp_path / "drive")
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


def test_what_is_no_recording_is_named(tmp_path):
    with pytest.raises(BagError, match="There is no recording"):
        next(read_views(tmp_path / "nothing", "/a"))
    with pytest.raises(BagError, match=r"no metadata\.yaml and 0"):
        next(read_views(tmp_path, "/a"))
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(BagError, match="cannot be read"):
        next(read_views(tmp_path / "a.txt", "/a"))


# --- poses over time -------------------------------------------------------------------------------------------------


def _tree() -> TransformTree:
    tree = TransformTree()
    tree.add("map", "odom", 0, trajectory("right", np.eye(4), 2)[1], fixed=True)
    for i, pose in enumerate(trajectory("turn", np.eye(4), 3, angle=1.0)):
        tree.add("odom", "/base", i * SECOND, pose, fixed=False)
    tree.add("base", "camera", 0, BASE_FROM_CAMERA, fixed=True)
    tree.add("base", "lidar", 0, trajectory("up", np.eye(4), 2)[1], fixed=True)
    return tree


def test_transforms_are_chained_up_and_down_the_tree():
    tree, turned = _tree(), trajectory("turn", np.eye(4), 9, angle=1.0)
    right, up = (trajectory(name, np.eye(4), 2)[1] for name in ("right", "up"))
    for i in range(9):
        at = i * SECOND // 4
        np.testing.assert_allclose(tree.lookup("map", "camera", at, 0), right @ turned[i] @ BASE_FROM_CAMERA, atol=1e-9)
    np.testing.assert_allclose(tree.lookup("camera", "lidar", 0, 0), np.linalg.inv(BASE_FROM_CAMERA) @ up, atol=1e-9)
    back = tree.lookup("camera", "map", SECOND, 0) @ tree.lookup("map", "camera", SECOND, 0)
    np.testing.assert_allclose(back, np.eye(4), atol=1e-12)
    np.testing.assert_array_equal(tree.lookup("anything", "anything", 0, 0), np.eye(4))
    assert tree.root("camera") == "map"
    assert tree.frames == ["base", "camera", "lidar", "map", "odom"]


def test_transforms_that_are_not_known_are_said():
    tree = _tree()
    np.testing.assert_array_equal(  # a little past the end the last one holds
        tree.lookup("odom", "base", 2 * SECOND + 9, 10), tree.lookup("odom", "base", 2 * SECOND, 0)
    )
    for stamp in (2 * SECOND + 11, -11):
        with pytest.raises(
            UnknownPoseError, match=r"from 'base' to 'odom' is not known then: the nearest one is 0\.000 s"
        ):
            tree.lookup("map", "camera", stamp, 10)
    with pytest.raises(UnknownPoseError, match=r"no frame 'moon'; the frames are base, camera"):
        tree.lookup("moon", "camera", 0, 0)
    tree.add("island", "tree", 0, np.eye(4), fixed=True)
    with pytest.raises(UnknownPoseError, match="'map' and 'tree' are not connected"):
        tree.lookup("map", "tree", 0, 0)
    tree.add("camera", "map", 0, np.eye(4), fixed=True)
    with pytest.raises(UnknownPoseError, match="ring"):
        tree.lookup("island", "camera", 0, 0)


# --- writing ---------------------------------------------------------------------------------------------------------


def test_our_own_messages_are_recorded_and_read(tmp_path):
    name = "worldstereo_ros/msg/ImaginedView"
    with BagWriter(tmp_path / "out") as writer:
        writer.add_topic("/node/view", name)
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        message = writer.message(
            name,
            header=_header(START, "map"), seed_stamp=_time(START - 5), pose=_pose_stamped(START, np.eye(4)),
            camera_info=_info(START), image=_image(START, image), depth=_image(START, image),
            observed=_image(START, image), coverage=0.5, observed_fraction=0.25, index=3, count=7,
            confidence=_image(START, image),
        )  # fmt: skip
        writer.write("/node/view", message, START)
        writer.add_topic("/node/view", name)  # again: no harm
        with pytest.raises(BagError, match="is recorded as"):
            writer.add_topic("/node/view", "sensor_msgs/msg/Image")
    with Bag(tmp_path / "out") as bag:
        assert bag.topics == {"/node/view": name}
        register_type(bag._store, name)
        ((topic, stamp, raw),) = bag.messages(["/node/view"])
        view = bag.decode(topic, raw)
    assert (stamp, view.index, view.count, view.coverage) == (START, 3, 7, 0.5)


def test_serialized_messages_are_recorded_as_they_are(tmp_path):
    kind = "sensor_msgs/msg/Image"
    raw = bytes(STORE.serialize_cdr(_image(START, _drive()[1][0]), kind))
    with BagWriter(tmp_path / "out") as writer:
        writer.add_topic("/image", kind)
        writer.write("/image", raw, START)
    with Bag(tmp_path / "out") as bag:
        assert [bytes(message) for _, _, message in bag.messages(["/image"])] == [raw]


def test_latched_topics_say_so(tmp_path):
    from rosbags.interfaces import QosDurability
    from rosbags.rosbag2 import Reader

    _record(tmp_path / "drive")
    with Reader(tmp_path / "drive") as reader:
        durability = {c.topic: c.ext.offered_qos_profiles[0].durability for c in reader.connections}
    assert durability["/tf_static"] == QosDurability.TRANSIENT_LOCAL
    assert durability["/tf"] == QosDurability.VOLATILE


def test_writing_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "old").mkdir()
    with pytest.raises(BagError, match="exists already"):
        BagWriter(tmp_path / "old")
    writer = BagWriter(tmp_path / "new")
    with pytest.raises(BagError, match="was not declared"):
        writer.write("/a", b"", 0)
    for name, sentence in {"nonsense": "is no message type", "no_such_msgs/msg/Thing": "was not found"}.items():
        with pytest.raises(BagError, match=sentence):
            writer.add_topic("/a", name)
    with pytest.raises(BagError, match="is no message type"):
        writer.add_topic("/a", "../etc/msg/passwd")
    writer.close()
    writer.close()
    with pytest.raises(BagError, match="is closed"):
        writer.add_topic("/b", "std_msgs/msg/String")
    with pytest.raises(BagError, match="storage 'zip'"):
        BagWriter(tmp_path / "other", storage="zip")


def test_messages_serialized_by_rclpy_are_recorded(tmp_path):
    serialization = pytest.importorskip("rclpy.serialization")
    message_module = pytest.importorskip("worldstereo_ros.msg")
    message = message_module.ImaginedView()
    message.index, message.coverage = 4, 0.75
    message.header.frame_id = "map"
    name = "worldstereo_ros/msg/ImaginedView"
    with BagWriter(tmp_path / "out") as writer:
        writer.add_topic("/view", name)
        writer.write("/view", serialization.serialize_message(message), START)
    with Bag(tmp_path / "out") as bag:
        register_type(bag._store, name)
        ((topic, _, raw),) = bag.messages(["/view"])
        back = bag.decode(topic, raw)
    assert (back.index, back.coverage, back.header.frame_id) == (4, 0.75, "map")
