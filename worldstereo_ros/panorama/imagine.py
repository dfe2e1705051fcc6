"""Imagines a panorama at a position that was not observed: views in all directions, stitched.

The camera turns once on the spot, level, then tilted up and down in as many rings as it needs, then straight up and
down. Each ring is one path, remembered before the next, so that the rings agree. A level ring is one clip of the small
model, which sees both ends of the turn at once (measured in docs/guides/panorama.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import check_poses
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.memory.bank import ViewBank
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.panorama.closure import Closure, closure
from worldstereo_ros.panorama.depth import PanoramaDistance, panorama_distance
from worldstereo_ros.panorama.perspective_views import (
    observation_camera,
    observation_poses,
    panorama_views,
    pose_from_angles,
    rings,
    stitching_camera,
)
from worldstereo_ros.panorama.stitching import Panorama, panorama_from_views
from worldstereo_ros.pipelines.base import OnStep
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.world import WorldModel

ORDERS = ("round", "both", "alternate")
MEMORY_HEIGHT_PX = 128  # of the panorama of memory that gives estimated distances their scale
MIN_MEMORY_PX = 500  # with distance in both


@dataclass(frozen=True)
class ObservedPanorama:
    """What was remembered of a panorama.

    Attributes:
        points: number of points that were added, merged or confirmed.
        views: number of perspective views in memory; directions without any distance have none.
        estimated: the estimated distances; None if they were given.
    """

    points: int
    views: int
    estimated: PanoramaDistance | None


@dataclass(frozen=True)
class ImaginedPanorama:
    """An imagined panorama and its views.

    Attributes:
        panorama: the stitched image, with its provenance.
        views: all imagined views, in the order in which they were imagined.
        ring: the level views, in the order of a turn to the right.
        closure: how well the level ring closes, in colour and in distance; None if neighbouring views do not overlap.
    """

    panorama: Panorama
    views: list[ImaginedView]
    ring: list[ImaginedView]
    closure: Closure | None


def observe_panorama(
    world: WorldModel,
    image: np.ndarray,
    distance: np.ndarray | None = None,
    *,
    world_from_camera: np.ndarray | None = None,
    stamp_ns: int = 0,
) -> ObservedPanorama:
    """Adds a panorama that a camera took to a world model, as perspective views (`observation_poses`).

    Args:
        world: remembers the views; its depth estimator is used if there is no distance.
        image: (H, 2 H, 3) uint8 RGB, the full sphere.
        distance: (h, 2 h) float32 metres along the ray, measured, 0 = unknown; None: estimated, in one scale for all
            directions, that of the memory if it covers the surroundings. The views are then labelled as estimated.
        world_from_camera: (4, 4) pose of the panorama; None: the origin of the world.
        stamp_ns: time of the measurement in nanoseconds.

    Returns:
        What was remembered.

    Raises:
        ImageError: the image is not a full sphere. The memory is unchanged.
        InputError: there is neither distance nor a depth estimator. The memory is unchanged.
    """
    pose = np.eye(4) if world_from_camera is None else np.asarray(world_from_camera, np.float64)
    pose = check_poses(pose[None], "The panorama pose")[0]
    settings = {
        "world_from_camera": pose,
        "camera": observation_camera(image.shape[0]),
        "panorama_from_camera": observation_poses(),
        "stamp_ns": stamp_ns,
    }
    views = panorama_views(image, distance, **settings)  # checks the input
    estimated = None
    if distance is None:
        if world.depth_estimator is None:
            raise InputError(
                "The panorama has no distances and no depth estimator is loaded. Send distances, or choose a model "
                "that estimates them: the parameter `depth_model` of the node, or from Python "
                "WorldModel(depth_estimator=...), see load_depth_estimator."
            )
        estimated = panorama_distance(image, world.depth_estimator)
        estimated = replace(estimated, distance=_scale_to_memory(estimated.distance, world, pose))
        views = panorama_views(image, estimated.distance, estimated=True, confidence=estimated.confidence, **settings)
    points = count = 0
    for view in views:
        if view.depth is not None and (view.depth > 0).any():
            points += world.observe(view).inserted
            count += 1
    return ObservedPanorama(points, count, estimated)


def imagine_panorama(
    world: WorldModel,
    world_from_camera: np.ndarray,
    *,
    height: int = 512,
    camera: Camera | None = None,
    order: str = "round",
    prompt: str = "",
    seed: int = 0,
    remember: bool = False,
    on_step: OnStep | None = None,
) -> ImaginedPanorama:
    """Imagines the full sphere around a position.

    Args:
        world: a world model with at least one observation.
        world_from_camera: (4, 4) pose of the panorama; it should be upright (its y axis down).
        height: rows of the panorama; it has twice as many columns.
        camera: camera of the imagined views; None: 75 degrees wide, 4:3, with the resolution of the panorama.
        order: order of the views of a ring, one of `ORDERS`, see `ring_order`.
        prompt, seed, on_step: see `WorldModel.imagine`.
        remember: add the imagined views to the memories of `world`; else they stay unchanged.

    Raises:
        EmptyMemoryError: there is no observation yet.
        InputError: the pose is not a finite rigid transform, the height is below 8, or the order is unknown.
        ModelError: the pipeline failed.
    """
    pose = check_poses(np.asarray(world_from_camera, np.float64)[None], "The panorama pose")[0]
    camera = stitching_camera(height) if camera is None else camera
    # Rings agree only through memory: without `remember`, they are remembered in a copy.
    memory = world if remember else scratch_copy(world)
    views: list[ImaginedView] = []
    ring: list[ImaginedView] = []
    for number, angles in enumerate(rings(camera)):
        sequence = ring_order(len(angles), order)
        poses = np.stack([pose @ pose_from_angles(*angles[index]) for index in sequence])
        imagined = list(
            memory.imagine(poses, camera, prompt=prompt, seed=seed + number, remember=True, on_step=on_step)
        )
        views += imagined
        if number == 0:
            ring = [imagined[position] for position in np.argsort(sequence)]
    panorama = panorama_from_views(views, height, world_from_camera=pose)
    return ImaginedPanorama(panorama, views, ring, closure(ring, seam_joint(len(ring), order)))


def ring_order(count: int, order: str) -> list[int]:
    """The order in which the views of a ring are imagined.

    Args:
        count: number of views, which are numbered in the order of a turn to the right.
        order: "round": once around. "both": alternately to both sides, so that the two ends are imagined one after the
            other and meet behind. "alternate": every second view once around, then those between.

    Raises:
        InputError: the order is unknown.
    """
    if order not in ORDERS:
        raise InputError(f"The order '{order}' is unknown; one of {', '.join(ORDERS)} was expected.")
    if order == "both":
        return sorted(range(count), key=lambda index: (min(index, count - index), index))
    return list(range(count)) if order == "round" else [*range(0, count, 2), *range(1, count, 2)]


def seam_joint(count: int, order: str) -> int:
    """The joint that closes a turn of `count` views: the number of its first view, in the order of a turn."""
    return count // 2 if order == "both" else count - 1


def scratch_copy(world: WorldModel) -> WorldModel:
    """A world model with the same pipeline and copies of the memories."""
    bank = ViewBank(world.bank.max_views, max_bytes=world.bank.max_bytes, feature=world.bank.feature)
    for view in world.bank.views:
        bank.add(view)
    cloud = CloudMemory.from_state(world.cloud.state(), like=world.cloud)
    return WorldModel(world.pipeline, cloud, bank, depth_estimator=world.depth_estimator, device=world.device)


def _scale_to_memory(distance: np.ndarray, world: WorldModel, pose: np.ndarray) -> np.ndarray:
    """Scales estimated distances (h, 2 h) to the memory around `pose`, if it covers enough of it.

    Observed distances determine the scale, estimated ones if there are too few.
    """
    if not len(world.cloud):
        return distance
    camera = stitching_camera(MEMORY_HEIGHT_PX)
    poses = np.stack([pose @ pose_from_angles(*angles) for ring in rings(camera) for angles in ring])
    rendering = world.render_memory(camera, poses)
    colours, depths, classes = (
        layer.cpu().numpy() for layer in (rendering.colour, rendering.depth, rendering.provenance)
    )
    estimated = cv2.resize(distance, (2 * MEMORY_HEIGHT_PX, MEMORY_HEIGHT_PX), interpolation=cv2.INTER_NEAREST)
    for lowest in (Provenance.OBSERVED, Provenance.ESTIMATED):
        views = [
            View(colour, camera, view_pose, np.where(kinds >= lowest, depth, np.float32(0)))
            for view_pose, colour, depth, kinds in zip(poses, colours, depths, classes, strict=True)
        ]
        known = panorama_from_views(views, MEMORY_HEIGHT_PX, world_from_camera=pose, align=False).distance
        assert known is not None
        both = (known > 0) & (estimated > 0)
        if both.sum() >= MIN_MEMORY_PX:
            return (distance * np.median(known[both] / estimated[both])).astype(np.float32)
    return distance
