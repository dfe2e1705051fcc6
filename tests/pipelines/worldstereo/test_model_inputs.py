"""Training and inference give the transformer the same inputs."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from worldstereo_ros.pipelines.base import Cancelled, Conditioning
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.pipelines.worldstereo import pipeline as inference
from worldstereo_ros.pipelines.worldstereo.conditioning import Keyframes
from worldstereo_ros.pipelines.worldstereo.model_inputs import MASK_CHANNELS, ModelInputs, build_model_inputs
from worldstereo_ros.pipelines.worldstereo.pipeline import WorldStereoPipeline
from worldstereo_ros.training import flow_matching as training
from worldstereo_ros.training.data.clip_sampling import ClipBatch, sample_clips
from worldstereo_ros.training.data.dataset import WorldDataset

FRAMES, SEED = 5, 5
ROUNDING = 0.5 / 127.5 + 1e-6  # inference resizes uint8 images, training averages their pixels as floats
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pipeline(small_checkpoint):
    pipeline = WorldStereoPipeline.from_pretrained(small_checkpoint, "memory")
    # The size of the training worlds.
    pipeline.config = replace(pipeline.config, scale_map=((32, 48),))
    return pipeline


def draw_clip(training_worlds) -> tuple[ClipBatch, Conditioning]:
    """A clip without sensor noise and with one reference, and what memory holds about it."""
    conditionings, warp_all = [], GeometricPipeline.warp_all

    def record(self, conditioning, on_step):
        conditionings.append(conditioning)
        return warp_all(self, conditioning, on_step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GeometricPipeline, "warp_all", record)
        dataset = WorldDataset(training_worlds, "training", 4)
        random = np.random.default_rng(SEED)
        batch = sample_clips(dataset, 1, FRAMES, random, torch.device("cpu"), references=1, clean=True)
    (conditioning,) = conditionings
    # The clip's reference is one of the views of which memory consists.
    reference = batch.references[0, :, 0].permute(1, 2, 0)
    height, width = reference.shape[:2]
    differences = [
        np.abs(view.resized(width, height).image / 127.5 - 1 - reference.numpy()).mean()
        for view in conditioning.references
    ]
    assert min(differences) < 0.01
    index = np.full(FRAMES - 1, -1)
    index[int(batch.reference_index[0])] = int(np.argmin(differences))
    return batch, replace(conditioning, reference_index=index)


@pytest.fixture(scope="module")
def clip(training_worlds) -> tuple[ClipBatch, Conditioning]:
    return draw_clip(training_worlds)


def recorded(patch, module) -> list[tuple[Keyframes, ModelInputs]]:
    """The arguments and the results of every call of `build_model_inputs` in a module."""
    calls = []

    def record(keyframes, *arguments, **options):
        calls.append((keyframes, build_model_inputs(keyframes, *arguments, **options)))
        return calls[-1][1]

    patch.setattr(module, "build_model_inputs", record)
    return calls


def inference_inputs(pipeline, conditioning) -> tuple[Keyframes, ModelInputs]:
    """What the pipeline builds for a clip."""

    def stop_before_denoising(stage, step, steps):
        if stage == "denoising":
            raise Cancelled

    with pytest.MonkeyPatch.context() as patch:
        calls = recorded(patch, inference)
        with pytest.raises(Cancelled):
            list(pipeline(conditioning, prompt="", generator=torch.Generator(), on_step=stop_before_denoising))
    (call,) = calls
    return call


def training_inputs(pipeline, batch) -> tuple[Keyframes, ModelInputs]:
    """What the training builds for a clip."""
    with pytest.MonkeyPatch.context() as patch:
        calls = recorded(patch, training)
        training.encode_clips(batch, pipeline.autoencoder, 8, control=True, memory=True, layout=True)
    (call,) = calls
    return call


def assert_same(one, other, name: str, atol: float = 1e-5) -> None:
    assert (one is None) == (other is None), name
    if one is not None:
        torch.testing.assert_close(one, other, rtol=0, atol=atol, msg=lambda text: f"{name}: {text}")


def test_a_training_clip_gives_the_keyframes_of_inference(pipeline, clip):
    batch, conditioning = clip
    ours, _ = inference_inputs(pipeline, conditioning)
    theirs, _ = training_inputs(pipeline, batch)
    assert theirs.references.shape[2] == 1
    assert 0 < theirs.holes.mean() < 1
    for field in fields(Keyframes):
        atol = ROUNDING if field.name == "renders" else 1e-5
        assert_same(getattr(ours, field.name), getattr(theirs, field.name), field.name, atol)


def test_training_and_inference_build_equal_inputs_of_the_same_clip(pipeline, clip):
    batch, conditioning = clip
    keyframes, ours = inference_inputs(pipeline, conditioning)
    # The same clip without the rounding of its renders.
    renders = torch.cat((keyframes.start[:, :, None], keyframes.renders), dim=2)
    layouts = torch.cat((keyframes.start[:, :, None], keyframes.layouts), dim=2)
    _, theirs = training_inputs(pipeline, replace(batch, renders=renders, layouts=layouts))
    assert_same(ours.condition, theirs.condition, "condition")
    assert ours.arguments.keys() == theirs.arguments.keys()
    assert {"render_latent", "layout", "reference_latent", "camera_qt_ref"} <= theirs.arguments.keys()
    for name, tensor in theirs.arguments.items():
        assert_same(ours.arguments[name], tensor, name)


def test_condition_gives_the_first_frame_alone(pipeline, clip):
    _, inputs = training_inputs(pipeline, clip[0])
    mask = inputs.condition[:, :MASK_CHANNELS]
    assert (mask[:, :, 0] == 1).all()
    assert not mask[:, :, 1:].any()
    latents = inputs.condition[:, MASK_CHANNELS:]
    torch.testing.assert_close(latents[:, :, 0], inputs.arguments["render_latent"][:, :, 0])
    torch.testing.assert_close(latents[:, :, 1], latents[:, :, -1])


def test_inputs_of_a_batch_are_those_of_its_clips(pipeline, clip):
    keyframes, one = training_inputs(pipeline, clip[0])
    twice = replace(
        keyframes,
        **{
            field.name: torch.cat((value, value.flip(-1)))
            for field in fields(Keyframes)
            if (value := getattr(keyframes, field.name)) is not None and field.name != "reference_index"
        },
    )
    both = build_model_inputs(twice, pipeline.autoencoder, memory_branch=True)
    assert both.condition.shape[0] == 2
    torch.testing.assert_close(both.condition[:1], one.condition)
    for name, tensor in one.arguments.items():
        if name != "ref_index":
            torch.testing.assert_close(both.arguments[name][:1], tensor)
            assert both.arguments[name].shape[0] == 2


def test_without_branches_there_is_the_condition_alone(pipeline, clip):
    batch, _ = clip
    full = training_inputs(pipeline, batch)[1]
    with pytest.MonkeyPatch.context() as patch:
        calls = recorded(patch, training)
        training.encode_clips(batch, pipeline.autoencoder, 8, control=False, memory=False)
    ((_, inputs),) = calls
    assert not inputs.arguments
    torch.testing.assert_close(inputs.condition, full.condition)
