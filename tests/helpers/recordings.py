"""Bags of a short drive, and the messages in them, without ROS."""

import io

import numpy as np
from PIL import Image
from rosbags.typesys import Stores, get_typestore

from worldstereo_ros.geometry.poses import pose_from_quaternion, quaternion_from_pose
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.imaging import codecs
from worldstereo_ros.io.bags.views import BagWriter

WIDTH, HEIGHT = 32, 24
STORE = get_typestore(Stores.ROS2_JAZZY)
TYPES = STORE.types
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
BASE_FROM_CAMERA = pose_from_quaternion((0.2, 0.0, 0.5), (-0.5, 0.5, -0.5, 0.5))  # z up base, optical camera


def time_message(ns: int):
    return TYPES["builtin_interfaces/msg/Time"](sec=ns // SECOND, nanosec=ns % SECOND)


def header(ns: int, frame: str):
    return TYPES["std_msgs/msg/Header"](stamp=time_message(ns), frame_id=frame)


def image_message(ns: int, image: np.ndarray, frame: str = "camera_optical"):
    encoding, height, width, step, data = (
        codecs.encode_colour(image) if image.dtype == np.uint8 else codecs.encode_depth(image, "16UC1")
    )
    return TYPES["sensor_msgs/msg/Image"](header(ns, frame), height, width, encoding, 0, step, data)


def info_message(ns: int, width: int = WIDTH, height: int = HEIGHT, fx: float = 30.0, d=()):
    k = np.array([fx, 0, 15.5, 0, fx, 11.5, 0, 0, 1])
    roi = TYPES["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    return TYPES["sensor_msgs/msg/CameraInfo"](
        header(ns, "camera_optical"), height, width, "plumb_bob", np.array(d, dtype=np.float64), k,
        np.eye(3).reshape(-1), np.zeros(12), 0, 0, roi,
    )  # fmt: skip


def pose_message(matrix: np.ndarray):
    t, q = quaternion_from_pose(matrix)
    return TYPES["geometry_msgs/msg/Pose"](
        TYPES["geometry_msgs/msg/Point"](*map(float, t)), TYPES["geometry_msgs/msg/Quaternion"](*map(float, q))
    )


def pose_stamped(ns: int, matrix: np.ndarray, frame: str = "map"):
    return TYPES["geometry_msgs/msg/PoseStamped"](header(ns, frame), pose_message(matrix))


def odometry(ns: int, matrix: np.ndarray, child: str = "base_link"):
    zero = TYPES["geometry_msgs/msg/Vector3"](0.0, 0.0, 0.0)
    twist = TYPES["geometry_msgs/msg/TwistWithCovariance"](TYPES["geometry_msgs/msg/Twist"](zero, zero), np.zeros(36))
    pose = TYPES["geometry_msgs/msg/PoseWithCovariance"](pose_message(matrix), np.zeros(36))
    return TYPES["nav_msgs/msg/Odometry"](header(ns, "odom"), child, pose, twist)


def transforms(*rows):
    """A TFMessage of rows (stamp in ns, parent, child, matrix)."""
    stamped = []
    for ns, parent, child, matrix in rows:
        t, q = quaternion_from_pose(matrix)
        stamped.append(
            TYPES["geometry_msgs/msg/TransformStamped"](
                header(ns, parent),
                child,
                TYPES["geometry_msgs/msg/Transform"](
                    TYPES["geometry_msgs/msg/Vector3"](*map(float, t)),
                    TYPES["geometry_msgs/msg/Quaternion"](*map(float, q)),
                ),
            )
        )
    return TYPES["tf2_msgs/msg/TFMessage"](stamped)


def drive(count: int = 5):
    """Returns (stamps, images, depths, map_from_base) of a short drive at 10 Hz."""
    rng = np.random.default_rng(0)
    stamps = [START + i * SECOND // 10 for i in range(count)]
    images = rng.integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)
    depths = rng.integers(500, 4000, (count, HEIGHT, WIDTH)).astype(np.float32) / 1000
    depths[:, :3] = 0
    base = trajectory("orbit", np.eye(4), count)
    return stamps, images, depths, base


def record(
    path, storage="mcap", *, tf=True, info=None, poses=None, compressed=False, depth_shift=0, colour_as_depth=False
) -> None:
    """Writes a bag of the drive with the topics of a camera driver, transforms, a path, and optionally poses."""
    stamps, images, depths, base = drive()
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
        writer.write("/cam/camera_info", info or info_message(START), START)
        writer.write("/chatter", TYPES["std_msgs/msg/String"]("hello"), START)
        if tf:
            static = transforms((0, "base_link", "camera_optical", BASE_FROM_CAMERA))
            writer.write("/tf_static", static, START)
        for stamp, image, depth, pose in zip(stamps, images, depths, base, strict=True):
            # The depth image is written first, 5 ms later by its stamp.
            writer.write(
                "/cam/depth", image_message(stamp + 5_000_000 + depth_shift, image if colour_as_depth else depth), stamp
            )
            if compressed:
                png = io.BytesIO()
                Image.fromarray(image).save(png, "PNG")
                data = np.frombuffer(png.getvalue(), np.uint8)
                message = TYPES["sensor_msgs/msg/CompressedImage"](header(stamp, "camera_optical"), "png", data)
            else:
                message = image_message(stamp, image)
            writer.write("/cam/image", message, stamp + 1)
            if tf:
                writer.write(
                    "/tf",
                    transforms((stamp, "map", "odom", np.eye(4)), (stamp, "odom", "base_link", pose)),
                    stamp,
                )
            if poses == "nav_msgs/msg/Odometry":
                writer.write("/pose", odometry(stamp, pose), stamp)
            elif poses:
                writer.write("/pose", pose_stamped(stamp, pose @ BASE_FROM_CAMERA), stamp)
        path_message = TYPES["nav_msgs/msg/Path"](header(START, "map"), [pose_stamped(0, pose) for pose in base])
        writer.write("/plan", TYPES["nav_msgs/msg/Path"](header(START, "map"), []), START)
        writer.write("/plan", path_message, START)
