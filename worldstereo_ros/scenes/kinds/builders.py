"""The kinds of worlds, by name. A new kind is a function from a seed to a scene, and a line here."""

from __future__ import annotations

from collections.abc import Callable

from worldstereo_ros.scenes.kinds.corridor import corridor
from worldstereo_ros.scenes.kinds.lot import lot
from worldstereo_ros.scenes.kinds.room import room
from worldstereo_ros.scenes.kinds.warehouse import warehouse
from worldstereo_ros.scenes.objects.movers import with_movers
from worldstereo_ros.scenes.raytracing.scene import Scene
from worldstereo_ros.utils.errors import InputError

KINDS: dict[str, Callable[[int], Scene]] = {"room": room, "corridor": corridor, "warehouse": warehouse, "lot": lot}


def make_scene(kind: str, seed: int, movers: int = 0) -> Scene:
    """The world of a kind and a seed: always the same one, on every machine, whatever was drawn before.

    Args:
        kind: "room", "corridor", "warehouse" or "lot".
        seed: a whole number; `splits` says which are for training, validation, tests and demos.
        movers: how many things move through it, see `movers.with_movers`; `Scene.render` takes the times.

    Raises:
        ValueError: for a kind that does not exist, or more movers than there is room for.
    """
    if kind not in KINDS:
        raise InputError(f"There is no kind of scene {kind!r}. Choose one of {', '.join(KINDS)}.")
    scene = KINDS[kind](int(seed))
    return with_movers(scene, movers) if movers else scene
