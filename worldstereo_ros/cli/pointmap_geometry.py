"""Poses and depth of a recording's frames by point maps, where neither a sensor nor TF gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worldstereo_ros.cli.options import INPUT
from worldstereo_ros.utils.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from worldstereo_ros.cli.pointmap_sources import FrameSource
    from worldstereo_ros.geometry.views import View

AUTO, RECORDED, SENSOR, MODEL_DEPTH, POINTMAPS = "auto", "recorded", "sensor", "model", "pointmaps"
POSE_SOURCES = (AUTO, RECORDED, POINTMAPS)
DEPTH_SOURCES = (AUTO, SENSOR, MODEL_DEPTH, POINTMAPS)
MAX_FRAMES = 300  # that are used of a longer source: its frames are thinned evenly
MAX_UNCOUNTED = 1000  # of a source that tells its length at the end only
MAX_LISTED = 8

PoseSource = Annotated[
    str,
    typer.Option(
        metavar="SOURCE",
        help="Poses: recorded, pointmaps (estimated from the video; the scale is that of poses or depth that come "
        "along, else a guess), or auto (recorded, else pointmaps where several frames are used).",
        rich_help_panel=INPUT,
    ),
]
DepthSource = Annotated[
    str,
    typer.Option(
        metavar="SOURCE",
        help="Depth: sensor (measured only), model (--depth-model), pointmaps, or auto (measured, else pointmaps where "
        "the poses are from there, else --depth-model).",
        rich_help_panel=INPUT,
    ),
]


@dataclass(frozen=True)
class PlacedFrames:
    """Frames that point maps gave a pose, depth, or both.

    Attributes:
        views: of the frames at their own size. Depth of point maps is *estimated*, and 0 where something moves or
            the confidence is low; views are `metric` if something measured the scale.
        numbers: of these frames in the source.
        notes: sentences for the user: what was left out, where the scale comes from, what failed.
        scale_from: what the unit of length is from, see `Pointmaps`.
    """

    views: list[View]
    numbers: list[int]
    notes: list[str]
    scale_from: str


def check_sources(pose_source: str, depth_source: str, depth_model: str = "") -> None:
    """Raises InputError if one of the options is unknown, or they contradict each other."""
    if pose_source not in POSE_SOURCES:
        raise InputError(f"--pose-source is '{pose_source}'; {_listed(POSE_SOURCES)} was expected.")
    if depth_source not in DEPTH_SOURCES:
        raise InputError(f"--depth-source is '{depth_source}'; {_listed(DEPTH_SOURCES)} was expected.")
    if depth_source in (MODEL_DEPTH, POINTMAPS) and depth_model == "none":
        raise InputError(f"--depth-source {depth_source} needs a depth model; remove --depth-model none.")
    if depth_source == SENSOR and depth_model not in ("", "none"):
        raise InputError("--depth-source sensor estimates nothing; remove it, or --depth-model.")


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def place_frames(
    opened: FrameSource,
    *,
    count: int = 0,
    wanted: Sequence[int] = (),
    estimate_poses: bool = True,
    depth_source: str = AUTO,
    depth_model: str = "",
    device: str = "cpu",
    on_frame: Callable[[int], None] = lambda done: None,
) -> PlacedFrames:
    """Estimates point maps of a source, and returns some of its frames with what they say.

    A frame that is damaged, whose pose was not found, or that lies in another shot than most, is left out, and a note
    says so.

    Args:
        opened: frames of one camera.
        count: so many frames, evenly spaced over those that were found; 0: all.
        wanted: numbers of the frames instead; -1 is the last one.
        estimate_poses: False: the poses that come along are used, and only depth is estimated.
        depth_source: see `DepthSource`.
        depth_model: estimator of the depth that point maps begin with.
        device: torch device.
        on_frame: called with the number of frames that were read.

    Raises:
        InputError: the pose of no frame that is asked for was found, or a number is out of range.
        DatasetError, BagError, DepthError: the source, a frame of `wanted`, or depth, cannot be had.
    """
    import numpy as np

    from worldstereo_ros.cli.pointmap_session import Selection, choose_method, feed, open_stream
    from worldstereo_ros.depth.estimators import NONE, load_depth_estimator
    from worldstereo_ros.io.files import DatasetError
    from worldstereo_ros.pipelines.pointmaps.session import Session
    from worldstereo_ros.utils.indices import evenly_spaced_indices

    notes = list(opened.notes)
    wanted = _in_range(wanted, opened.count)
    every = 1 if opened.count is None else max(1, -(-opened.count // MAX_FRAMES))
    if every > 1:
        notes.append(
            f"Every {every}th of the {opened.count} frames is used for point maps; `worldstereo pointmaps` takes more."
        )
    # Depth that is to be estimated must not come from the sensor that gives it.
    selection = Selection(
        every, wanted, 0 if opened.count is not None else MAX_UNCOUNTED, poses=not estimate_poses, scale=estimate_poses,
        depth=depth_source in (AUTO, SENSOR),
    )  # fmt: skip
    estimator = load_depth_estimator("" if depth_model == NONE else depth_model, device)
    stream = open_stream(opened.camera, choose_method(AUTO), estimator, device)
    with Session() as session:
        numbers, reference = feed(opened, stream, session, selection, on_frame)
        for number in wanted:
            if number in opened.damaged:  # the user named it, so that no other one can take its place
                raise DatasetError(opened.damaged[number])
        known = reference is not None and np.isfinite(reference).all(axis=(1, 2)).sum() > 1
        found = session.views(reference if known else None)
        position = {numbers[row]: index for index, row in enumerate(found.rows)}
        notes += [text for text in session.messages if "metric: false" not in text]
        notes.append(describe_scale(found.scale_from, found.metric))
        chosen = list(wanted) or [
            list(position)[i] for i in evenly_spaced_indices(len(position), count or len(position))
        ]
        lost = [number for number in chosen if number not in position]
        if lost:
            listed = ", ".join(map(str, lost[:MAX_LISTED])) + (" ..." if len(lost) > MAX_LISTED else "")
            notes.append(f"Left out: the pose of frame {listed} was not found, or it lies in another shot.")
        chosen = [number for number in chosen if number in position]
        if not chosen:
            raise InputError(f"No frame that was asked for has a pose. {' '.join(notes)}")
        views: dict[int, View] = {}
        for frame in opened.read():
            if (number := frame.number) not in chosen:
                continue
            of_maps, dynamic, confidence = found.load(position[number])
            views[number] = _view(frame, of_maps, dynamic, confidence, depth_source, keep_pose=not estimate_poses)
            if len(views) == len(chosen):
                break
    return PlacedFrames([views[number] for number in chosen], chosen, notes, found.scale_from)


def _in_range(wanted: Sequence[int], count: int | None) -> list[int]:
    if count is None:
        return list(wanted)
    wrong = [number for number in wanted if not -count <= number < count]
    if wrong:
        raise InputError(f"There is no frame {wrong[0]}; the {count} frames are 0 to {count - 1}. -1 is the last one.")
    return [number % count for number in wanted]


def describe_scale(scale_from: str, metric: bool) -> str:
    """A sentence about the unit of length of point maps."""
    from worldstereo_ros.pipelines.pointmaps.types import GUESS

    if scale_from == GUESS:
        return "Poses are estimated by point maps; lengths are a guess of the depth network (metric: false)."
    what = "Depth is" if scale_from == "given poses" else "Poses are"
    unit = "lengths are metres" if metric else "their unit is arbitrary (metric: false)"
    return f"{what} estimated by point maps; the scale is that of the {scale_from}, and {unit}."


def _view(
    frame: Any, of_maps: View, dynamic: np.ndarray, confidence: np.ndarray, depth_source: str, *, keep_pose: bool
) -> View:
    """A frame at its own size, with the pose and the depth of its point map."""
    import cv2
    import numpy as np

    from worldstereo_ros.pipelines.pointmaps.session import MIN_MAP_CONFIDENCE

    height, width = frame.image.shape[:2]

    def enlarged(array: np.ndarray) -> np.ndarray:
        if array.shape == (height, width):
            return array
        return cv2.resize(array.astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)

    moves = enlarged(dynamic) > 0.5
    view = replace(
        of_maps, image=np.ascontiguousarray(frame.image), camera=of_maps.camera.resized(width, height),
        world_from_camera=frame.pose if keep_pose else of_maps.world_from_camera, depth=None, estimated=None,
        depth_confidence=None,
    )  # fmt: skip
    measured = frame.depth is not None and bool((frame.depth > 0).any())
    if depth_source in (AUTO, SENSOR) and measured:
        return replace(view, depth=np.where(moves, 0, frame.depth).astype(np.float32))
    if depth_source in (MODEL_DEPTH, SENSOR):
        return view
    sure = enlarged(confidence).astype(np.float32)
    assert of_maps.depth is not None
    depth = np.where((sure >= MIN_MAP_CONFIDENCE) & ~moves, enlarged(of_maps.depth), 0).astype(np.float32)
    return replace(view, depth=depth, estimated=np.ones(depth.shape, bool), depth_confidence=sure)
