"""The captures of a segment, for any pipeline: photographs in front of the targets, and what the segment before ended
with.

`WorldModel` offers a pipeline everything it remembers. `SegmentPipeline` hands on the captures of the segment alone,
chosen by geometry, with the imagined views that memory holds. A pipeline that selects references for each view by
itself gets the captures of every single view: a few for a whole segment leave views without the capture that shows
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from worldstereo_ros.geometry.cameras import unproject
from worldstereo_ros.geometry.capture_paths import walk_order
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.anyrecon.captures import (
    CaptureSelection,
    captures_of_targets,
    select_captures,
    visible_shares,
)
from worldstereo_ros.pipelines.anyrecon.published_retrieval import count_points, published_chunks
from worldstereo_ros.pipelines.anyrecon.sequence import MAX_CAPTURES
from worldstereo_ros.pipelines.base import Conditioning, OnStep, Pipeline, PipelineFrame
from worldstereo_ros.utils.errors import InputError

if TYPE_CHECKING:
    import torch

VISIBLE, PUBLISHED = "visible", "published"
SELECTIONS = (VISIBLE, PUBLISHED)
MAX_COUNTED_POINTS = 20_000  # of a capture, in the published count
MIN_SHARE = 0.1  # of what a target shows; a capture that saw less is not its reference if an imagined view is


class SegmentPipeline:
    """A pipeline that gets the captures of its segment alone.

    Attributes:
        name, clip_length, selects_references: those of the pipeline.
        previous: the last view of the segment before, which the next one continues from; None: it starts from the
            capture that shows most of it.
        captures: indices of the captures of the last segment, among all observations; a model attends to these.
    """

    def __init__(self, pipeline: Pipeline, selection: str = VISIBLE, limit: int = MAX_CAPTURES) -> None:
        """Wraps a pipeline.

        Args:
            pipeline: the pipeline.
            selection: visible (ours: what each capture saw of the targets, with occlusion) or published (the code's
                count of points).
            limit: largest number of captures of a segment; 1 leaves the one that saw most. For pipelines that select
                references by themselves, of each view.

        Raises:
            InputError: the selection is unknown, or the limit is less than 1.
        """
        if selection not in SELECTIONS:
            raise InputError(f"The selection '{selection}' is unknown; {' or '.join(SELECTIONS)} was expected.")
        if limit < 1:
            raise InputError(f"The limit of captures is {limit}; at least 1 was expected.")
        self._pipeline, self._selection, self._limit = pipeline, selection, limit
        self.name, self.clip_length = pipeline.name, pipeline.clip_length
        self.selects_references = getattr(pipeline, "selects_references", False)
        self.previous: View | None = None
        self.captures: tuple[int, ...] = ()
        self._points: tuple[list[View], tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None

    def __call__(
        self, conditioning: Conditioning, *, prompt: str, generator: torch.Generator, on_step: OnStep
    ) -> Iterator[PipelineFrame]:
        """Yields the frames of the segment in order."""
        selection = self.choose(conditioning)
        self.captures = tuple(selection.indices)
        captures = [conditioning.observations[index] for index in selection.indices]
        numbers = selection.indices
        if self.selects_references:
            of_views = captures_of_targets(conditioning.observations, selection.shares, limit=self._limit)
            numbers = sorted({*numbers, *of_views})
        offered = [conditioning.observations[index] for index in numbers]
        imagined = [view for view in conditioning.references if not view.is_observation]
        start = self.previous if self.previous is not None else conditioning.start_view
        yield from self._pipeline(
            replace(
                conditioning,
                start_view=start,
                references=[*offered, *imagined],
                reference_index=_reference_index(conditioning, offered, imagined, selection.shares[:, numbers]),
                captures=captures,
            ),
            prompt=prompt,
            generator=generator,
            on_step=on_step,
        )

    def choose(self, conditioning: Conditioning) -> CaptureSelection:
        """The captures of the segment, indices among the observations; at least one if there is any."""
        captures, camera, poses = conditioning.observations, conditioning.camera, conditioning.world_from_camera
        depth = conditioning.renders.depth.cpu().numpy()
        if self._selection == PUBLISHED:
            points, colours, source = self._counted_points(captures)
            counts = [
                dict(enumerate(count_points(points, colours, source, camera, pose, sources=len(captures)).tolist()))
                for pose in poses
            ]
            chosen = published_chunks(counts, 0, length=len(poses), limit=self._limit)[0].captures
            if chosen:
                return CaptureSelection(chosen, visible_shares(captures, depth, camera, poses))
        return select_captures(captures, depth, camera, poses, limit=self._limit)

    def _counted_points(self, captures: list[View]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points, colours and capture of a regular sample of the pixels of all captures."""
        if self._points is None or self._points[0] != captures:
            points, colours, source = [np.zeros((0, 3))], [np.zeros((0, 3), np.uint8)], [np.zeros(0, np.int64)]
            for index, view in enumerate(captures):
                if view.depth is None:
                    continue
                step = max(1, int(np.sqrt(view.depth.size / MAX_COUNTED_POINTS)))
                known = view.depth[::step, ::step] > 0
                points.append(unproject(view.depth, view.camera, view.world_from_camera)[::step, ::step][known])
                colours.append(view.image[::step, ::step][known])
                source.append(np.full(int(known.sum()), index, np.int64))
            self._points = list(captures), (np.concatenate(points), np.concatenate(colours), np.concatenate(source))
        return self._points[1]


def _reference_index(
    conditioning: Conditioning, captures: list[View], imagined: list[View], shares: np.ndarray
) -> np.ndarray:
    """(F,) the reference of each target: the capture that saw most of it, else the imagined view that was retrieved.

    `shares` (F, C) of what each target shows that each capture saw.
    """
    old = np.asarray(conditioning.reference_index)
    numbers = {id(view): len(captures) + position for position, view in enumerate(imagined)}
    retrieved = np.array([numbers.get(id(conditioning.references[i]), -1) if i >= 0 else -1 for i in old], np.int64)
    if not captures:
        return retrieved
    best, share = shares.argmax(axis=1), shares.max(axis=1)
    seen = (share >= MIN_SHARE) | ((share > 0) & (retrieved < 0))
    return np.where(seen, best, retrieved)


def order_captures(views: Sequence[View]) -> list[int]:
    """An order of captures that depends on their poses alone, not on the order that they came in: a short walk.

    What is made of captures in this order is the same for any order that they are given in.
    """
    if not views:
        return []
    rows = np.stack([view.world_from_camera[:3].ravel() for view in views])
    first = np.lexsort(rows.T[::-1])
    walk = first[walk_order(np.stack([views[int(i)].world_from_camera for i in first]))]
    ends = [int(np.flatnonzero(first == walk[position])[0]) for position in (0, -1)]
    return [int(i) for i in (walk if ends[0] <= ends[1] else walk[::-1])]
