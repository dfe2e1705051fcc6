"""Chunks and captures as AnyRecon's published code chooses them (`published`), for parity; ours is `captures.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.pipelines.anyrecon.published_rendering import MIN_DEPTH, project_published
from worldstereo_ros.pipelines.anyrecon.sequence import MAX_CAPTURES, RENDERS_PER_CHUNK


@dataclass(frozen=True)
class PublishedChunk:
    """A chunk of targets with its captures.

    Attributes:
        first, end: its targets, `end` excluded; frames count captures first.
        captures: indices of its captures, ascending.
        sums: points of each capture over the chunk, by its index; of every frame only the largest numbers count.
    """

    first: int
    end: int
    captures: list[int]
    sums: dict[int, int]


def count_points(
    points: np.ndarray,
    colours: np.ndarray,
    source: np.ndarray,
    camera: Camera,
    world_from_camera: np.ndarray,
    *,
    sources: int,
    min_depth: float = MIN_DEPTH,
) -> np.ndarray:
    """Counts the points of every capture in a picture, hidden ones as well.

    Args:
        points: (N, 3) world points.
        colours: (N, 3) uint8 RGB; black points do not count.
        source: (N,) index of the capture that each point came from.
        camera, world_from_camera: camera and (4, 4) pose of the picture.
        sources: number of captures.
        min_depth: near plane in the unit of the points.

    Returns:
        (sources,) int64.
    """
    *_, usable = project_published(
        np.asarray(points, np.float64), colours, camera, world_from_camera, min_depth=min_depth
    )
    return np.bincount(source[usable].astype(np.int64), minlength=sources)[:sources]


def published_chunks(
    counts: Sequence[Mapping[int, int]],
    captures: int,
    *,
    length: int = RENDERS_PER_CHUNK,
    limit: int = MAX_CAPTURES,
    per_frame: int = MAX_CAPTURES,
) -> list[PublishedChunk]:
    """Splits targets into chunks of equal length and selects captures for each; what is left over is dropped.

    Args:
        counts: points of each capture by its index, for every frame, captures first. Captures without points may be
            left out; of captures with equally many the one that comes first in the mapping is preferred.
        captures: number of captures, the first frames.
        length: targets of a chunk.
        limit: most captures of a chunk.
        per_frame: captures with most points whose numbers count, of every frame.
    """
    chunks = []
    for first in range(captures, len(counts) - length + 1, length):
        sums: dict[int, int] = {}
        for frame in counts[first : first + length]:
            for index, number in sorted(frame.items(), key=lambda item: -item[1])[:per_frame]:
                sums[index] = sums.get(index, 0) + number
        best = sorted(sums.items(), key=lambda item: -item[1])[:limit]
        chunks.append(PublishedChunk(first, first + length, sorted(index for index, _ in best), sums))
    return chunks
