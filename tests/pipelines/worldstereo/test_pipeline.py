"""The WorldStereo pipeline in the world model, with tiny checkpoints in the published layout, and its errors."""

import numpy as np
import pytest
import torch
from helpers.checkpoints import CAMERA as CAMERA_VARIANT
from helpers.checkpoints import DMD_VARIANT, MEMORY
from helpers.walls import ODD_WALL as WALL
from helpers.walls import away

from worldstereo_ros.models import VARIANTS
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.pipelines.base import Cancelled, ModelError

CAMERA = WALL.camera
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def pipeline(published_pipelines):
    """The distilled variant with default options."""
    pipeline = published_pipelines[DMD_VARIANT]
    yield pipeline
    pipeline.steps, pipeline.compose_observed, pipeline.callback_on_step_end = 4, True, None
    pipeline.fill_clip = False


def difference(one, other) -> float:
    return max(float(np.abs(a.image.astype(int) - b.image).max()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_imagines_a_path(published_pipelines, variant):
    world = WALL.world(published_pipelines[variant])
    steps = []
    views = list(world.imagine(away(4), CAMERA, prompt="a hall", on_step=lambda *step: steps.append(step)))
    assert published_pipelines[variant].name == variant
    assert [view.image.shape for view in views] == [(45, 60, 3)] * 4
    assert [step for stage, step, _ in steps if stage == "denoising"] == [0, 1, 2, 3]
    assert [step for stage, step, _ in steps if stage == "decoding"] == [0, 1, 2, 3]
    assert views[0].observed_fraction > 0.8
    assert views[-1].observed_fraction < 0.05
    for view in views:
        assert view.observed.all() or view.image[~view.observed].std() > 1
        assert not (view.observed & ~view.covered).any()
        assert (view.depth > 0).all() == view.covered.any()  # filled from what is known, unknown where nothing is


def test_steps_and_guidance_are_those_of_the_variant(published_checkpoints, published_pipelines):
    assert published_pipelines[DMD_VARIANT].guidance == 1.0
    assert published_pipelines[CAMERA_VARIANT].guidance == 5.0
    fresh = load_pipeline(str(published_checkpoints), variant="camera")
    steps = []

    def stop_at_first(stage, step, count):
        steps.append(count)
        if stage == "denoising":
            raise Cancelled

    world = WALL.world(fresh)
    with pytest.raises(Cancelled):
        list(world.imagine(away(1), CAMERA, on_step=stop_at_first))
    assert steps[-1] == 40


def test_one_thread_decodes_frames_lazily(pipeline):
    pipeline.geometric.threads = 1
    stages = []
    frames = WALL.world(pipeline).imagine(away(4), CAMERA, on_step=lambda stage, *_: stages.append(stage))
    next(frames)
    assert stages.count("decoding") == 1
    next(frames)
    assert stages.count("decoding") == 2


def test_long_path_is_split_into_clips_that_start_at_the_last_view(pipeline):
    world = WALL.world(pipeline)
    start_views, original = [], type(pipeline).__call__

    class Spy:
        name, clip_length, selects_references = pipeline.name, pipeline.clip_length, True

        def __call__(self, conditioning, **arguments):
            start_views.append(conditioning.start_view)
            return original(pipeline, conditioning, **arguments)

    world.pipeline = Spy()
    views = list(world.imagine(away(10), CAMERA, remember=True))
    assert [view.index for view in views] == list(range(10))
    assert pipeline.clip_length == 4
    assert len(start_views) == 3
    assert start_views[0].observed is None
    assert start_views[1] is views[3]
    assert start_views[2] is views[7]
    assert not world.cloud.observed.all()


def test_views_are_reproducible_by_seed(pipeline):
    world = WALL.world(pipeline)
    one, two, other = (list(world.imagine(away(3), CAMERA, seed=seed)) for seed in (5, 5, 6))
    assert difference(one, two) == 0
    assert difference(one, other) > 0


def test_prompt_is_encoded_once_and_changes_views(pipeline):
    text, world = pipeline.text_encoder, WALL.world(pipeline)
    before = text.num_encoded
    one = list(world.imagine(away(2), CAMERA, prompt="a red kitchen"))
    assert text.num_encoded == before + 1
    list(world.imagine(away(2), CAMERA, prompt=" a red  kitchen "))
    assert text.num_encoded == before + 1
    other = list(world.imagine(away(2), CAMERA, prompt="A forest, 3 o'clock"))
    assert text.num_encoded == before + 2
    assert difference(one, other) > 0
    embedding = text("a red kitchen")
    assert embedding.shape[:2] == (1, 512)
    used = int((embedding[0].abs().sum(-1) > 0).sum())
    assert 5 < used < 30
    assert not embedding[0, used:].any()


@pytest.mark.parametrize(("stage", "step"), [("denoising", 2), ("decoding", 1)])
def test_cancelling_keeps_memory_unchanged(pipeline, stage, step):
    world = WALL.world(pipeline)
    before = {name: array.copy() for name, array in world.cloud.state().items()}

    def stop(at, number, _count):
        if (at, number) == (stage, step):
            raise Cancelled

    with pytest.raises(Cancelled):
        list(world.imagine(away(3), CAMERA, remember=True, on_step=stop))
    for name, array in world.cloud.state().items():
        np.testing.assert_array_equal(array, before[name])
    assert len(world.bank) == 2
    fresh = list(WALL.world(pipeline).imagine(away(3), CAMERA))
    assert difference(list(world.imagine(away(3), CAMERA)), fresh) == 0


def test_callback_may_replace_the_latents(pipeline):
    world, steps = WALL.world(pipeline), []

    def grey(owner, step, timestep, tensors):
        assert owner is pipeline
        steps.append((step, float(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    plain = list(world.imagine(away(3), CAMERA))
    pipeline.callback_on_step_end = grey
    changed = list(world.imagine(away(3), CAMERA))
    assert [step for step, _ in steps] == [0, 1, 2, 3]
    assert steps[0][1] == 1000
    assert difference(plain, changed) > 0


def test_only_memory_variants_get_references(published_pipelines):
    for variant in (MEMORY, CAMERA_VARIANT):
        calls, pipeline = [], published_pipelines[variant]
        hook = pipeline.transformer.register_forward_pre_hook(
            lambda _module, _args, kwargs, calls=calls: calls.append(kwargs), with_kwargs=True
        )
        try:
            list(WALL.world(pipeline).imagine(away(3), CAMERA))
        finally:
            hook.remove()
        references = calls[0].get("reference_latent")
        if variant == CAMERA_VARIANT:
            assert references is None
            assert "camera_qt" not in calls[0]
        else:
            assert references.shape[:2] == (1, 36)
            assert torch.equal(references[:, :16], references[:, 20:])
            assert (references[:, 16:20] == 1).all()
            assert len(calls[0]["ref_index"]) == references.shape[2] <= 8
        assert len(calls) == 8  # four steps with and without the prompt


def test_without_compositing_no_pixel_is_observed(pipeline):
    world = WALL.world(pipeline)
    pipeline.compose_observed = False
    views = list(world.imagine(away(2), CAMERA))
    assert not any(view.observed.any() for view in views)
    assert (views[0].depth > 0).all()


def test_fill_clip_returns_the_requested_views(pipeline):
    shapes = []
    hook = pipeline.transformer.register_forward_pre_hook(lambda _m, args: shapes.append(args[0].shape))
    try:
        list(WALL.world(pipeline).imagine(away(2), CAMERA))
        pipeline.fill_clip = True
        views = list(WALL.world(pipeline).imagine(away(2), CAMERA))
    finally:
        hook.remove()
    assert len(views) == 2
    assert (shapes[0][2], shapes[-1][2]) == (3, 5)


@pytest.mark.parametrize("mode", ["paired", "correspondence"])
def test_reference_attention_modes_change_views(published_checkpoints, mode):
    pipeline = load_pipeline(str(published_checkpoints), variant="memory-dmd", reference_attention=mode)
    views = list(WALL.world(pipeline).imagine(away(2), CAMERA))
    full = load_pipeline(str(published_checkpoints), variant="memory-dmd")
    assert difference(views, list(WALL.world(full).imagine(away(2), CAMERA))) > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close_to_single(published_checkpoints, pipeline, dtype):
    pipeline.compose_observed = False
    half = load_pipeline(str(published_checkpoints), dtype=dtype, compose_observed=False)
    assert half.transformer.dtype == getattr(torch, dtype)
    one = next(iter(WALL.world(pipeline).imagine(away(1), CAMERA)))
    two = next(iter(WALL.world(half).imagine(away(1), CAMERA)))
    assert np.abs(one.image.astype(float) - two.image).mean() < 4


# --- errors ---


def test_non_finite_latents_raise_model_error(pipeline):
    world = WALL.world(pipeline)
    pipeline.callback_on_step_end = lambda _p, step, _t, tensors: {"latents": tensors["latents"] * float("nan")}
    with pytest.raises(ModelError, match=r"not finite in step 2 of 4\. It runs in float32"):
        list(world.imagine(away(1), CAMERA))


def test_out_of_memory_error_says_what_was_needed(pipeline):
    world = WALL.world(pipeline)

    def out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 12.00 GiB.\nmore")

    pipeline.callback_on_step_end = out_of_memory
    with pytest.raises(ModelError, match=r"4 keyframes of 96x64 with \d references.*Tried to allocate 12") as caught:
        list(world.imagine(away(3), CAMERA))
    assert "\n" not in str(caught.value)
    assert caught.value.__context__ is None  # its traceback would keep the tensors alive
    pipeline.callback_on_step_end = None
    assert len(list(world.imagine(away(3), CAMERA))) == 3
