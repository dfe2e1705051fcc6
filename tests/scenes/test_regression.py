"""Rooms, corridors and warehouses must not change: published figures were measured on them."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.scenes import make_path, make_scene, seed_of
from worldstereo_ros.scenes.raytracing.render import render_scene

# For each world: a digest of all integers and names; sums of positions, sizes, texture origins, materials and images;
# mean depth and mean colour of a tiny rendering.
PINNED = {
    ("room", 0): ("d779f4ab5385ac25", (-79.9581150707812, -40.24396564888211, 89.61687509291097),
                  (13657.228204866988, 308217.697459677), 3.487805275634552, (121.764974, 122.910156, 112.840495)),
    ("room", 1): ("6a0fb7f07ec570f1", (-48.44128576001566, -92.19893943305243, 147.37304067303924),
                  (12985.151981097995, 289462.3656612588), 2.7434533294290304, (176.761068, 153.229818, 142.251302)),
    ("corridor", 0): ("a261cdb7691db76b", (62.47485512504831, -75.99019754621473, -26.092469986090205),
                      (7909.204216120532, 259520.5026841294), 3.6838916414029277, (138.104818, 139.992188, 117.977865)),
    ("corridor", 1): ("304d195c0b47f081", (36.55024382301208, -43.173074017941794, 23.751685682118666),
                      (11169.247614940978, 340297.6573930299), 3.328844330351179, (139.350911, 140.719401, 135.84375)),
    ("warehouse", 0): ("1db8c87179eb9f53", (-160.64828193318965, 95.2577321546712, -186.13812632544935),
                       (47091.66643894551, 1504297.7376652397), 6.076835858946045, (134.809245, 135.380208, 129.34375)),
    ("warehouse", 1): ("80a89339f400501b", (-117.05568018508154, -108.78300391924577, -388.896368865822),
                       (44761.44510501268, 1298785.48777923), 4.870987147015209, (144.246094, 138.213542, 131.766927)),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "index"), list(PINNED))
def test_pinned_worlds_are_unchanged(kind, index):
    digest, places, tables, depth, colours = PINNED[kind, index]
    scene = make_scene(kind, seed_of("demo", index))
    p = scene.primitives
    whole = torch.cat([p.kind, p.instance, p.material.flatten()]).tolist()
    assert hashlib.sha256(repr((whole, scene.names)).encode()).hexdigest()[:16] == digest
    weight = torch.cos(torch.arange(len(p), dtype=torch.float64))[:, None]
    sums = [float((weight * part).sum()) for part in (p.centre, p.half, p.shift)]
    assert sums == pytest.approx(places, abs=1e-8)
    assert [float(part.double().sum()) for part in (scene.materials, scene.images)] == pytest.approx(tables, rel=1e-6)
    camera = Camera.from_fov(32, 24, math.radians(80))
    frames = render_scene(scene, camera, make_path(scene, "handheld", 2, seed=0), light="plain")
    assert float(frames.depth.double().mean()) == pytest.approx(depth, rel=1e-4)
    assert frames.image.double().mean((0, 1, 2)).tolist() == pytest.approx(colours, abs=0.3)
