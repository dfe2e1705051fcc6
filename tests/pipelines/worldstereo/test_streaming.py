"""Views are given away as they are made: nothing is done for a later one before its time, and nothing is kept."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
from helpers.walls import WALL, away
from small_model import PlainPipeline

from worldstereo_ros.pipelines.base import Cancelled
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.pipelines.worldstereo.pipeline import WorldStereoPipeline
from worldstereo_ros.world import WorldModel

CAMERA = WALL.camera
VIEWS = 4
TURN = away(VIEWS, angle=1.2)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def pipeline(small_checkpoint):
    return WorldStereoPipeline.from_pretrained(small_checkpoint, "memory-dmd")


def make_world(pipeline) -> WorldModel:
    """Two pictures of the wall, with a board before it that hides a part."""
    world = WorldModel(pipeline)
    depth = np.full((48, 64), 2.0, np.float32)
    depth[16:32, 24:40] = 1.0
    for view in WALL.views():
        world.observe(replace(view, depth=depth))
    return world


def counted(monkeypatch, owner, name: str) -> list:
    """The arguments of every call of a method from now on."""
    calls, method = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *given, **named: (calls.append(given), method(*given, **named))[1])
    return calls


def test_a_view_waits_for_no_later_one(pipeline, monkeypatch):
    decoded = counted(monkeypatch, pipeline.autoencoder, "decode_latents")
    judged = counted(monkeypatch, pipeline.geometric, "label_provenance")
    for number, view in enumerate(make_world(pipeline).imagine(TURN, CAMERA), start=1):
        assert view.index == number - 1
        assert sum(len(latents) for (latents,) in decoded) == number
        assert len(judged) == number
    assert number == VIEWS


@pytest.mark.parametrize("compose_observed", [True, False])
def test_late_work_gives_the_views_of_a_plain_loop(small_checkpoint, pipeline, compose_observed):
    plain = WorldStereoPipeline.from_pretrained(small_checkpoint, "memory-dmd")
    plain.__class__ = PlainPipeline
    pipeline.compose_observed = compose_observed
    pairs = list(zip(make_world(pipeline).imagine(TURN, CAMERA), make_world(plain).imagine(TURN, CAMERA), strict=True))
    for view, other in pairs:
        np.testing.assert_array_equal(view.depth, other.depth)
        if compose_observed:
            np.testing.assert_array_equal(view.observed, other.observed)
            # Convolutions of several pictures at once may round otherwise.
            assert np.abs(view.image.astype(int) - other.image).max() <= 1
    if not compose_observed:
        assert not any(view.observed.any() for view, _ in pairs)
        assert any((view.image != other.image).any() for view, other in pairs)


@pytest.mark.parametrize("threads", [1, 3])
def test_views_painted_side_by_side_are_those_painted_in_turn(threads):
    class Both(GeometricPipeline):
        clip_length = VIEWS

        def __call__(self, conditioning, **arguments):
            steps = []
            paintings = self.warp_all(conditioning, lambda *step: steps.append(step))
            assert steps == [("warping", index, VIEWS) for index in range(VIEWS)]
            turns = GeometricPipeline(threads=1)(conditioning, **arguments)
            for index, (painting, frame) in enumerate(zip(paintings, turns, strict=True)):
                mine = self.label_provenance(conditioning, index, painting)
                for name in ("image", "depth", "observed"):
                    np.testing.assert_array_equal(getattr(mine, name), getattr(frame, name))
                yield mine

    views = list(make_world(Both(threads=threads)).imagine(TURN, CAMERA))
    assert len(views) == VIEWS
    assert 0.05 < views[0].observed_fraction < 1


def test_what_cannot_be_painted_is_an_error_and_no_view_is_begun_after_it(pipeline, monkeypatch):
    pipeline.geometric.threads = 1
    begun = counted(monkeypatch, pipeline.geometric, "_warp")

    def spoilt(*_):
        raise ValueError("spoilt")

    monkeypatch.setattr(pipeline.geometric._cache, "prepare", spoilt)
    with pytest.raises(ValueError, match="spoilt"):
        list(make_world(pipeline).imagine(TURN, CAMERA))
    assert not begun


@pytest.mark.parametrize(("stage", "step"), [("warping", 1), ("denoising", 1), ("decoding", 2)])
def test_a_goal_that_is_cancelled_leaves_nothing_behind(pipeline, monkeypatch, stage, step):
    paintings, latents = [], []
    paint, decode = pipeline.geometric._warp, pipeline.autoencoder.decode_frames

    def watched_paint(*arguments):
        made = paint(*arguments)
        paintings.append(weakref.ref(made[0]))
        return made

    def watched_decode(tensor):
        latents.append(weakref.ref(tensor))
        return decode(tensor)

    monkeypatch.setattr(pipeline.geometric, "_warp", watched_paint)
    monkeypatch.setattr(pipeline.autoencoder, "decode_frames", watched_decode)

    def stop(at, number, _count):
        if (at, number) == (stage, step):
            raise Cancelled

    given = []
    with pytest.raises(Cancelled):
        given.extend(make_world(pipeline).imagine(TURN, CAMERA, on_step=stop))
    given.clear()
    gc.collect()
    assert paintings
    assert (len(latents) == 1) == (stage == "decoding")
    assert not [reference for reference in (*paintings, *latents) if reference() is not None]


def test_views_that_nobody_takes_are_not_made(pipeline, monkeypatch):
    decoded = counted(monkeypatch, pipeline.autoencoder, "decode_latents")
    views = make_world(pipeline).imagine(TURN, CAMERA)
    first = next(views)
    views.close()
    assert first.image.shape == (48, 64, 3)
    assert len(decoded) == 1
    assert len(list(make_world(pipeline).imagine(TURN, CAMERA))) == VIEWS
