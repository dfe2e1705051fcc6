"""Between point clouds and `sensor_msgs/PointCloud2`: x y z rgb in 16 bytes, as RViz, Foxglove and Nav2 read it."""

from __future__ import annotations

import array

import numpy as np
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

_XYZRGB = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<u4")])
_FLOAT32 = PointField.FLOAT32


def thinned(count: int, most: int) -> slice | np.ndarray:
    """Which of `count` points to keep so that at most `most` are left, spread evenly; all of them as a slice."""
    if count <= most:
        return slice(None)
    return np.linspace(0, count - 1, most).astype(np.int64)


def cloud_message(
    points: np.ndarray, colours: np.ndarray, header: Header, *, observed: np.ndarray | None = None
) -> PointCloud2:
    """An unordered cloud.

    Args:
        points: (N, 3) float32 metres in the header's frame; points that are not finite are left out.
        colours: (N, 3) uint8 RGB; sent as the bits 0x00RRGGBB of a float32.
        header: frame and time.
        observed: (N,) bool; where given, a fifth field `observed` says 1 (a sensor saw it) or 0 (imagined).
    """
    points = np.asarray(points, dtype=np.float32)
    finite = _all_finite(points)
    if finite is not None:
        points, colours = points[finite], colours[finite]
        observed = None if observed is None else observed[finite]
    step = 16 if observed is None else 20
    count = len(points)
    # The array of the message is made first and packed in place: no second copy of the cloud.
    data = array.array("B", b"\0") * (count * step)
    if count:
        raw = np.frombuffer(data, dtype=np.uint8).reshape(count, step)
        numbers = raw.view("<f4")
        numbers[:, :3] = points
        raw.view("<u4")[:, 3] = _packed(colours)
        if observed is not None:
            numbers[:, 4] = observed
    message = PointCloud2(header=header, height=1, width=count, point_step=step, row_step=count * step)
    names = ("x", "y", "z", "rgb", "observed")[: step // 4]
    message.fields = [PointField(name=name, offset=4 * i, datatype=_FLOAT32, count=1) for i, name in enumerate(names)]
    message.is_dense = True
    message.is_bigendian = False
    message.data = data
    return message


def _all_finite(points: np.ndarray) -> np.ndarray | None:
    """(N,) bool where some point is not finite, None where all are."""
    # A sum is finite only if every term is (or it overflows, and then the slow way decides).
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(points.sum(dtype=np.float32)):
            return None
    finite = np.isfinite(points).all(axis=1)
    return None if finite.all() else finite


def _packed(colours: np.ndarray) -> np.ndarray:
    """(N,) uint32 0x00RRGGBB of (N, 3) uint8."""
    wide = colours.astype(np.uint32)
    return (wide[:, 0] << 16) | (wide[:, 1] << 8) | wide[:, 2]


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
            raise ValueError(f"The cloud has no float32 field '{name}' inside its {step} bytes a point.")
    if message.is_bigendian:
        raise ValueError("The cloud is big endian; little endian was expected.")
    if len(message.data) != count * step or step == 0:
        raise ValueError(
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
