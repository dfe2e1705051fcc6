"""A panorama of a place where nobody has been: views all round are imagined there and put together.

The robot turns once on the spot, level, then tilted up and down in as many rings as its camera needs, then straight up
and down. Every ring is a call of its own and is remembered before the next, so that the rings agree; a level ring is
one clip of the small model, which sees both ends of the turn at once (`docs/panorama.md` has the measurement).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import check_poses
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.memory.bank import ViewBank
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.panorama.depth import panorama_distance
from worldstereo_ros.panorama.perspective_views import look, panorama_views, rings, round_camera, seed_camera
from worldstereo_ros.panorama.stitching import Closure, Panorama, closure, panorama_from_views
from worldstereo_ros.pipelines.base import OnStep
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.world import WorldModel

ORDERS = ("round", "both", "alternate")
KNOWN_HEIGHT = 128  # rows of a panorama of what is known, which gives estimated distances their scale
KNOWN_FEWEST = 500  # of its directions, without which it gives none


@dataclass(frozen=True)
class ImaginedPanorama:
    """A panorama and what it was made of.

    Attributes:
        panorama: the picture, with what is observed in it.
        views: all views that were imagined, in the order in which they were.
        ring: those of them that look level, in the order in which one turns.
        closure: how well the level ring closes; None where the camera is too narrow to say.
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
) -> int:
    """Remembers a panorama that a camera took, as the perspective views of `panorama.panorama_views`.

    Args:
        world: remembers it; its depth estimator is asked where there is no distance.
        image: (H, 2 H, 3) uint8 RGB, the full sphere.
        distance: (h, 2 h) float32 metres along the ray, 0 = unknown; None: estimated, in one scale all round, and in
            that of what the world knows of the place already.
        world_from_camera: (4, 4) pose of the panorama; the origin of the world where None.
        stamp_ns: when it was taken.

    Returns:
        How many points were added, merged or confirmed.

    Raises:
        ImageError: no full sphere. ValueError: no distance and no depth estimator. Nothing is changed then.
    """
    pose = np.eye(4) if world_from_camera is None else np.asarray(world_from_camera, np.float64)
    pose = check_poses(pose[None], "The panorama's place")[0]
    camera = seed_camera(image.shape[0])
    views = panorama_views(image, distance, world_from_camera=pose, camera=camera, stamp_ns=stamp_ns)  # checks both
    if distance is None:
        if world.depth_estimator is None:
            raise InputError(
                "The panorama has no distances and no depth estimator is loaded. Give distances, or let a model guess "
                "them (parameter `depth_model`)."
            )
        distance = _to_what_is_known(panorama_distance(image, world.depth_estimator), world, pose)
    views = panorama_views(image, distance, world_from_camera=pose, camera=camera, stamp_ns=stamp_ns)
    return sum(world.observe(view).inserted for view in views)


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
    """Imagines what is seen all round from a place.

    Args:
        world: has seen something; what it looks like there is imagined from its memory.
        world_from_camera: (4, 4) pose of the panorama; it should stand upright (its y axis down).
        height: rows of the panorama; it has twice as many columns.
        camera: of the views that are imagined; None: 75 degrees across, 4:3, as fine as the panorama.
        order: of the views of a ring, one of `ORDERS` (see `ring_order`).
        prompt, seed, on_step: see `WorldModel.imagine`.
        remember: the world remembers what was imagined; else it is as it was before.

    Raises:
        NothingSeenError: nothing was seen yet.
        ValueError: the pose is no finite rigid transform, the height is below 8, or the order is not known.
        ModelError: the pipeline failed.
    """
    pose = check_poses(np.asarray(world_from_camera, np.float64)[None], "The panorama's place")[0]
    camera = round_camera(height) if camera is None else camera
    # Rings agree through memory alone: they are remembered, in a copy of the memories if need be.
    memory = world if remember else scratch_copy(world)
    views: list[ImaginedView] = []
    ring: list[ImaginedView] = []
    for number, turns in enumerate(rings(camera)):
        sequence = ring_order(len(turns), order)
        poses = np.stack([pose @ look(*turns[index]) for index in sequence])
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
        count: of views, numbered in the order in which one turns.
        order: "round": once around. "both": to both sides at once, so that the two ends are imagined one after the
            other and meet behind. "alternate": every second view once around, then those between.

    Raises:
        ValueError: the order is not known.
    """
    if order not in ORDERS:
        raise InputError(f"The order '{order}' is not known; it is one of {', '.join(ORDERS)}.")
    if order == "both":
        return sorted(range(count), key=lambda index: (min(index, count - index), index))
    return list(range(count)) if order == "round" else [*range(0, count, 2), *range(1, count, 2)]


def seam_joint(count: int, order: str) -> int:
    """Which joint closes a turn of so many views: that of this view with the next, numbered as one turns."""
    return count // 2 if order == "both" else count - 1


def scratch_copy(world: WorldModel) -> WorldModel:
    """A world with the same pipeline and memories of its own that begin as those of `world`."""
    bank = ViewBank(world.bank.max_views, feature=world.bank.feature)
    for view in world.bank.views:
        bank.add(view)
    cloud = CloudMemory.from_state(world.cloud.state())
    return WorldModel(world.pipeline, cloud, bank, depth_estimator=world.depth_estimator, device=world.device)


def _to_what_is_known(distance: np.ndarray, world: WorldModel, pose: np.ndarray) -> np.ndarray:
    """Estimated distances (h, 2 h) in the scale of what the world remembers around `pose`, if it remembers enough."""
    if not len(world.cloud):
        return distance
    camera = round_camera(KNOWN_HEIGHT)
    poses = np.stack([pose @ look(*angles) for ring in rings(camera) for angles in ring])
    seen = world._render(camera, poses)
    views = [
        View(colour, camera, one, np.where(observed, depth, np.float32(0)))
        for colour, one, depth, observed in zip(
            seen.colour.cpu().numpy(), poses, seen.depth.cpu().numpy(), seen.observed.cpu().numpy(), strict=True
        )
    ]
    known = panorama_from_views(views, KNOWN_HEIGHT, world_from_camera=pose, align=False).distance
    assert known is not None
    guess = cv2.resize(distance, (2 * KNOWN_HEIGHT, KNOWN_HEIGHT), interpolation=cv2.INTER_NEAREST)
    both = (known > 0) & (guess > 0)
    if both.sum() < KNOWN_FEWEST:
        return distance
    return (distance * np.median(known[both] / guess[both])).astype(np.float32)
