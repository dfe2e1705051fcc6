"""Which example of detail each plane of a layout is drawn with: its own, or that of another surface of its kind."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.geometric.detail_rendering import PackedExamples, pack_examples
from worldstereo_ros.pipelines.geometric.plane_details import DetailExample, detail_example, share_profiles
from worldstereo_ros.pipelines.geometric.plane_detection import PlaneTexture
from worldstereo_ros.pipelines.geometric.room_closing import WALL, Room

# Of a surface, for its detail to be lent to others in full; that of a smaller one, which may be a radiator, is fainter.
LENT_AREA_M2 = 1.0


class SeenSurfaces(NamedTuple):
    """What the details of a layout's surfaces are found in.

    Attributes:
        observations: views with depth.
        textures: of the detected planes.
        room: what is assumed about the place.
        typical: indices of the walls of the usual colour.
    """

    observations: list[View]
    textures: list[PlaneTexture]
    room: Room
    typical: list[int]


def find_examples(seen: SeenSurfaces, threads: int = 1) -> tuple[PackedExamples, np.ndarray]:
    """Details of the detected planes, and (K,) int64 the example of every plane, assumed ones last; -1 = none.

    Args:
        seen: what was seen of the place.
        threads: number of threads to use.
    """
    textures, room = seen.textures, seen.room
    with ThreadPoolExecutor(max(1, threads)) as pool:  # each plane by itself
        found = list(pool.map(lambda texture: detail_example(seen.observations, texture, room.up, room.axis), textures))
    examples: list[DetailExample] = []
    example_of: list[int] = []
    for example in found:
        example_of.append(-1 if example is None else len(examples))
        if example is not None:
            examples.append(example)
    kinds = [*room.kinds, *(side.kind for side in room.sides if side.source < 0)]
    areas = [texture.area for texture in textures]
    own = list(example_of)
    lent: dict[int, int] = {}
    for index, kind in enumerate(kinds):
        if index < len(textures) and (own[index] >= 0 or not kind):
            continue
        # The like of it: the largest of the same kind, for walls among those of the usual colour.
        like = [
            other
            for other in range(len(textures))
            if room.kinds[other] == kind and own[other] >= 0 and (kind != WALL or other in seen.typical)
        ]
        best = -1
        if like:
            source = max(like, key=areas.__getitem__)
            best = lent.setdefault(own[source], own[source] if areas[source] >= LENT_AREA_M2 else len(examples))
            if best == len(examples):
                example = examples[own[source]]
                examples.append(example._replace(atlas=example.atlas * np.float32(areas[source] / LENT_AREA_M2)))
        if index < len(textures):
            example_of[index] = best
        else:
            example_of.append(best)
    order = sorted(range(len(textures)), key=lambda index: (index in seen.typical, areas[index]), reverse=True)
    ordered = [own[index] for index in order if own[index] >= 0]
    shared = share_profiles(examples, [*ordered, *(index for index in lent.values() if index not in own)])
    return pack_examples(shared), np.array(example_of, np.int64)
