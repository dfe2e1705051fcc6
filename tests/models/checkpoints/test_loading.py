"""Checkpoints in the published layout: locating, inspecting, loading and saving."""

from pathlib import Path

import pytest
import torch
from helpers.checkpoints import (
    CAMERA,
    MEMORY,
    change_config,
    edit_tensors,
    frozen,
    tiny_inputs,
    tiny_transformer,
    write_checkpoint,
)
from helpers.checkpoints import DMD_VARIANT as DMD

from worldstereo_ros.models.checkpoints import loading, parameters
from worldstereo_ros.models.checkpoints.hub import find_checkpoint
from worldstereo_ros.models.checkpoints.inspection import inspect_checkpoint
from worldstereo_ros.models.checkpoints.loading import (
    build_transformer,
    compare_state_dicts,
    load_autoencoder,
    load_transformer,
)
from worldstereo_ros.models.checkpoints.saving import save_base, save_variant, save_weights
from worldstereo_ros.models.checkpoints.weights import CheckpointError, open_weights


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """Keeps the tests off the network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def root(tmp_path):
    write_checkpoint(tmp_path, DMD, autoencoder=False)
    return tmp_path


# --- loading ---


@pytest.mark.parametrize("variant", [CAMERA, MEMORY, DMD])
def test_load_transformer_equals_saved_model(tmp_path, variant):
    """Part of the backbone is in the base model only, and nothing else is loaded from it."""
    model = write_checkpoint(tmp_path, variant, autoencoder=False)
    checkpoint = find_checkpoint(tmp_path)
    assert checkpoint.variant == variant
    loaded = load_transformer(checkpoint)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0)
    with torch.no_grad():
        inputs = tiny_inputs(model)
        torch.testing.assert_close(loaded(**inputs).sample, model(**inputs).sample)


def test_progress_counts_every_tensor(root):
    steps = []
    load_transformer(find_checkpoint(root), on_progress=lambda *step: steps.append(step))
    report = compare_state_dicts(find_checkpoint(root))
    assert report.from_base
    assert all(frozen(name) for name in report.from_base)
    assert steps[-1] == (len(report.from_base) + len(report.from_checkpoint),) * 2
    assert len(steps) == len(tiny_transformer().state_dict())


def test_shards_and_dtypes(tmp_path):
    model = write_checkpoint(tmp_path, MEMORY, autoencoder=False, max_shard_bytes=100_000, dtype=torch.bfloat16)
    folder = tmp_path / MEMORY
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert all(shard.stat().st_size < 120_000 for shard in shards)
    loaded = load_transformer(find_checkpoint(tmp_path), dtype=torch.bfloat16)
    types = {name: p.dtype for name, p in loaded.named_parameters()}
    assert types["blocks.0.attn1.to_q.weight"] == torch.bfloat16
    assert types["blocks.0.scale_shift_table"] == torch.float32
    assert types["condition_embedder.time_embedder.linear_1.weight"] == torch.float32
    assert types["controlnet.controlnet_blocks.0.norm1.linear.weight"] == torch.bfloat16
    with torch.no_grad():
        inputs = tiny_inputs(model)
        sample, expected = loaded(**inputs).sample, model(**inputs).sample
    assert sample.dtype == torch.bfloat16
    assert (sample.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_reported_memory_equals_loaded_memory(root):
    checkpoint = find_checkpoint(root)
    for dtype in (torch.float32, torch.bfloat16):
        model = load_transformer(checkpoint, dtype=dtype)
        nbytes = sum(p.nbytes for p in model.parameters())
        assert inspect_checkpoint(checkpoint).memory[str(dtype).removeprefix("torch.")] == nbytes


def test_build_transformer_allocates_no_memory(root):
    model = build_transformer(find_checkpoint(root))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not list(model.buffers())


def test_too_large_for_the_device(root, monkeypatch):
    monkeypatch.setattr(parameters, "free_memory", lambda device: 1000)
    monkeypatch.setattr(loading, "set_parameter", lambda *_: pytest.fail("memory was allocated"))
    with pytest.raises(CheckpointError, match=r"take 0\.0 GiB and cpu has 0\.0 GiB free; use a smaller dtype"):
        load_transformer(find_checkpoint(root))


def test_complete_checkpoint_needs_no_base_weights(tmp_path):
    model = tiny_transformer()
    save_variant(model, tmp_path / "mine" / MEMORY, {"base_model": "../base"})
    save_base(model, tmp_path / "mine" / "base", weights=False)
    loaded = load_transformer(find_checkpoint(tmp_path / "mine"), reference_attention="paired")
    assert loaded.config.reference_attention == "paired"
    torch.testing.assert_close(loaded.state_dict(), model.state_dict())


def test_diffusers_loads_the_base(root):
    from diffusers import WanTransformer3DModel

    wan = WanTransformer3DModel.from_pretrained(root / "base" / "transformer")
    assert wan.config.image_dim == 20


@torch.no_grad()
@pytest.mark.parametrize("converted", [False, True], ids=["wan", "keyframe"])
def test_load_autoencoder(tmp_path, converted):
    from worldstereo_ros.models.autoencoders.keyframe import KeyframeAutoencoder

    write_checkpoint(tmp_path)
    original = KeyframeAutoencoder.from_wan(_wan(tmp_path))
    if converted:
        original.save_pretrained(tmp_path / "base" / "vae")
    loaded = load_autoencoder(find_checkpoint(tmp_path))
    frames = torch.rand(2, 3, 16, 24) * 2 - 1
    torch.testing.assert_close(loaded.encode(frames), original.encode(frames))
    file = tmp_path / "base" / "vae" / "diffusion_pytorch_model.safetensors"
    edit_tensors(file, lambda t: t.pop("decoder.conv_in.bias"))
    with pytest.raises(CheckpointError, match=r"do not fit its config\.json; 1 tensor missing: decoder\.conv_in\.bias"):
        load_autoencoder(find_checkpoint(tmp_path))


def _wan(root):
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan.from_pretrained(root / "base" / "vae")


def test_encoders_of_the_tiny_base_model_load(tmp_path):
    """The tiny base model of the pipeline tests can be loaded in the same way as a published one."""
    transformers = pytest.importorskip("transformers")
    write_checkpoint(tmp_path, encoders=True, autoencoder=False)
    base = find_checkpoint(tmp_path).base("text_encoder", "image_encoder", "tokenizer", "image_processor")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base / "tokenizer")
    tokens = tokenizer("a room, 3 doors", max_length=512, padding="max_length", return_tensors="pt")
    assert tokens.input_ids.shape == (1, 512)
    assert int(tokens.attention_mask.sum()) == len("▁a▁room,▁3▁doors") + 1
    text = transformers.UMT5EncoderModel.from_pretrained(base / "text_encoder")(**tokens).last_hidden_state
    assert text.shape == (1, 512, 24)
    processor = transformers.CLIPImageProcessor.from_pretrained(base / "image_processor")
    pixels = processor(torch.zeros(3, 60, 80, dtype=torch.uint8), return_tensors="pt").pixel_values
    image = transformers.CLIPVisionModel.from_pretrained(base / "image_encoder")(pixels, output_hidden_states=True)
    assert image.hidden_states[-2].shape == (1, 257, 20)


@pytest.mark.parametrize(
    ("camera_size", "expected"),
    [((480, 640), (512, 720)), ((1080, 1920), (480, 768)), ((900, 900), (608, 608)), ((9, 4), (768, 480))],
)
def test_image_size_has_the_nearest_aspect_ratio(root, camera_size, expected):
    change_config(root / DMD, scale_map=None, nframe=None)  # the defaults are the published values
    config = find_checkpoint(root).config
    assert config.nframe == 21
    assert config.image_size_for(*camera_size) == expected


# --- inspecting ---


def test_report_contents(root):
    report = inspect_checkpoint(root)
    assert report.usable
    assert (report.variant, report.from_base) == (DMD, 2 * 19)
    assert report.parameters == sum(p.numel() for p in tiny_transformer().parameters())
    text = str(report)
    for words in ("2 blocks, width 48, 2 heads, references updated", "DMD, 4 steps", "5 keyframes of 64x96", "none"):
        assert words in text, text


def test_report_lists_problems_without_raising(root):
    file = root / DMD / "model.safetensors"
    edit_tensors(file, lambda t: (t.pop("controlnet.proj_in.bias"), t.update(stray=torch.zeros(1))))
    report = inspect_checkpoint(root)
    assert report.missing_keys == ["controlnet.proj_in.bias"]
    assert report.unexpected_keys == ["stray"]
    assert len(report.problems) == 2


# --- saving ---


def test_save_weights_removes_old_shards(tmp_path):
    tensors = {f"t{i}": torch.full((100,), float(i)) for i in range(5)}
    assert len(save_weights(tmp_path, "model", tensors, max_shard_bytes=900)) == 3
    assert open_weights(tmp_path, "model").tensors.keys() == tensors.keys()
    save_weights(tmp_path, "model", tensors)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    with pytest.raises(ValueError, match="400 bytes, more than max_shard_bytes, 300"):
        save_weights(tmp_path, "model", tensors, max_shard_bytes=300)
    with pytest.raises(ValueError, match="no tensors to write"):
        save_weights(tmp_path, "model", {})
    assert (tmp_path / "model.safetensors").is_file()


def test_a_save_that_fails_keeps_the_old_weights(tmp_path, monkeypatch):
    old = {"t": torch.zeros(100)}
    save_weights(tmp_path, "model", old, max_shard_bytes=400)

    def fail(tensors, file, **_):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("worldstereo_ros.models.checkpoints.saving.save_file", fail)
    with pytest.raises(OSError, match="No space left on device"):
        save_weights(tmp_path, "model", {"t": torch.ones(100), "u": torch.ones(100)}, max_shard_bytes=400)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert open_weights(tmp_path, "model").read(["t"])
