"""Which example of detail a plane is drawn with."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.box_room import observe, turned

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.pipelines.geometric.layout import estimate_layout
from worldstereo_ros.pipelines.geometric.plane_examples import LENT_AREA_M2, SeenSurfaces, find_examples
from worldstereo_ros.pipelines.geometric.room_closing import WALL

SHARP = Camera.from_fov(320, 240, np.radians(75))


@pytest.fixture(scope="module")
def seen() -> SeenSurfaces:
    view = observe(turned(0), camera=SHARP)
    grain = np.random.default_rng(0).normal(0, 6, view.image.shape[:2])[..., None]
    found = estimate_layout([replace(view, image=np.clip(view.image + grain, 0, 255).astype(np.uint8))]).seen
    assert found is not None
    return found


def with_wall_areas(seen: SeenSurfaces, area: float) -> SeenSurfaces:
    textures = [texture._replace(parameters=texture.parameters.copy()) for texture in seen.textures]
    for texture, kind in zip(textures, seen.room.kinds, strict=True):
        if kind == WALL:
            texture.parameters[13] = area**0.5
    return seen._replace(textures=textures)


@pytest.mark.parametrize(("area", "contrast"), [(4.0, 1.0), (LENT_AREA_M2, 1.0), (0.25, 0.25)])
def test_the_detail_of_a_small_wall_is_lent_to_unseen_ones_with_less_contrast(seen, area, contrast):
    """Its own is drawn as it was seen."""
    examples, example_of = find_examples(with_wall_areas(seen, area))
    assumed = [side.kind for side in seen.room.sides if side.source < 0]
    unseen = int(example_of[len(seen.textures) + assumed.index(WALL)])
    source = next(index for index in seen.typical if np.array_equal(*atlases(examples, example_of[index], unseen)))
    np.testing.assert_allclose(
        examples.atlas[unseen].std(), contrast * examples.atlas[example_of[source]].std(), rtol=1e-3
    )
    assert len(examples.counts) == len(set(example_of[example_of >= 0].tolist()))


def atlases(examples, one: int, other: int) -> tuple[np.ndarray, np.ndarray]:
    """Both, as signs, which contrast does not change."""
    return np.sign(examples.atlas[one]), np.sign(examples.atlas[other])


def test_every_plane_has_an_example_of_its_kind_or_none(seen):
    examples, example_of = find_examples(seen, threads=2)
    kinds = [*seen.room.kinds, *(side.kind for side in seen.room.sides if side.source < 0)]
    assert len(example_of) == len(kinds)
    for kind, example in zip(kinds, example_of, strict=True):
        assert -1 <= example < len(examples.counts)
        if example >= 0:
            assert (examples.scales[example, 5] == 1) == (kind == WALL)
