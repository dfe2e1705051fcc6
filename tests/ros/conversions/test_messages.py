"""Conversions between messages and numpy arrays."""

from __future__ import annotations

import array
import dataclasses
import io
import math
from dataclasses import replace

import numpy as np
import pytest
from geometry_msgs.msg import Pose, PoseStamped
from nav_msgs.msg import Path
from PIL import Image as PngImage
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointField
from std_msgs.msg import Header
from worldstereo_ros.action import ImaginePath
from worldstereo_ros.srv import ImagineView

from worldstereo_ros.geometry.calibration import calibration_from_info
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.imaging.image_checks import ImageError
from worldstereo_ros.imaging.pixel_formats import COLOUR_FORMATS, DEPTH_FORMATS
from worldstereo_ros.ros.conversions import clouds, markers, messages
from worldstereo_ros.ros.node.jobs import ErrorCode

HEADER = Header(frame_id="camera")
RANDOM = np.random.default_rng(3)


def test_error_codes_equal_interface_constants():
    for kind in (ImaginePath.Result, ImagineView.Request):
        assert {code.name: int(code) for code in ErrorCode} == {
            code.name: getattr(kind, code.name) for code in ErrorCode
        }


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7)])
def test_colour_round_trip(shape):
    image = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    message = messages.colour_message(image, HEADER)
    assert isinstance(message.data, array.array)
    back = messages.image_array(message)
    assert back.shape == (5, 7, 3)
    np.testing.assert_array_equal(back if image.ndim == 3 else back[..., 1], image)


def test_depth_round_trip():
    depth = RANDOM.uniform(0.1, 9, (4, 6)).astype(np.float32)
    depth[1, 2] = 0
    message = messages.depth_message(depth, HEADER)
    assert math.isnan(np.frombuffer(message.data, "<f4").reshape(4, 6)[1, 2])
    np.testing.assert_array_equal(messages.depth_array(message), depth)


def test_mask_message_is_255_where_true():
    mask = RANDOM.random((4, 6)) > 0.5
    np.testing.assert_array_equal(np.asarray(messages.mask_message(mask, HEADER).data).reshape(4, 6) == 255, mask)


@pytest.mark.parametrize("depth", [False, True])
def test_check_image_accepts_what_is_decoded_and_nothing_else(depth):
    formats, decode = (DEPTH_FORMATS, messages.depth_array) if depth else (COLOUR_FORMATS, messages.image_array)
    for encoding, layout in formats.items():
        step = 4 * layout.row_bytes_per_pixel
        message = messages.colour_message(np.zeros((layout.rows(4), step), np.uint8), HEADER)
        message.encoding, message.height, message.width = encoding, 4, 4
        messages.check_image(message, 16, depth=depth)
        assert decode(message).shape[:2] == (4, 4)
        with pytest.raises(ImageError, match=r"at most 15 pixels .*max_image_pixels"):
            messages.check_image(message, 15, depth=depth)
        message.step = step - 1
        for call in (lambda m: messages.check_image(m, 16, depth=depth), decode):
            with pytest.raises(ImageError, match="step"):
                call(message)
    message.encoding = "rgb8" if depth else "16UC1"
    with pytest.raises(ImageError, match=r"Is this the (colour|depth) topic"):
        messages.check_image(message, 16, depth=depth)


def test_bytes_of_waiting_images_are_bounded_as_their_pixels_are():
    """A column of one pixel, padded to a gigabyte, would wait with 15 others like it."""
    size = messages.MIN_ACCEPTED_BYTES
    padded = Image(encoding="mono8", height=1, width=1, step=size + 1, data=array.array("B", bytes(size + 1)))
    file = io.BytesIO()
    PngImage.new("L", (40, 30)).save(file, "PNG")
    long_file = CompressedImage(format="png", data=array.array("B", file.getvalue() + bytes(size)))
    for call in (messages.check_image, messages.check_compressed_image):
        message = padded if call is messages.check_image else long_file
        with pytest.raises(ImageError, match=r"at most 1048576 are accepted for 1200 pixels .*max_image_pixels"):
            call(message, 1200)
        call(message, 100_000)


def test_check_compressed_image_reads_the_header_only(monkeypatch):
    file = io.BytesIO()
    PngImage.new("L", (40, 30)).save(file, "PNG")
    message = CompressedImage(
        format="mono8; png compressed ", data=messages.bytes_field(np.frombuffer(file.getvalue(), np.uint8))
    )
    messages.check_compressed_image(message, 1200)
    assert messages.image_array(message).shape == (30, 40, 3)
    monkeypatch.setattr(PngImage.Image, "convert", lambda *_: pytest.fail("pixels were decoded"))
    with pytest.raises(ImageError, match=r"is 40x30; at most 1199 pixels .*max_image_pixels"):
        messages.check_compressed_image(message, 1199)
    message.format = "16UC1; png compressed "
    with pytest.raises(ImageError, match="holds depth"):
        messages.check_compressed_image(message, 1200)
    with pytest.raises(ImageError, match="no data"):
        messages.check_compressed_image(CompressedImage(), 1200)
    with pytest.raises(ImageError, match="PostScript"):
        messages.check_compressed_image(CompressedImage(data=array.array("B", b"%!PS-Adobe-3.0 EPSF-3.0")), 1200)


def test_bytes_field_of_empty_and_strided_arrays():
    assert len(messages.bytes_field(np.zeros((0, 5), np.float32))) == 0
    assert messages.bytes_field(np.arange(6, dtype=np.uint8)[::2]).tolist() == [0, 2, 4]


def test_pose_round_trip():
    for _ in range(20):
        q = RANDOM.normal(size=4)
        pose = Pose()
        pose.position.x, pose.position.y, pose.position.z = RANDOM.normal(size=3)
        pose.orientation.x, pose.orientation.y, pose.orientation.z, pose.orientation.w = q / np.linalg.norm(q)
        matrix = messages.pose_matrix(pose)
        np.testing.assert_allclose(messages.pose_matrix(messages.pose_message(matrix)), matrix, atol=1e-12)


@pytest.mark.parametrize("stamp", [0, 1, 999_999_999, 10**9, 1_795_172_304_502_046_803])
def test_stamp_round_trip(stamp):
    assert messages.nanoseconds(messages.time_message(stamp)) == stamp


def test_out_of_range_stamps_are_clamped():
    assert messages.nanoseconds(messages.time_message(-5)) == 0
    assert messages.time_message(2**70).sec == 2**31 - 1


def test_camera_info_round_trip():
    camera = Camera(64, 48, 50.0, 51.0, 31.0, 24.0)
    info = messages.info_message(camera, HEADER)
    calibration = calibration_from_info(info)
    assert calibration.camera == camera
    assert not calibration.coefficients.size
    assert info.p[0] == 50.0


def test_camera_info_with_roi_and_binning():
    info = messages.info_message(Camera(640, 480, 500.0, 500.0, 320.0, 240.0), HEADER)
    info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height = 100, 50, 400, 300
    info.binning_x = info.binning_y = 2
    camera = calibration_from_info(info).camera
    assert (camera.width, camera.height) == (200, 150)
    assert camera.fx == 250.0
    assert camera.cx == pytest.approx((320 - 100 + 0.5) / 2 - 0.5)


def test_invalid_camera_info_raises():
    good = messages.info_message(Camera(64, 48, 50.0, 51.0, 31.0, 24.0), HEADER)
    for change, word in (
        ({"k": [0.0] * 9}, "calibrated"),
        ({"k": [math.nan, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0]}, "finite"),
        ({"d": [math.inf, 0.0, 0.0, 0.0, 0.0]}, "finite"),
        ({"d": [0.1, 0.0, 0.0], "distortion_model": "plumb_bob"}, "plumb_bob"),
        ({"width": 0}, "size"),
    ):
        info = CameraInfo(width=good.width, height=good.height, k=good.k, d=good.d)
        for name, value in change.items():
            setattr(info, name, value)
        with pytest.raises(ValueError, match=word):
            calibration_from_info(info)


@pytest.mark.parametrize(
    ("model", "d"),
    [("plumb_bob", [0.2, -0.05, 0.001, 0.002, 0.01]), ("equidistant", [0.1, 0.02, -0.01, 0.003])],
)
def test_images_are_undistorted(model, d):
    """A straight line in the world that the lens bends is straight after undistortion."""
    import cv2

    camera = Camera(200, 150, 150.0, 150.0, 99.5, 74.5)
    line = np.stack([np.linspace(-0.5, 0.5, 400), np.full(400, 0.35), np.ones(400)], axis=1)
    zero = np.zeros(3)
    if model == "equidistant":
        pixels = cv2.fisheye.projectPoints(line[None], zero, zero, camera.matrix, np.array(d))[0].reshape(-1, 2)
    else:
        pixels = cv2.projectPoints(line, zero, zero, camera.matrix, np.array(d))[0].reshape(-1, 2)
    image = np.zeros((150, 200, 3), np.uint8)
    for x, y in pixels.round().astype(int):
        if 0 <= x < 200 and 0 <= y < 150:
            cv2.circle(image, (int(x), int(y)), 1, (255, 255, 255), -1)
    depth = np.where(image[..., 0] > 0, np.float32(2), np.float32(0))
    info = messages.info_message(camera, HEADER)
    info.d, info.distortion_model = d, model
    calibration = calibration_from_info(info)
    straight, straight_depth = calibration.undistort(image, depth)
    seen_by = calibration.undistorted_camera  # without the pixels that the lens did not see
    assert straight.shape == (seen_by.height, seen_by.width, 3)
    expected = 150.0 * 0.35 + seen_by.cy
    rows, columns = np.nonzero(straight[..., 0] > 128)
    middle = (columns > 40) & (columns < 160)
    assert middle.sum() > 100
    assert np.abs(rows[middle] - expected).max() <= 2.5
    assert set(np.unique(straight_depth)) == {0.0, 2.0}  # depths are never interpolated


def test_path_in_several_frames():
    path = Path(header=Header(frame_id="map"))
    for frame in ("", "odom"):
        pose = PoseStamped(header=Header(frame_id=frame))
        pose.pose.orientation.w = 1.0
        path.poses.append(pose)
    frames, poses = messages.path_matrices(path)
    assert frames == ["map", "odom"]
    np.testing.assert_array_equal(poses, np.tile(np.eye(4), (2, 1, 1)))


# --- clouds ---


def test_cloud_round_trip():
    points = RANDOM.normal(size=(1000, 3)).astype(np.float32)
    colours = RANDOM.integers(0, 256, (1000, 3), dtype=np.uint8)
    message = clouds.cloud_message(points, colours, HEADER)
    assert len(message.data) == message.width * message.height * message.point_step == 16_000
    assert message.is_dense
    back, back_colours = clouds.cloud_arrays(message)
    np.testing.assert_array_equal(back, points)
    np.testing.assert_array_equal(back_colours, colours)


def test_cloud_colours_are_packed_as_rviz_reads_them():
    message = clouds.cloud_message(np.ones((1, 3), np.float32), np.array([[1, 2, 3]], np.uint8), HEADER)
    assert np.frombuffer(message.data, "<u4")[3] == 0x00010203
    field = message.fields[3]
    assert (field.name, field.offset, field.datatype, field.count) == ("rgb", 12, PointField.FLOAT32, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_points_are_removed(bad):
    points = np.arange(30, dtype=np.float32).reshape(10, 3)
    points[4, 1] = bad
    message = clouds.cloud_message(points, np.zeros((10, 3), np.uint8), HEADER, observed=np.arange(10) % 2 == 0)
    assert message.width == 9
    kept = np.frombuffer(message.data, "<f4").reshape(9, 5)
    np.testing.assert_array_equal(kept[:, :3], np.delete(points, 4, axis=0))
    np.testing.assert_array_equal(kept[:, 4], np.delete(np.arange(10) % 2 == 0, 4))


def test_attributes_of_points_are_fields():
    points = np.arange(30, dtype=np.float32).reshape(10, 3)
    points[4, 1] = np.nan
    classes = (np.arange(10) % 3 + 1).astype(np.uint8)
    confidence = np.linspace(0, 1, 10, dtype=np.float32)
    message = clouds.cloud_message(
        points, np.zeros((10, 3), np.uint8), HEADER, depth_confidence=confidence, provenance=classes
    )
    fields = [(field.name, field.offset, field.datatype) for field in message.fields[4:]]
    assert fields == [("depth_confidence", 16, PointField.FLOAT32), ("provenance", 20, PointField.UINT8)]
    assert message.point_step == 24
    raw = np.frombuffer(message.data, np.uint8).reshape(9, 24)
    np.testing.assert_array_equal(raw[:, 20], np.delete(classes, 4))
    assert not raw[:, 21:].any()
    np.testing.assert_array_equal(raw[:, 16:20].copy().view("<f4")[:, 0], np.delete(confidence, 4))
    np.testing.assert_array_equal(clouds.cloud_arrays(message)[0], np.delete(points, 4, axis=0))


def test_large_finite_points_are_kept():
    points = np.full((4, 3), 3e38, np.float32)  # their sum overflows
    assert clouds.cloud_message(points, np.zeros((4, 3), np.uint8), HEADER).width == 4


def test_empty_cloud():
    message = clouds.cloud_message(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), HEADER)
    assert (message.width, len(message.data), message.row_step) == (0, 0, 0)
    points, colours = clouds.cloud_arrays(message)
    assert points.shape == (0, 3)
    assert colours.shape == (0, 3)


def test_subsample_keeps_both_ends_and_the_limit():
    assert clouds.subsample(10, 10) == slice(None)
    kept = clouds.subsample(1_000_003, 1000)
    assert len(kept) == len(set(kept)) == 1000
    assert (kept[0], kept[-1]) == (0, 1_000_002)


def test_padded_cloud_is_read():
    """The layout of PCL: 32 bytes per point, colour at offset 16."""
    message = clouds.cloud_message(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.uint8), HEADER)
    raw = np.zeros((2, 8), "<f4")
    raw[:, :3] = [[1, 2, 3], [4, 5, 6]]
    raw.view("<u4")[:, 4] = 0x00FF8001
    message.point_step, message.row_step, message.data = 32, 64, messages.bytes_field(raw)
    message.fields[3].offset = 16
    points, colours = clouds.cloud_arrays(message)
    np.testing.assert_array_equal(points, [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(colours, [[255, 128, 1]] * 2)


def test_inconsistent_cloud_raises():
    def cloud():
        return clouds.cloud_message(np.ones((4, 3), np.float32), np.ones((4, 3), np.uint8), HEADER)

    for name, value in (("width", 5), ("point_step", 8), ("is_bigendian", True), ("fields", [])):
        message = cloud()
        setattr(message, name, value)
        with pytest.raises(ValueError, match="cloud"):
            clouds.cloud_arrays(message)


# --- views and markers ---


def imagined(x: float = 0.0) -> ImaginedView:
    camera = Camera(8, 6, 5.0, 5.0, 3.5, 2.5)
    pose = np.eye(4)
    pose[0, 3] = x
    return ImaginedView(
        image=np.full((6, 8, 3), 9, np.uint8),
        camera=camera,
        world_from_camera=pose,
        depth=None,
        observed=np.zeros((6, 8), bool),
        covered=np.ones((6, 8), bool),
        stamp_ns=7,
        index=2,
        count=5,
    )


def test_view_without_depth_has_unknown_depth():
    message = messages.view_message(imagined(1.0), HEADER, "map")
    assert np.isnan(np.frombuffer(message.depth.data, "<f4")).all()
    assert (message.index, message.count, message.coverage, message.observed_fraction) == (2, 5, 1.0, 0.0)
    assert message.pose.pose.position.x == 1.0
    assert messages.nanoseconds(message.observation_stamp) == 7


def test_views_survive_the_message():
    random = np.random.default_rng(4)
    observed, estimated = np.zeros((2, 6, 8), bool)
    observed[:2], estimated[2:4] = True, True
    view = dataclasses.replace(
        imagined(1.0),
        depth=random.uniform(1, 5, (6, 8)).astype(np.float32),
        observed=observed,
        estimated=estimated,
        confidence=random.random((6, 8), np.float32),
        depth_confidence=random.random((6, 8), np.float32),
    )
    message = messages.view_message(view, HEADER, "map")
    assert set(message.provenance.data) == {message.IMAGINED, message.ESTIMATED, message.OBSERVED}
    assert message.estimated_fraction == message.observed_fraction == pytest.approx(1 / 3)
    back = messages.view_from_message(message)
    for name in ("image", "depth", "observed", "estimated", "provenance", "world_from_camera"):
        np.testing.assert_array_equal(getattr(back, name), getattr(view, name), err_msg=name)
    for name in ("confidence", "depth_confidence"):
        np.testing.assert_allclose(getattr(back, name), getattr(view, name), atol=0.51 / 255, err_msg=name)
    plain = messages.view_from_message(messages.view_message(imagined(), HEADER, "map"))
    assert not plain.blocked
    assert messages.view_from_message(messages.view_message(replace(view, blocked=True), HEADER, "map")).blocked
    assert plain.estimated is plain.confidence is plain.depth_confidence is None
    assert not plain.observed.any()


def test_message_has_the_values_of_provenance():
    message = messages.ImaginedViewMessage()
    assert {kind.name: getattr(message, kind.name) for kind in Provenance} == {kind.name: kind for kind in Provenance}


def test_frusta_point_along_optical_axis():
    view = imagined(1.0)
    corners = markers.corners(view, 2.0)
    np.testing.assert_allclose(corners[0], [1, 0, 0])
    np.testing.assert_allclose(corners[1:].mean(axis=0), [1, 0, 2.0], atol=1e-9)
    np.testing.assert_allclose(corners[2, 0] - corners[1, 0], 2.0 * 8 / 5)
    observation = View(view.image, view.camera, np.eye(4))
    estimated = dataclasses.replace(observation, estimated=np.ones((6, 8), bool))
    marker_array = markers.frusta([observation, view, estimated, estimated], [imagined(0.0), view], HEADER)
    counts = {marker.ns: len(marker.points) for marker in marker_array.markers}
    assert counts == {"observed views": 16, "estimated views": 32, "imagined views": 32, "imagined path": 2}
    colours = [(m.color.r, m.color.g, m.color.b) for m in marker_array.markers[:3]]
    assert len(set(colours)) == 3


def test_empty_markers_delete_previous_ones():
    actions = {marker.action for marker in markers.frusta([], [], HEADER).markers}
    assert actions == {markers.Marker.DELETE}


def test_unproject_depth_equals_unproject():
    from worldstereo_ros.geometry.cameras import unproject
    from worldstereo_ros.geometry.poses import pose_from_quaternion
    from worldstereo_ros.ros.node.publishers import unproject_depth

    camera = Camera(40, 30, 33.0, 31.0, 18.0, 16.5)
    depth = RANDOM.uniform(0.5, 9, (30, 40)).astype(np.float32)
    q = RANDOM.normal(size=4)
    pose = pose_from_quaternion((1.0, -2.0, 3.0), q / np.linalg.norm(q))
    np.testing.assert_allclose(unproject_depth(depth, camera, pose), unproject(depth, camera, pose), atol=1e-5)
