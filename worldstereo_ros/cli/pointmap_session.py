"""Sends the frames of a source through the estimation of point maps, for the commands that use it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldstereo_ros.utils.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from worldstereo_ros.cli.pointmap_sources import FrameSource, SourceFrame
    from worldstereo_ros.pipelines.pointmaps.session import Session
    from worldstereo_ros.pipelines.pointmaps.types import Pointmaps
    from worldstereo_ros.pipelines.pointmaps.windows import PointmapStream


@dataclass(frozen=True)
class Selection:
    """Which frames of a source are used, and what of them.

    Attributes:
        every: every n-th frame.
        also: numbers of further frames.
        most: at most so many frames; 0: all.
        poses: poses that come along are the poses of the result.
        scale: only the scale is taken from them, as from wheel odometry.
        depth: measured depth is used.
    """

    every: int = 1
    also: Collection[int] = ()
    most: int = 0
    poses: bool = False
    scale: bool = False
    depth: bool = True

    def takes(self, number: int) -> bool:
        """Whether a frame is used."""
        return number % self.every == 0 or number in self.also


def choose_method(method: str, weights: Path | None = None) -> str:
    """The method of "auto": small if the weights of the network are there, else map."""
    from worldstereo_ros.pipelines.pointmaps.refinement import is_available

    if method != "auto":
        return method
    return "small" if is_available(weights) else "map"


def open_stream(
    camera: Any, method: str, estimator: Any, device: str, *, weights: Path | None = None, prior: str = "tracks",
    steps: int = 1,
) -> PointmapStream:  # fmt: skip
    """A stream of the options of `worldstereo pointmaps`. Raises InputError if its network is missing."""
    from worldstereo_ros.pipelines.pointmaps.refinement import (
        check_works_without_prior,
        estimate_without_prior,
        load_model,
        refiner_of,
    )
    from worldstereo_ros.pipelines.pointmaps.windows import PointmapStream

    if method != "small":
        return PointmapStream(camera, method=method, estimator=estimator)
    model = load_model(weights, device, prior=prior == "tracks")
    if prior == "tracks":
        return PointmapStream(camera, method=method, estimator=estimator, refiner=refiner_of(model))
    check_works_without_prior(model)
    return PointmapStream(
        camera,
        method=method,
        estimator=estimator,
        estimate=lambda window: estimate_without_prior(
            list(window.images), window.camera if window.camera_known else None, model, steps=steps
        ),
    )


def feed(
    opened: FrameSource,
    stream: PointmapStream,
    session: Session,
    selection: Selection,
    on_frame: Callable[[int], None] = lambda done: None,
) -> tuple[list[int], np.ndarray | None]:
    """Sends frames through a stream into a session.

    Args:
        opened: the source.
        stream: of its camera.
        session: gets the point maps of the frames, and a message about damaged ones.
        selection: which frames, and what of them.
        on_frame: called with the number of frames that were read.

    Returns:
        Numbers of the frames in the source, and the poses (F, 4, 4) that tell the scale, NaN for frames without; None
        if they are not asked for.

    Raises:
        InputError: some frames have poses and others none, or fewer than 2 frames are used.
    """
    import numpy as np

    from worldstereo_ros.cli.summaries import damaged_frames_note

    waiting: list[SourceFrame] = []
    numbers: list[int] = []
    reference: list[np.ndarray] = []
    session.given_metric = opened.metric

    def store(maps: Pointmaps) -> None:
        part = waiting[: len(maps)]
        measured = [selection.depth and frame.depth is not None and bool((frame.depth > 0).any()) for frame in part]
        session.add(maps, [frame.image for frame in part], [frame.seconds for frame in part], measured)
        del waiting[: len(maps)]

    for frame in opened.read():
        if not selection.takes(number := frame.number):
            continue
        if selection.most and len(numbers) == selection.most:
            break
        if selection.poses and frame.pose is None:
            raise InputError(f"Frame {number} has no pose while others do; estimate the poses of all of them.")
        numbers.append(number)
        reference.append(np.full((4, 4), np.nan) if frame.pose is None else frame.pose)
        waiting.append(frame)
        depth, pose = frame.depth if selection.depth else None, frame.pose if selection.poses else None
        for maps in stream.push(frame.image, depth=depth, pose=pose):
            store(maps)
        on_frame(len(numbers))
    damaged = damaged_frames_note(list(opened.damaged.values()))
    if len(numbers) < 2:
        raise InputError(f"The source has {len(numbers)} frames to use; 2 at least were expected. {damaged}".strip())
    for maps in stream.finish():
        store(maps)
    if damaged:
        session.messages.append(damaged)
    return numbers, np.stack(reference) if selection.scale else None
