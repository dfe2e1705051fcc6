"""Kinds of scenes by name. To add one, write a function from a seed to a `Scene` and register it here."""

from __future__ import annotations

from collections.abc import Callable

from worldstereo_ros.scenes.kinds.corridor import corridor
from worldstereo_ros.scenes.kinds.lot import lot
from worldstereo_ros.scenes.kinds.room import room
from worldstereo_ros.scenes.kinds.warehouse import warehouse
from worldstereo_ros.scenes.objects.moving_objects import add_moving_objects
from worldstereo_ros.scenes.raytracing.scene import Scene
from worldstereo_ros.utils.errors import InputError

KINDS: dict[str, Callable[[int], Scene]] = {"room": room, "corridor": corridor, "warehouse": warehouse, "lot": lot}


def make_scene(kind: str, seed: int, moving_objects: int = 0) -> Scene:
    """Create the world of a kind and a seed. The result depends on nothing else and is the same on every machine.

    Args:
        kind: "room", "corridor", "warehouse" or "lot".
        seed: an integer; `splits.seed_of` gives those for training, validation, tests and demos.
        moving_objects: number of moving objects, see `add_moving_objects`; `render_scene` takes the times.

    Raises:
        InputError: the kind does not exist, or there is not enough room for the moving objects.
    """
    if kind not in KINDS:
        raise InputError(f"There is no kind of scene {kind!r}; choose one of {', '.join(KINDS)}.")
    scene = KINDS[kind](int(seed))
    return add_moving_objects(scene, moving_objects) if moving_objects else scene
