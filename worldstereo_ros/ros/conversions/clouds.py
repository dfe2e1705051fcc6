"""Converts point clouds to and from `sensor_msgs/PointCloud2`: x y z rgb in 16 bytes, as RViz, Foxglove and Nav2 read.

A little-endian machine is assumed, as by torch. Messages are written here and not by sensor_msgs_py, whose
`create_cloud` keeps non-finite points and always sets `is_dense` to False.
"""

from __future__ import annotations

import array

import numpy as np
import numpy.lib.recfunctions as rfn
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.utils.jit import compiled

try:
    from sensor_msgs_py import point_cloud2
except ImportError:
    point_cloud2 = None

_FLOAT32 = PointField.FLOAT32


def subsample(count: int, max_points: int) -> slice | np.ndarray:
    """Returns the indices of at most `max_points` of `count` points, spread evenly; a full slice if all fit."""
    if count <= max_points:
        return slice(None)
    return np.linspace(0, count - 1, max_points).astype(np.int64)


def cloud_message(
    points: np.ndarray,
    colours: np.ndarray,
    header: Header,
    *,
    observed: np.ndarray | None = None,
    confidence: np.ndarray | None = None,
    depth_confidence: np.ndarray | None = None,
    provenance: np.ndarray | None = None,
) -> PointCloud2:
    """Packs points and colours into an unordered PointCloud2.

    Args:
        points: (N, 3) float32 metres in the header's frame; points with a non-finite coordinate are removed.
        colours: (N, 3) uint8 RGB; packed as the bits 0x00RRGGBB of a float32.
        header: frame and time.
        observed: (N,) bool; adds a float32 field `observed`: 1 = seen and measured by a sensor, else 0. Filters such as
            PCL's PassThrough accept float32 fields only.
        confidence, depth_confidence: (N,) probabilities in 0..1; add float32 fields of these names.
        provenance: (N,) uint8 values of `Provenance`; adds a uint8 field `provenance`.

    Raises:
        ValueError: points and colours are not both of shape (N, 3).
    """
    points = np.ascontiguousarray(points, dtype=np.float32)
    colours = np.ascontiguousarray(colours, dtype=np.uint8)
    if points.shape != colours.shape or points.ndim != 2 or points.shape[1] != 3:
        raise InputError(f"The points have shape {points.shape}, the colours {colours.shape}; both must be (N, 3).")
    layers = {"observed": observed, "confidence": confidence, "depth_confidence": depth_confidence}
    extra = {name: layer for name, layer in layers.items() if layer is not None}
    # The message's array is allocated first and packed in place, which saves a second copy of the cloud.
    data = array.array("B", b"\0") * (len(points) * 16)
    if not _pack(np.frombuffer(data, dtype=np.uint32), points.reshape(-1).view(np.uint32), colours.reshape(-1)):
        finite = np.isfinite(points).all(axis=1)
        kept = {name: layer[finite] for name, layer in extra.items()}
        kept_provenance = None if provenance is None else provenance[finite]
        return cloud_message(points[finite], colours[finite], header, **kept, provenance=kept_provenance)
    # One word of four bytes per field; the byte `provenance` is last, padded to a word.
    names = ["x", "y", "z", "rgb", *extra]
    words = len(names) + (provenance is not None)
    if words > 4:
        rows = np.empty((len(points), words), np.float32)
        rows[:, :4] = np.frombuffer(data, dtype=np.float32).reshape(-1, 4)
        for column, layer in enumerate(extra.values()):
            rows[:, 4 + column] = layer
        if provenance is not None:
            rows.view(np.uint32)[:, -1] = provenance  # little endian: the value is in the first byte
        data = array.array("B", rows.tobytes())
    message = PointCloud2(header=header, height=1, width=len(points), point_step=4 * words, row_step=len(data))
    message.fields = [PointField(name=name, offset=4 * i, datatype=_FLOAT32, count=1) for i, name in enumerate(names)]
    if provenance is not None:
        message.fields.append(PointField(name="provenance", offset=4 * len(names), datatype=PointField.UINT8, count=1))
    message.is_dense = True
    message.is_bigendian = False
    message.data = data
    return message


def organised_message(
    points: np.ndarray, colours: np.ndarray, confidence: np.ndarray, dynamic: np.ndarray, header: Header
) -> PointCloud2:
    """Packs a point map into an organised PointCloud2: a point for each pixel, NaN where there is none.

    Args:
        points: (H, W, 3) float32 metres in the header's frame.
        colours: (H, W, 3) uint8 RGB.
        confidence: (H, W) probability in 0..1 that the distance is right; field `confidence`, float32.
        dynamic: (H, W) bool, the point moves in the world; field `dynamic`, float32, 1 = it does.
        header: frame and time.

    Raises:
        ValueError: the sizes differ.
    """
    height, width = points.shape[:2]
    if (
        points.shape != (height, width, 3)
        or colours.shape != points.shape
        or {confidence.shape, dynamic.shape} != {(height, width)}
    ):
        raise InputError(
            f"The points have shape {points.shape}, the colours {colours.shape}, the confidence {confidence.shape} and "
            f"the mask {dynamic.shape}; all of one size (H, W) were expected."
        )
    names = ("x", "y", "z", "rgb", "confidence", "dynamic")
    rows = np.empty((height, width, len(names)), np.float32)
    rows[..., :3], rows[..., 4], rows[..., 5] = points, confidence, dynamic
    red, green, blue = (colours[..., channel].astype(np.uint32) for channel in range(3))
    rows.view(np.uint32)[..., 3] = (red << 16) | (green << 8) | blue
    step = 4 * len(names)
    message = PointCloud2(header=header, height=height, width=width, point_step=step, row_step=step * width)
    message.fields = [PointField(name=name, offset=4 * i, datatype=_FLOAT32, count=1) for i, name in enumerate(names)]
    message.is_dense = bool(np.isfinite(points).all())
    message.is_bigendian = False
    message.data = array.array("B", rows.tobytes())
    return message


@compiled
def _pack(out, points, colours):
    """Writes points (their bits, 3 N) and colours (3 N) into `out` (4 N); returns whether all coordinates are finite.

    Flat arrays with constant strides, because the compiler vectorises only those.
    """
    infinite = np.uint32(0)
    exponent = np.uint32(0x7F800000)  # an exponent of all ones encodes infinity and NaN
    for i in range(len(out) // 4):
        x, y, z = points[3 * i], points[3 * i + 1], points[3 * i + 2]
        infinite |= (
            np.uint32((x & exponent) == exponent)
            | np.uint32((y & exponent) == exponent)
            | np.uint32((z & exponent) == exponent)
        )
        out[4 * i], out[4 * i + 1], out[4 * i + 2] = x, y, z
        red, green, blue = np.uint32(colours[3 * i]), np.uint32(colours[3 * i + 1]), np.uint32(colours[3 * i + 2])
        out[4 * i + 3] = (red << np.uint32(16)) | (green << np.uint32(8)) | blue
    return infinite == 0


def cloud_arrays(message: PointCloud2) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads the points and colours of a PointCloud2 with float32 fields x, y, z and, optionally, rgb or rgba.

    The arrays are views of the message's data where its layout allows it, else copies.

    Returns:
        (points (N, 3) float32, colours (N, 3) uint8 RGB; None if the cloud has none).

    Raises:
        ValueError: a field is missing or not float32, the data is big endian, or the sizes disagree.
    """
    count, step = message.width * message.height, message.point_step
    fields = {field.name: field for field in message.fields}
    for name in ("x", "y", "z"):
        if name not in fields or fields[name].datatype != _FLOAT32 or fields[name].offset + 4 > step:
            raise InputError(f"The cloud has no float32 field '{name}' within its {step} bytes per point.")
    if message.is_bigendian:
        raise InputError("The cloud is big endian; little endian was expected.")
    if len(message.data) != count * step or step == 0:
        raise InputError(
            f"The cloud's data has {len(message.data)} bytes; {message.width}x{message.height} points of {step} bytes "
            f"are {count * step}."
        )
    read = _read_xyz if point_cloud2 is None else _read_xyz_sensor_msgs_py
    colour = fields.get("rgb") or fields.get("rgba")
    if colour is None or colour.offset + 4 > step:
        return read(message), None
    raw = np.frombuffer(message.data, dtype=np.uint8).reshape(count, step)
    # 0x00RRGGBB in little endian is B, G, R, 0: the first three bytes reversed are RGB, without a copy.
    return read(message), raw[:, colour.offset : colour.offset + 3][:, ::-1]


def _read_xyz_sensor_msgs_py(message: PointCloud2) -> np.ndarray:
    """(N, 3) float32 coordinates of a checked cloud, by sensor_msgs_py."""
    assert point_cloud2 is not None
    names = ["x", "y", "z"]
    return rfn.structured_to_unstructured(point_cloud2.read_points(message, field_names=names))


def _read_xyz(message: PointCloud2) -> np.ndarray:
    """(N, 3) float32 coordinates of a checked cloud, as `_read_xyz_sensor_msgs_py` reads them."""
    step = message.point_step
    raw = np.frombuffer(message.data, dtype=np.uint8).reshape(-1, step)
    offset_of = {field.name: field.offset for field in message.fields}
    offsets = [offset_of[name] for name in ("x", "y", "z")]
    if offsets == [offsets[0], offsets[0] + 4, offsets[0] + 8] and offsets[0] % 4 == 0 and step % 4 == 0:
        return raw.view("<f4")[:, offsets[0] // 4 : offsets[0] // 4 + 3]
    return np.stack([raw[:, o : o + 4].copy().view("<f4")[:, 0] for o in offsets], axis=1)
