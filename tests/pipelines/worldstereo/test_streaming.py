"""Views are computed lazily, and no tensors stay alive after a clip."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
from helpers.walls import WALL, away
from small_model import PlainPipeline

from worldstereo_ros.pipelines.base import Cancelled
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.pipelines.geometric.references import ReferenceCache
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
    """A world model with two views of the wall and a board before it."""
    world = WorldModel(pipeline)
    depth = np.full((48, 64), 2.0, np.float32)
    depth[16:32, 24:40] = 1.0
    for view in WALL.views():
        world.observe(replace(view, depth=depth))
    return world


def counted(monkeypatch, owner, name: str) -> list:
    """Records the arguments of every call of a method."""
    calls, method = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: (calls.append(args), method(*args, **kwargs))[1])
    return calls


def test_one_thread_decodes_and_labels_views_one_by_one(pipeline, monkeypatch):
    pipeline.geometric.threads = 1
    decoded = counted(monkeypatch, pipeline.autoencoder, "decode_latents")
    labelled = counted(monkeypatch, pipeline.geometric, "label_provenance")
    for number, view in enumerate(make_world(pipeline).imagine(TURN, CAMERA), start=1):
        assert view.index == number - 1
        assert sum(len(latents) for (latents,) in decoded) == number
        assert len(labelled) == number
    assert number == VIEWS


@pytest.mark.parametrize("compose_observed", [True, False])
def test_lazy_views_equal_those_of_a_plain_loop(small_checkpoint, pipeline, compose_observed):
    plain = WorldStereoPipeline.from_pretrained(small_checkpoint, "memory-dmd")
    plain.__class__ = PlainPipeline
    pipeline.compose_observed = compose_observed
    pairs = list(zip(make_world(pipeline).imagine(TURN, CAMERA), make_world(plain).imagine(TURN, CAMERA), strict=True))
    for view, other in pairs:
        np.testing.assert_array_equal(view.depth, other.depth)
        if compose_observed:
            np.testing.assert_array_equal(view.observed, other.observed)
            # Convolutions of a batch may round differently.
            assert np.abs(view.image.astype(int) - other.image).max() <= 1
    if not compose_observed:
        assert not any(view.observed.any() for view, _ in pairs)
        assert any((view.image != other.image).any() for view, other in pairs)


@pytest.mark.parametrize("threads", [1, 3])
def test_warp_all_equals_warping_in_turn(threads):
    class CompareBoth(GeometricPipeline):
        clip_length = VIEWS

        def __call__(self, conditioning, **arguments):
            steps = []
            warped_views = self.warp_all(conditioning, lambda *step: steps.append(step))
            assert steps == [("warping", index, VIEWS) for index in range(VIEWS)]
            turns = GeometricPipeline(threads=1)(conditioning, **arguments)
            for index, (warped, frame) in enumerate(zip(warped_views, turns, strict=True)):
                labelled = self.label_provenance(conditioning, index, warped)
                for name in ("image", "depth", "observed"):
                    np.testing.assert_array_equal(getattr(labelled, name), getattr(frame, name))
                yield labelled

    views = list(make_world(CompareBoth(threads=threads)).imagine(TURN, CAMERA))
    assert len(views) == VIEWS
    assert views[0].observed_fraction == 1  # from where an observation was taken
    assert 0.05 < views[-1].observed_fraction < 1


def test_warping_error_is_raised_and_starts_no_further_view(pipeline, monkeypatch):
    pipeline.geometric.threads = 1
    started = counted(monkeypatch, pipeline.geometric, "_warp")

    def fail(*_):
        raise ValueError("preparation failed")

    monkeypatch.setattr(ReferenceCache, "prepare", fail)
    with pytest.raises(ValueError, match="preparation failed"):
        list(make_world(pipeline).imagine(TURN, CAMERA))
    assert not started


@pytest.mark.parametrize(("stage", "step"), [("warping", 1), ("denoising", 1), ("decoding", 2)])
def test_cancelling_frees_all_tensors(pipeline, monkeypatch, stage, step):
    images, latents = [], []
    warp, decode = pipeline.geometric.warp, pipeline.autoencoder.decode_frames

    def recorded_warp(*arguments, **options):
        warped = warp(*arguments, **options)
        images.append(weakref.ref(warped.image))
        return warped

    def recorded_decode(tensor):
        latents.append(weakref.ref(tensor))
        return decode(tensor)

    monkeypatch.setattr(pipeline.geometric, "warp", recorded_warp)
    monkeypatch.setattr(pipeline.autoencoder, "decode_frames", recorded_decode)

    def stop(at, number, _count):
        if (at, number) == (stage, step):
            raise Cancelled

    views = []
    with pytest.raises(Cancelled):
        views.extend(make_world(pipeline).imagine(TURN, CAMERA, on_step=stop))
    views.clear()
    gc.collect()
    assert images
    assert (len(latents) == 1) == (stage == "decoding")
    assert not [reference for reference in (*images, *latents) if reference() is not None]


def test_closing_the_iterator_stops_decoding(pipeline, monkeypatch):
    decoded = counted(monkeypatch, pipeline.autoencoder, "decode_latents")
    views = make_world(pipeline).imagine(TURN, CAMERA)
    first = next(views)
    views.close()
    assert first.image.shape == (48, 64, 3)
    assert len(decoded) == 1
    assert len(list(make_world(pipeline).imagine(TURN, CAMERA))) == VIEWS


def test_several_threads_imagine_the_same_views(pipeline):
    """Frames that are computed ahead by several threads equal those of one thread."""
    views = {}
    for threads in (1, 3):
        pipeline.geometric.threads = threads
        views[threads] = list(make_world(pipeline).imagine(TURN, CAMERA))
    for one, other in zip(views[1], views[3], strict=True):
        for name in ("image", "depth", "observed"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_reduced_views_condition_the_start_of_a_path(pipeline, monkeypatch):
    """Views of more than four times the model's pixels are warped at half the size, before the first is yielded."""
    sizes = []
    warp = pipeline.geometric.warp

    def record(conditioning, index, **options):
        sizes.append((conditioning.camera.height, conditioning.camera.width))
        return warp(conditioning, index, **options)

    monkeypatch.setattr(pipeline.geometric, "warp", record)
    height, width = pipeline.config.image_size_for(CAMERA.height, CAMERA.width)
    camera = CAMERA.resized(5 * width, 5 * height)
    assert pipeline._warp_divisor(camera) == 2
    assert pipeline._warp_divisor(CAMERA.resized(width, height)) == 1
    views = list(make_world(pipeline).imagine(TURN, camera))
    small, whole = (camera.height // 2, camera.width // 2), (camera.height, camera.width)
    assert sizes == [small] * VIEWS + [whole] * VIEWS
    assert all(view.image.shape[:2] == whole for view in views)
