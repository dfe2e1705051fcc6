"""The AnyRecon pipeline in the world model, with tiny files in the published layout, and its errors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.anyrecon_files import SIZE, write_anyrecon
from helpers.walls import ODD_WALL as WALL
from helpers.walls import away

from worldstereo_ros.models.checkpoints.weights import CheckpointError
from worldstereo_ros.models.worldstereo.context_window import ContextWindow
from worldstereo_ros.pipelines.anyrecon import pipeline as anyrecon_pipeline
from worldstereo_ros.pipelines.anyrecon.files import find_files
from worldstereo_ros.pipelines.anyrecon.pipeline import AnyReconPipeline
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.pipelines.base import Cancelled, ModelError
from worldstereo_ros.utils.errors import InputError

CAMERA = WALL.camera
LORA, CLIP = "full_attention.ckpt", "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
TEXT, VAE = "models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return write_anyrecon(tmp_path_factory.mktemp("anyrecon"))


@pytest.fixture
def folder(tmp_path):
    return write_anyrecon(tmp_path / "anyrecon")


@pytest.fixture(scope="module")
def loaded(published):
    return load_pipeline(f"anyrecon:{published}", size=SIZE, depth=None)


@pytest.fixture
def pipeline(loaded):
    yield loaded
    loaded.compose_observed, loaded.clip_length, loaded.max_captures = True, 35, 10
    loaded.half_pixel_shift = True
    loaded.transformer.set_context_window(None)


# --- imagining ---


def test_a_path_is_imagined_with_observed_pixels_from_memory(pipeline):
    world, steps = WALL.world(pipeline), []
    views = list(world.imagine(away(4), CAMERA, on_step=lambda *step: steps.append(step)))
    assert [view.image.shape for view in views] == [(45, 60, 3)] * 4
    assert [step for stage, step, _ in steps if stage == "denoising"] == [0, 1, 2, 3]
    assert [step for stage, step, _ in steps if stage == "decoding"] == [0, 1, 2, 3]
    assert views[0].observed_fraction > 0.8
    assert views[-1].observed_fraction < 0.05
    assert not any((view.observed & ~view.covered).any() for view in views)
    assert all((view.confidence >= 0).all() for view in views)


def test_the_same_seed_gives_the_same_views(pipeline):
    one, other, third = (list(WALL.world(pipeline).imagine(away(2), CAMERA, seed=seed)) for seed in (5, 5, 6))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(one, other, strict=True))
    assert not all(np.array_equal(a.image, b.image) for a, b in zip(one, third, strict=True))


def test_without_composing_every_pixel_is_imagined(pipeline):
    pipeline.compose_observed = False
    views = list(WALL.world(pipeline).imagine(away(2), CAMERA))
    assert not any(view.observed.any() for view in views)


def test_a_clip_continues_from_the_last_frames_of_the_one_before(pipeline, monkeypatch):
    pipeline.clip_length = 2
    sequences = []
    original = AnyReconPipeline.assemble

    def assemble(self, conditioning):
        sequences.append(original(self, conditioning))
        return sequences[-1]

    monkeypatch.setattr(AnyReconPipeline, "assemble", assemble)
    views = list(WALL.world(pipeline).imagine(away(4, angle=0.3), CAMERA))
    (first_frames, first_masks, first_targets), (frames, masks, targets) = sequences
    assert len(views) == 4
    assert first_targets == len(first_frames) - 2
    assert targets == first_targets + 2  # two frames of the clip before, right after the captures
    assert np.array_equal(frames[targets - 2], views[0].image)
    assert np.array_equal(frames[targets - 1], views[1].image)
    assert all((mask == 255).all() for mask in masks[:targets])
    assert len(first_masks) == len(first_frames)


def test_a_chain_starts_anew_from_a_view_of_another_path(pipeline):
    world = WALL.world(pipeline)
    view = list(world.imagine(away(3), CAMERA))[1]
    conditioning, _ = world._condition(away(2), CAMERA, view)
    frames, _, targets = pipeline.assemble(conditioning)
    assert np.array_equal(frames[targets - 1], view.image)
    conditioning, _ = world._condition(away(2), CAMERA, WALL.view())
    assert pipeline.assemble(conditioning)[2] == targets - 1


def test_captures_come_first_and_holes_are_black(pipeline):
    world = WALL.world(pipeline)
    conditioning, _ = world._condition(away(3), CAMERA, WALL.view())
    pipeline.half_pixel_shift = False
    frames, masks, first = pipeline.assemble(conditioning)
    assert len(frames) == len(masks) == first + 3
    covered = conditioning.renders.covered.numpy()
    for index in range(3):
        assert np.array_equal(masks[first + index], covered[index])
        assert (frames[first + index][~covered[index]] == 0).all()
        assert np.array_equal(
            frames[first + index][covered[index]], conditioning.renders.colour[index].numpy()[covered[index]]
        )
    pipeline.half_pixel_shift = True
    shifted, shifted_masks, _ = pipeline.assemble(conditioning)
    assert not np.array_equal(shifted[first], frames[first])
    assert (shifted_masks[first] >= masks[first]).all()


def test_at_most_the_given_number_of_captures_is_used(pipeline):
    pipeline.max_captures = 1
    world = WALL.world(pipeline)
    conditioning, _ = world._condition(away(3), CAMERA, WALL.view())
    assert pipeline.assemble(conditioning)[2] == 1


def test_imagined_views_are_no_captures(pipeline):
    world = WALL.world(pipeline)
    before = pipeline.assemble(world._condition(away(3), CAMERA, WALL.view())[0])[2]
    list(world.imagine(away(3), CAMERA, remember=True))
    assert pipeline.assemble(world._condition(away(3), CAMERA, WALL.view())[0])[2] == before
    conditioning = replace(world._condition(away(3), CAMERA, WALL.view())[0], observations=[], references=[])
    with pytest.raises(InputError, match="needs at least one capture"):
        pipeline.assemble(conditioning)


def test_sparse_attention_loses_no_frame(pipeline):
    """The published kernel cuts the frames to a multiple of eight; here the last block is shorter."""
    generator = torch.Generator().manual_seed(0)
    frames = [np.full((*SIZE, 3), 20 * i, np.uint8) for i in range(11)]
    masks = [np.full(SIZE, 255, np.uint8)] * 11
    dense = list(pipeline.generate(frames, masks, generator=generator))
    pipeline.transformer.set_context_window(ContextWindow(context=1, window=1, stride=4))
    sparse = list(pipeline.generate(frames, masks, generator=torch.Generator().manual_seed(0)))
    assert len(dense) == len(sparse) == 11
    assert not all(np.array_equal(a, b) for a, b in zip(dense, sparse, strict=True))


def test_bfloat16_sees_rounded_timesteps(published, monkeypatch):
    pipeline = load_pipeline(f"anyrecon:{published}", dtype="bfloat16", size=SIZE, depth=None)
    seen = []
    forward = pipeline.transformer.forward

    def record(hidden, timestep, *args, **kwargs):
        seen.append(float(timestep))
        return forward(hidden, timestep, *args, **kwargs)

    monkeypatch.setattr(pipeline.transformer, "forward", record)
    (image,) = pipeline.generate([np.zeros((20, 30, 3), np.uint8)], [np.zeros((20, 30), bool)])
    assert seen == [1000.0, 936.0, 832.0, 624.0]
    assert image.shape == (*SIZE, 3)


def test_cancelling_stops_between_steps(pipeline):
    def stop(stage, step, steps):
        if (stage, step) == ("denoising", 2):
            raise Cancelled

    with pytest.raises(Cancelled):
        list(WALL.world(pipeline).imagine(away(2), CAMERA, on_step=stop))


# --- errors ---


def test_unequal_numbers_of_frames_and_masks_are_an_error(pipeline):
    image = np.zeros((20, 30, 3), np.uint8)
    with pytest.raises(InputError, match="There are 2 frames and 1 masks"):
        list(pipeline.generate([image, image], [image[..., 0]]))
    with pytest.raises(InputError, match=r"Frame 0 is float64"):
        list(pipeline.generate([image.astype(float)], [image[..., 0]]))
    with pytest.raises(InputError, match=r"Mask 0 is uint8 of shape \(20, 30, 3\)"):
        list(pipeline.generate([image], [image]))


def test_values_that_are_not_finite_are_an_error(folder):
    pipeline = load_pipeline(f"anyrecon:{folder}", size=SIZE, depth=None)
    torch.nn.init.constant_(pipeline.transformer.proj_out.weight, torch.nan)
    with pytest.raises(ModelError, match="anyrecon returned values that are not finite in step 1 of 4"):
        list(WALL.world(pipeline).imagine(away(2), CAMERA))


def test_out_of_memory_says_what_to_lower(pipeline, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr(pipeline, "denoise_sequence", fail)
    with pytest.raises(ModelError, match=r"too little memory for 2 targets .* Lower max_captures or clip_length"):
        list(WALL.world(pipeline).imagine(away(2), CAMERA))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (LORA, "has no LoRA"),
        (CLIP, "the CLIP model is missing"),
        (TEXT, "the text encoder is missing"),
        (VAE, "the autoencoder is missing"),
    ],
)
def test_missing_files_are_named(folder, name, message):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=message):
        load_pipeline(f"anyrecon:{folder}")


def test_a_missing_transformer_is_named(folder):
    for file in folder.glob("diffusion_pytorch_model*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="the transformer is missing"):
        load_pipeline(f"anyrecon:{folder}")
    (folder / "transformer").mkdir()
    with pytest.raises(CheckpointError, match="It has the layout of diffusers"):
        load_pipeline(f"anyrecon:{folder}")


def test_the_base_may_lie_elsewhere(folder, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (folder / LORA).rename(mine / "AnyRecon_full_attention.ckpt")
    files = find_files(mine / "AnyRecon_full_attention.ckpt", base=folder)
    assert (files.base, files.text.parent) == (folder, folder)
    (mine / "anyrecon.json").write_text('{"base": "../anyrecon"}')
    assert find_files(mine).base.resolve() == folder.resolve()
    assert find_files(mine).lora == mine / "AnyRecon_full_attention.ckpt"
    assert find_files(folder, lora="").lora is None
    (mine / "second.ckpt").write_bytes(b"x")
    (mine / "AnyRecon_full_attention.ckpt").rename(mine / "first.ckpt")
    with pytest.raises(CheckpointError, match=r"could be the LoRA \(first.ckpt, second.ckpt\)"):
        find_files(mine)
    (mine / "anyrecon.json").write_text('{"bases": "x"}')
    with pytest.raises(CheckpointError, match="may have the keys base and lora"):
        find_files(mine)
    with pytest.raises(CheckpointError, match="There is no"):
        find_files(tmp_path / "nowhere")


def test_parts_of_different_models_are_an_error(folder):
    text = torch.load(folder / TEXT, weights_only=True)
    torch.save({name: t[..., :16] for name, t in text.items()}, folder / TEXT)
    with pytest.raises(CheckpointError, match="use the files of one base model"):
        load_pipeline(f"anyrecon:{folder}")


def test_the_published_size_needs_a_gpu(published, monkeypatch):
    monkeypatch.setattr(anyrecon_pipeline, "MAX_CPU_PARAMETERS", 10)
    with pytest.raises(InputError, match=r"need a CUDA GPU .* or the model small"):
        load_pipeline(f"anyrecon:{published}")


def test_names_and_variants(published):
    assert load_pipeline(f"anyrecon:{published}:sparse").transformer.context_window == ContextWindow()
    assert load_pipeline(f"anyrecon:{published}", variant="dense").transformer.context_window is None
    with pytest.raises(InputError, match="no variant 'camera'; dense or sparse"):
        load_pipeline(f"anyrecon:{published}", variant="camera")
    with pytest.raises(InputError, match="names no files"):
        load_pipeline("anyrecon:")
    with pytest.raises(InputError, match="no control branch for 'onnxruntime'"):
        load_pipeline(f"anyrecon:{published}", control_backend="onnxruntime")
    with pytest.raises(InputError, match="steps is 0"):
        load_pipeline(f"anyrecon:{published}", steps=0)


def test_depth_of_imagined_pixels_is_estimated(published):
    calls = []

    def depth(image, camera):
        calls.append(image.shape)
        return np.full(image.shape[:2], 4.0, np.float32)

    pipeline = load_pipeline(f"anyrecon:{published}", size=SIZE, depth=depth)
    views = list(WALL.world(pipeline).imagine(away(3), CAMERA))
    assert calls
    assert all((view.depth > 0).all() == view.covered.any() for view in views)
    assert not all(view.covered.all() for view in views)
