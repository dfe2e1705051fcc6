"""Views, imagined views and scores as messages, and back, without loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields as dataclass_fields
from typing import Any

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.imaging.image_checks import check_size, depth_from_counts, depth_to_counts
from worldstereo_ros.planning.path_scores import PathScore, PathScores
from worldstereo_ros.serving.messages import array_of, compress, decompress, text, truth, whole
from worldstereo_ros.utils.errors import InputError

LAYERS: dict[str, type] = {
    "observed": np.bool_,
    "confidence": np.float32,
    "estimated": np.bool_,
    "depth_confidence": np.float32,
    "covered": np.bool_,
}
IMAGES = ("image", "conditioning")
MAX_REFERENCES = 4096
_SCORE_NUMBERS = (
    "length", "collision_probability", "clearance", "imagined_share", "unknown_share", "information_gain", "new_area",
    "score",
)  # fmt: skip
_SCORE_ARRAYS = (
    "pose_collision", "pose_clearance", "pose_imagined", "pose_unknown", "pose_gain", "pose_new_area",
)  # fmt: skip


def camera_fields(camera: Camera) -> dict[str, float]:
    """A camera as JSON; its numbers come back bit for bit."""
    plain = plain_camera(camera)
    return {name: getattr(plain, name) for name in ("width", "height", "fx", "fy", "cx", "cy")}


def plain_camera(camera: Camera) -> Camera:
    """The camera with Python's numbers, as one that came in a message has them.

    NumPy computes in float32 with those, and in float64 with its own scalars, which a field of view gives.
    """
    return Camera(camera.width, camera.height, *(float(v) for v in (camera.fx, camera.fy, camera.cx, camera.cy)))


def parse_camera(fields: Mapping[str, Any], max_pixels: int) -> Camera:
    """The camera of a message. Raises InputError, ImageError."""
    given = fields.get("camera")
    if not isinstance(given, dict):
        raise InputError("The field camera is missing; an object of width, height, fx, fy, cx and cy was expected.")
    width, height = (whole(given, name, None, 1, 2**31) for name in ("width", "height"))
    check_size(width, height, "The image", max_pixels)
    numbers = [given.get(name) for name in ("fx", "fy", "cx", "cy")]
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in numbers):
        raise InputError(f"The camera has fx, fy, cx, cy = {str(numbers)[:100]}; four numbers were expected.")
    return Camera(width, height, *(float(value) for value in numbers))  # type: ignore[arg-type]  # checked above


def view_message(view: View) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fields and arrays of a view, of which `parse_view` makes the same view."""
    from worldstereo_ros.io.images import encode_png

    fields: dict[str, Any] = {
        "camera": camera_fields(view.camera),
        "stamp_ns": int(view.stamp_ns),
        "metric": bool(view.metric),
    }
    arrays = {"pose": np.asarray(view.world_from_camera, np.float64)}
    for name in IMAGES:
        image = getattr(view, name, None)
        if image is not None:
            arrays[name] = np.frombuffer(encode_png(image), np.uint8)
    if view.depth is not None:
        arrays |= _depth_arrays(view.depth)
    for name, dtype in LAYERS.items():
        layer = getattr(view, name, None)
        if layer is not None:
            arrays[name] = compress(np.asarray(layer, dtype))
    if isinstance(view, ImaginedView):
        fields |= {
            "index": view.index,
            "count": view.count,
            "references": list(view.references),
            "blocked": bool(view.blocked),
        }
    return fields, arrays


def _depth_arrays(depth: np.ndarray) -> dict[str, np.ndarray]:
    """Millimetres as a PNG where they are all that there is, else the numbers themselves."""
    from worldstereo_ros.io.images import encode_png

    if depth.dtype != np.float32:
        depth = np.asarray(depth, np.float32)
    counts = depth_to_counts(depth)
    if np.array_equal(depth_from_counts(counts), depth):
        return {"depth_png": np.frombuffer(encode_png(counts), np.uint8)}
    return {"depth": compress(depth)}


def parse_view(fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray], max_pixels: int) -> View:
    """The observation of a message.

    Args:
        fields, arrays: of the message.
        max_pixels: largest image.

    Raises:
        InputError, ImageError: it is not usable.
    """
    return View(**_view_arguments(fields, arrays, max_pixels))


def parse_imagined(fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray], max_pixels: int) -> ImaginedView:
    """The imagined view of a message; see `parse_view`."""
    from worldstereo_ros.imaging.compressed_images import decode_image

    arguments = _view_arguments(fields, arrays, max_pixels)
    camera: Camera = arguments["camera"]
    shape = (camera.height, camera.width)
    for name in ("conditioning", "covered"):
        if name in arrays and name == "conditioning":
            data = array_of(arrays, name, np.uint8, 1)
            arguments[name] = decode_image(data.tobytes(), "The conditioning", max_pixels=max_pixels)
        elif name in arrays:
            arguments[name] = decompress(arrays[name], np.bool_, shape, "The layer covered")
    references = fields.get("references", [])
    if not isinstance(references, list) or len(references) > MAX_REFERENCES:
        raise InputError(f"The field references is no list of at most {MAX_REFERENCES} numbers.")
    return ImaginedView(
        **arguments,
        index=whole(fields, "index", 0, 0, 2**31),
        count=whole(fields, "count", 1, 1, 2**31),
        references=tuple(whole({"references": value}, "references", None, 0, 2**31) for value in references),
        blocked=truth(fields, "blocked", False),
    )


def _view_arguments(fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray], max_pixels: int) -> dict[str, Any]:
    from worldstereo_ros.imaging.compressed_images import decode_image

    camera = parse_camera(fields, max_pixels)
    shape = (camera.height, camera.width)
    arguments: dict[str, Any] = {
        "camera": camera,
        "world_from_camera": array_of(arrays, "pose", np.float64, 2),
        "stamp_ns": whole(fields, "stamp_ns", 0, -(2**63), 2**63 - 1),
        "metric": truth(fields, "metric", True),
    }
    data = array_of(arrays, "image", np.uint8, 1)
    arguments["image"] = decode_image(data.tobytes(), "The image", max_pixels=max_pixels)
    if "depth_png" in arrays:
        data = array_of(arrays, "depth_png", np.uint8, 1)
        counts = decode_image(data.tobytes(), "The depth image", depth=True, max_pixels=max_pixels)
        arguments["depth"] = depth_from_counts(counts)
    elif "depth" in arrays:
        arguments["depth"] = decompress(arrays["depth"], np.float32, shape, "The depth")
    for name in ("observed", "confidence", "estimated", "depth_confidence"):
        if name in arrays:
            arguments[name] = decompress(arrays[name], LAYERS[name], shape, f"The layer {name}")
    return arguments


def scores_message(scores: PathScores) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fields and arrays of scores. Numbers that are infinite or NaN, which JSON has not, are in the arrays."""
    fields = {
        "best": scores.best,
        "reason": scores.reason,
        "hypotheses": scores.hypotheses,
        "names": [score.name for score in scores.scores],
        "outside": [score.outside for score in scores.scores],
    }
    arrays = {"numbers": np.array([[getattr(score, n) for n in _SCORE_NUMBERS] for score in scores.scores], np.float64)}
    for index, score in enumerate(scores.scores):
        arrays[f"poses.{index}"] = np.stack([getattr(score, name) for name in _SCORE_ARRAYS]).astype(np.float32)
    return fields, arrays


def parse_scores(fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> PathScores:
    """The scores of a message. Raises InputError."""
    names, outside = fields.get("names"), fields.get("outside")
    numbers = array_of(arrays, "numbers", np.float64, 2)
    if not isinstance(names, list) or not isinstance(outside, list) or not len(names) == len(outside) == len(numbers):
        raise InputError("The scores have other numbers of names and rows; one for each path was expected.")
    assert {field.name for field in dataclass_fields(PathScore)} == {"name", "outside", *_SCORE_NUMBERS, *_SCORE_ARRAYS}
    scores = []
    for index, (name, row) in enumerate(zip(names, numbers, strict=True)):
        poses = array_of(arrays, f"poses.{index}", np.float32, 2)
        if row.shape != (len(_SCORE_NUMBERS),) or len(poses) != len(_SCORE_ARRAYS):
            raise InputError(f"The score of the path {str(name)[:60]!r} is incomplete.")
        values = dict(zip(_SCORE_NUMBERS, row.tolist(), strict=True))
        layers = dict(zip(_SCORE_ARRAYS, poses, strict=True))
        scores.append(PathScore(name=str(name), outside=int(outside[index]), **values, **layers))
    best = whole(fields, "best", None, 0, len(scores) - 1)
    return PathScores(scores, best, text(fields, "reason"), whole(fields, "hypotheses", None, 0, 10_000))
