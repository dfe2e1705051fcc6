"""Lots: their objects, collisions between them, daylight, and the sizes of vehicles."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from worldstereo_ros.scenes import Scene, make_scene, seed_of
from worldstereo_ros.scenes.objects.vehicles import car, lorry, slab, van
from worldstereo_ros.scenes.raytracing.primitives import Builder, Material


@pytest.fixture(scope="module")
def lots() -> list[Scene]:
    return [make_scene("lot", seed_of("demo", i)) for i in range(12)]


def bounds_of(scene: Scene, instance: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lowest and highest corner of an object."""
    p = scene.primitives.select(scene.primitives.instance == instance)
    return (p.centre - p.extent).amin(0), (p.centre + p.extent).amax(0)


def test_lots_contain_the_expected_objects(lots):
    seen = {name for scene in lots for name in scene.names}
    expected = {"floor", "car", "container", "lamp post", "tree", "line", "house", "door", "window", "shutter", "fence"}
    assert expected <= seen
    for scene in lots:
        assert {"floor", "house", "lamp post"} <= set(scene.names)
        assert 200 < len(scene.primitives) < 1200


def test_cars_and_containers_are_on_the_ground_and_do_not_overlap(lots):
    boxes = 0
    for scene in lots:
        things = [i for i, name in enumerate(scene.names) if name in ("car", "container", "vehicle", "load", "bed")]
        limits = {i: bounds_of(scene, i) for i in things}
        for low, high in limits.values():
            on_something = any(abs(float(low[2] - other[1][2])) < 1e-6 for other in limits.values())
            assert abs(float(low[2])) < 0.02 or on_something
            assert (low[:2] > torch.tensor(scene.bounds[0][:2]) - 0.01).all()
            assert (high[:2] < torch.tensor(scene.bounds[1][:2]) + 0.01).all()
        for a, b in combinations(things, 2):
            apart = (limits[a][1] <= limits[b][0] + 1e-6) | (limits[b][1] <= limits[a][0] + 1e-6)
            assert apart.any(), (scene.seed, scene.names[a], scene.names[b])
            boxes += 1
    assert boxes > 100


def test_daylight_varies_and_lamps_are_on_at_dusk_only(lots):
    suns = [next(light for light in scene.lights if light.sun) for scene in lots]
    assert max(sun.power for sun in suns) > 2 * min(sun.power for sun in suns)
    for scene, sun in zip(lots, suns, strict=True):
        lamps = [light for light in scene.lights if not light.sun]
        # The sun is low at dusk.
        assert bool(lamps) == (sun.position[2] < 0.25)


@pytest.mark.parametrize(("build", "long", "tall"), [(car, (3.7, 5.0), (1.3, 1.8)), (van, (4.7, 5.8), (1.9, 2.5)),
                                                     (lorry, (6.0, 8.5), (2.5, 3.6))])  # fmt: skip
def test_vehicles_have_realistic_sizes(build, long, tall):
    for seed in range(6):
        b = Builder(seed)
        build(b.at(0, 0, name="vehicle"))
        p = b.primitives()
        low, high = (p.centre - p.extent).amin(0), (p.centre + p.extent).amax(0)
        assert long[0] < high[0] - low[0] < long[1]
        assert tall[0] < high[2] < tall[1]
        assert -0.01 < low[2] < 0.02
        # Symmetric about the x axis.
        assert float(high[1] + low[1]) == pytest.approx(0, abs=1e-6)


def test_slab_ends_at_the_given_points():
    b = Builder(0)
    slab(b.at(0, 0, name="slab"), (0.0, 1.0), (1.0, 0.4), 0.8, 0.1, Material())
    p = b.primitives()
    # The centres of its two upper edges, from the half axes.
    up, along = p.rotation[0][:, 2] * p.half[0, 2], p.rotation[0][:, 0] * p.half[0, 0]
    torch.testing.assert_close(p.centre[0] + up - along, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(p.centre[0] + up + along, torch.tensor([1.0, 0.0, 0.4], dtype=torch.float64))
