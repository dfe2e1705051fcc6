"""Between point clouds and `sensor_msgs/PointCloud2`: x y z rgb in 16 bytes, as RViz, Foxglove and Nav2 read it.

The machine is little endian, as every machine that torch runs on.
"""

from __future__ import annotations

import array

import numpy as np
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.utils.jit import compiled

_FLOAT32 = PointField.FLOAT32


def thinned(count: int, most: int) -> slice | np.ndarray:
    """Which of `count` points to keep so that at most `most` are left, spread evenly; all of them as a slice."""
    if count <= most:
        return slice(None)
    return np.linspace(0, count - 1, most).astype(np.int64)


def cloud_message(
    points: np.ndarray,
    colours: np.ndarray,
    header: Header,
    *,
    observed: np.ndarray | None = None,
    confidence: np.ndarray | None = None,
) -> PointCloud2:
    """An unordered cloud.

    Args:
        points: (N, 3) float32 metres in the header's frame; points that are not finite are left out.
        colours: (N, 3) uint8 RGB; sent as the bits 0x00RRGGBB of a float32.
        header: frame and time.
        observed: (N,) bool; where given, a further field `observed` says 1 (a sensor saw it) or 0 (imagined).
        confidence: (N,) in 0..1; where given, a last field `confidence`.
    """
    points = np.ascontiguousarray(points, dtype=np.float32)
    colours = np.ascontiguousarray(colours, dtype=np.uint8)
    if points.shape != colours.shape or points.ndim != 2 or points.shape[1] != 3:
        raise InputError(f"The points have shape {points.shape}, the colours {colours.shape}; both must be (N, 3).")
    # The array of the message is made first and packed in place: no second copy of the cloud.
    data = array.array("B", b"\0") * (len(points) * 16)
    if not _pack(np.frombuffer(data, dtype=np.uint32), points.reshape(-1).view(np.uint32), colours.reshape(-1)):
        finite = np.isfinite(points).all(axis=1)
        observed = None if observed is None else observed[finite]
        confidence = None if confidence is None else confidence[finite]
        return cloud_message(points[finite], colours[finite], header, observed=observed, confidence=confidence)
    further = {name: value for name, value in (("observed", observed), ("confidence", confidence)) if value is not None}
    words = 4 + len(further)
    if further:
        rows = np.empty((len(points), words), np.float32)
        rows[:, :4] = np.frombuffer(data, dtype=np.float32).reshape(-1, 4)
        for column, value in enumerate(further.values()):
            rows[:, 4 + column] = value
        data = array.array("B", rows.tobytes())
    message = PointCloud2(header=header, height=1, width=len(points), point_step=4 * words, row_step=len(data))
    names = ("x", "y", "z", "rgb", *further)
    message.fields = [PointField(name=name, offset=4 * i, datatype=_FLOAT32, count=1) for i, name in enumerate(names)]
    message.is_dense = True
    message.is_bigendian = False
    message.data = data
    return message


@compiled
def _pack(out, points, colours):
    """Writes points (their bits, 3 N) and colours (3 N) into `out` (4 N); whether every coordinate is finite.

    Flat arrays and constant steps: the compiler makes vector instructions of nothing else here.
    """
    infinite = np.uint32(0)
    exponent = np.uint32(0x7F800000)  # all ones in it mean infinite or not a number
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
    """(points (N, 3) float32, colours (N, 3) uint8 or None) of a cloud with float32 x y z and, maybe, rgb.

    The points of a packed little-endian cloud are a view of the message's data, not a copy.

    Raises:
        ValueError: fields are missing or of other types, or the sizes disagree.
    """
    count, step = message.width * message.height, message.point_step
    fields = {field.name: field for field in message.fields}
    for name in ("x", "y", "z"):
        if name not in fields or fields[name].datatype != _FLOAT32 or fields[name].offset + 4 > step:
            raise InputError(f"The cloud has no float32 field '{name}' inside its {step} bytes a point.")
    if message.is_bigendian:
        raise InputError("The cloud is big endian; little endian was expected.")
    if len(message.data) != count * step or step == 0:
        raise InputError(
            f"The cloud's data has {len(message.data)} bytes; {message.width}x{message.height} points of {step} bytes "
            f"are {count * step}."
        )
    raw = np.frombuffer(message.data, dtype=np.uint8).reshape(count, step)
    offsets = [fields[name].offset for name in ("x", "y", "z")]
    if offsets == [offsets[0], offsets[0] + 4, offsets[0] + 8] and offsets[0] % 4 == 0 and step % 4 == 0:
        points = raw.view("<f4")[:, offsets[0] // 4 : offsets[0] // 4 + 3]
    else:
        points = np.stack([raw[:, o : o + 4].copy().view("<f4")[:, 0] for o in offsets], axis=1)
    colour = fields.get("rgb") or fields.get("rgba")
    if colour is None or colour.offset + 4 > step:
        return points, None
    # 0x00RRGGBB in little endian is B, G, R, 0: the three bytes backwards are RGB, with no copy.
    return points, raw[:, colour.offset : colour.offset + 3][:, ::-1]
