"""Checkpoints in the published layout: found, inspected, loaded, and refused with a sentence."""

import json
import struct

import pytest
import torch
from checkpoints import change_config, frozen, tiny_inputs, tiny_transformer, write_checkpoint
from safetensors.torch import load_file, save_file

from worldstereo_ros.models import pretrained
from worldstereo_ros.models.checkpoint import CheckpointError, open_weights
from worldstereo_ros.models.inspection import inspect_checkpoint
from worldstereo_ros.models.locate import find_checkpoint
from worldstereo_ros.models.pretrained import load_autoencoder, load_transformer, survey
from worldstereo_ros.models.saving import save_base, save_variant, save_weights

DMD, MEMORY, CAMERA = "worldstereo-memory-dmd", "worldstereo-memory", "worldstereo-camera"


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """No test may wait for the network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def root(tmp_path):
    write_checkpoint(tmp_path, DMD, autoencoder=False)
    return tmp_path


def edit(file, change):
    """Rewrites a safetensors file through `change(dict)`."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


# --- loading ---


@pytest.mark.parametrize("variant", [CAMERA, MEMORY, DMD])
def test_loads_what_was_saved(tmp_path, variant):
    """A part of the backbone is in the base alone, and nothing of the base is taken beside that part."""
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


def test_every_tensor_is_accounted_for(root):
    steps = []
    load_transformer(find_checkpoint(root), on_progress=lambda *step: steps.append(step))
    found = survey(find_checkpoint(root))
    assert found.base
    assert all(frozen(name) for name in found.base)
    assert steps[-1] == (len(found.base) + len(found.checkpoint),) * 2
    assert len(steps) == len(tiny_transformer().state_dict())


def test_shards_and_types(tmp_path):
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


def test_the_memory_taken_is_known_before(root):
    checkpoint = find_checkpoint(root)
    for dtype in (torch.float32, torch.bfloat16):
        model = load_transformer(checkpoint, dtype=dtype)
        taken = sum(p.nbytes for p in model.parameters())
        assert inspect_checkpoint(checkpoint).memory[str(dtype).removeprefix("torch.")] == taken


def test_too_large_for_the_device(root, monkeypatch):
    monkeypatch.setattr(pretrained, "free_memory", lambda device: 1000)
    monkeypatch.setattr(pretrained, "place", lambda *_: pytest.fail("memory was taken"))
    with pytest.raises(CheckpointError, match=r"take 0\.0 GiB and cpu has 0\.0 GiB free; use a smaller type"):
        load_transformer(find_checkpoint(root))


def test_a_whole_checkpoint_needs_no_base_weights(tmp_path):
    model = tiny_transformer()
    save_variant(model, tmp_path / "mine" / MEMORY, {"base_model": "../base"})
    save_base(model, tmp_path / "mine" / "base", weights=False)
    loaded = load_transformer(find_checkpoint(tmp_path / "mine"), reference_attention="paired")
    assert loaded.config.reference_attention == "paired"
    torch.testing.assert_close(loaded.state_dict(), model.state_dict())


def test_diffusers_reads_the_base(root):
    from diffusers import WanTransformer3DModel

    wan = WanTransformer3DModel.from_pretrained(root / "base" / "transformer")
    assert wan.config.image_dim == 20


@torch.no_grad()
@pytest.mark.parametrize("flat", [False, True], ids=["wan", "flat"])
def test_autoencoder(tmp_path, flat):
    from worldstereo_ros.models.autoencoder import KeyframeAutoencoder

    write_checkpoint(tmp_path)
    original = KeyframeAutoencoder.from_wan(_wan(tmp_path))
    if flat:
        original.save_pretrained(tmp_path / "base" / "vae")
    loaded = load_autoencoder(find_checkpoint(tmp_path))
    frames = torch.rand(2, 3, 16, 24) * 2 - 1
    torch.testing.assert_close(loaded.encode(frames), original.encode(frames))
    file = tmp_path / "base" / "vae" / "diffusion_pytorch_model.safetensors"
    edit(file, lambda t: t.pop("decoder.conv_in.bias"))
    with pytest.raises(CheckpointError, match=r"do not fit its config\.json; 1 tensor missing: decoder\.conv_in\.bias"):
        load_autoencoder(find_checkpoint(tmp_path))


def _wan(root):
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan.from_pretrained(root / "base" / "vae")


def test_encoders_of_the_tiny_base_load(tmp_path):
    """The fixture is what the pipelines are tested with: its parts load as those of a published base do."""
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


# --- inspecting ---


def test_report(root):
    report = inspect_checkpoint(root)
    assert report.usable
    assert (report.variant, report.from_base) == (DMD, 2 * 19)
    assert report.parameters == sum(p.numel() for p in tiny_transformer().parameters())
    text = str(report)
    for words in ("2 blocks, width 48, 2 heads, references carried on", "DMD, 4 steps", "5 keyframes of 64x96", "none"):
        assert words in text, text


def test_report_names_what_is_wrong_without_raising(root):
    file = root / DMD / "model.safetensors"
    edit(file, lambda t: (t.pop("controlnet.proj_in.bias"), t.update(stray=torch.zeros(1))))
    report = inspect_checkpoint(root)
    assert report.missing == ["controlnet.proj_in.bias"]
    assert report.unexpected == ["stray"]
    assert len(report.problems) == 2


# --- what is refused ---


def refuse(root, sentence, load=load_transformer, **where):
    with pytest.raises(CheckpointError, match=sentence) as caught:
        load(find_checkpoint(root, **where))
    message = str(caught.value)
    assert message.endswith("."), message
    assert "\n" not in message


def test_missing_and_unexpected_keys_are_named_and_counted(root):
    file = root / DMD / "model.safetensors"

    def break_it(tensors):
        for name in [n for n in tensors if n.startswith("controlnet.controlnet_blocks.0.self_attn")]:
            del tensors[name]
        tensors["extra.weight"] = torch.zeros(2)

    edit(file, break_it)
    refuse(
        root, r"has 1 tensor too many: extra\.weight\. .* lacks 10 tensors: .*self_attn\.to_q\.weight, .* and 7 more"
    )


def test_unused_published_keys_are_no_problem(root):
    edit(root / DMD / "model.safetensors", lambda t: t.update({"ref_index_embedding.weight": torch.zeros(21, 48)}))
    load_transformer(find_checkpoint(root))


def test_backbone_keys_that_are_nowhere(root):
    edit(
        root / "base" / "transformer" / "diffusion_pytorch_model.safetensors", lambda t: t.pop(next(filter(frozen, t)))
    )
    refuse(root, "and its base lack 1 tensor: blocks.0.attn2")


def test_base_without_weights(root):
    (root / "base" / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    refuse(root, "leaves 38 tensors to its base .* has neither")


def test_wrong_shapes_are_named(root):
    edit(root / DMD / "model.safetensors", lambda t: t.update({"proj_out.bias": torch.zeros(7)}))
    refuse(root, r"The shape of 1 tensor .* is wrong: proj_out\.bias is \(7,\) and should be \(64,\)")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(root, number):
    edit(root / DMD / "model.safetensors", lambda t: t["proj_out.weight"][3, 4].fill_(number))
    refuse(root, r"1 of 3072 numbers of proj_out\.weight are not finite")


def test_whole_numbers_are_no_weights(root):
    edit(root / DMD / "model.safetensors", lambda t: t.update({"proj_out.bias": torch.zeros(64, dtype=torch.int8)}))
    refuse(root, r"not in floating point \(I8\): proj_out\.bias")


@pytest.mark.parametrize("keep", [0, 7, 8, 300, -1])
def test_truncated(root, keep):
    file = root / DMD / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refuse(root, "no whole safetensors file.*truncated; fetch it again")


def hostile(header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


@pytest.mark.parametrize(
    "content",
    [
        hostile(b"", length=2**63),
        hostile(b"[]"),
        hostile({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}}, b"\0" * 8),
        hostile({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**40]}}, b"\0" * 8),
        hostile({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}, b"\0" * 8),
        hostile({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, b"\0" * 8),
        hostile({"a": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8),
        hostile(b"{" * 50_000),
    ],
    ids=["length", "list", "shape", "offset", "size", "backwards", "type", "nested"],
)
def test_hostile_headers(root, content):
    (root / DMD / "model.safetensors").write_bytes(content)
    refuse(root, "no whole safetensors file")


def test_a_file_without_tensors(root):
    (root / DMD / "model.safetensors").write_bytes(hostile({}))
    refuse(root, "holds no tensors")


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt", ".pth"])
def test_pickles_are_never_opened(root, suffix):
    folder = root / DMD
    (folder / "model.safetensors").unlink()
    bomb = folder / f"pytorch_model{suffix}"
    bomb.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    refuse(root, "a pickle, which can run code when it is opened")
    with pytest.raises(CheckpointError, match="is a pickle"):
        find_checkpoint(bomb)


def test_no_weights_at_all(root):
    (root / DMD / "model.safetensors").unlink()
    refuse(root, r"has neither model\.safetensors nor model\.safetensors\.index\.json")


@pytest.mark.parametrize(
    ("weight_map", "sentence"),
    [
        ({"a": "../../secret.safetensors"}, "names the shard '../../secret.safetensors'; a .safetensors file beside"),
        ({"a": "/etc/passwd"}, "names the shard '/etc/passwd'"),
        ({"a": "model-1.bin"}, r"names the shard 'model-1\.bin'"),
        ({"a": "gone.safetensors"}, "which is missing"),
        ({"a": 3}, "no weight_map"),
        (["a"], "no weight_map"),
        ({"not.there": "part.safetensors"}, "names 1 tensor that the shards lack: not.there"),
        ({"a": "part.safetensors"}, "does not name 1 tensor of its shards: b"),
    ],
)
def test_hostile_indices(tmp_path, weight_map, sentence):
    save_weights(tmp_path, "part", {"a": torch.zeros(2), "b": torch.zeros(2)})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=sentence):
        open_weights(tmp_path, "model")


def test_wrong_variants(root):
    with pytest.raises(CheckpointError, match=f"has no checkpoint {CAMERA}; it has {DMD}"):
        find_checkpoint(root, "camera")
    with pytest.raises(CheckpointError, match="'video' is not known"):
        find_checkpoint(root, "video")
    (root / DMD).rename(root / CAMERA)
    with pytest.raises(CheckpointError, match=f"describes the variant {DMD} and {CAMERA} was asked for"):
        find_checkpoint(root)
    other = root / "other"
    write_checkpoint(other, CAMERA, autoencoder=False)
    write_checkpoint(other, MEMORY, autoencoder=False)
    camera, memory = (other / v / "model.safetensors" for v in (CAMERA, MEMORY))
    content = camera.read_bytes(), memory.read_bytes()
    memory.write_bytes(content[0])
    camera.write_bytes(content[1])
    refuse(other, "are of the camera variant .*describes a memory variant", variant="memory")
    refuse(other, "are of a memory variant .*describes the camera variant", variant="camera")


def test_the_fewest_steps_are_taken_where_there_are_several(root):
    write_checkpoint(root, CAMERA, autoencoder=False)
    assert find_checkpoint(root).variant == DMD
    assert find_checkpoint(root, "camera").variant == CAMERA
    assert find_checkpoint(root / CAMERA).variant == CAMERA


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"base_model": None}, "lacks base_model"),
        ({"base_model": "nowhere"}, "neither a folder below .* nor a hub id"),
        ({"base_model": "../../base"}, "neither a folder below"),
        ({"base_model": "/no/such/base"}, "not a folder on this machine"),
        ({"base_model": "owner/never-fetched"}, "owner/never-fetched, the base model, could not be had: it was not"),
        ({"base_model": "Wan-AI/Wan2.2-TI2V-5B-Diffusers"}, "5B base"),
        ({"controlnet_cfg": [1]}, "controlnet_cfg an object"),
        ({"controlnet_cfg": {"dim": 32}}, "conv_out_dim is None; a whole number"),
        ({"nframe": 10**9}, "nframe is 1000000000; a whole number in 2..1000"),
        ({"scale_map": [[481, 768]]}, "multiples of 16"),
        ({"scale_map": "all"}, "multiples of 16"),
        ({"latent_cond_mode": "other"}, "full_vae or first_frame_only"),
        ({"dmd_steps": "four"}, "dmd_steps is 'four'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_configs(root, change, sentence):
    change_config(root / DMD, **change)
    refuse(root, sentence)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_layers": 10**9}, "num_layers is 1000000000"),
        ({"num_attention_heads": 500, "attention_head_dim": 4096}, "at most 65536 in all"),
        ({"ffn_dim": -1}, "ffn_dim is -1"),
        ({"patch_size": [1, 0, 2]}, "patch_size is"),
        ({"num_attention_heads": 4}, "this base is not the one the checkpoint was trained on"),
        ({"ffn_dim": 128}, r"The shape of \d+ tensors .*ffn.* and \d+ more"),
        ({"_class_name": "FluxTransformer2DModel"}, "a WanTransformer3DModel was expected"),
        ({"guidance_embeds": True}, "settings that this model does not know: guidance_embeds"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_bases(root, change, sentence):
    change_config(root / "base" / "transformer", **change)
    refuse(root, sentence)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_broken_configs(root, content):
    (root / DMD / "config.json").write_bytes(content)
    refuse(root, "could not be read as JSON|an object")


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("no/such/folder/here", "no folder on this machine and no hub id such as hanshanxue/WorldStereo"),
        ("hanshanxue/never-fetched", "the checkpoint, could not be had: it was not fetched before"),
        (f"owner/name/{CAMERA}", "owner/name, the checkpoint, could not be had"),
    ],
)
def test_models_that_are_not_there(model, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=sentence):
        find_checkpoint(model)


def test_an_empty_folder_and_a_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"no folder of a variant with a config\.json is in it"):
        find_checkpoint(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        find_checkpoint(tmp_path / "notes.txt")


def test_from_the_hub_only_what_is_needed_is_asked_for(root, monkeypatch):
    asked = []

    def snapshot_download(repository, allow_patterns, local_files_only):
        asked.append((repository, tuple(allow_patterns), local_files_only))
        return str(root)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    change_config(root / DMD, base_model="owner/wan")
    (root / "transformer").symlink_to(root / "base" / "transformer")
    load_transformer(find_checkpoint("owner/name", "memory-dmd", local_files_only=True))
    assert {repository for repository, _, _ in asked} == {"owner/name", "owner/wan"}
    assert all(only for _, _, only in asked)
    patterns = {pattern for _, those, _ in asked for pattern in those}
    assert all(p.startswith((f"{DMD}/", "transformer/")) for p in patterns)
    assert not any(p.endswith(("*", ".bin", ".pt")) for p in patterns)


# --- saving ---


def test_old_shards_do_not_stay(tmp_path):
    tensors = {f"t{i}": torch.full((100,), float(i)) for i in range(5)}
    assert len(save_weights(tmp_path, "model", tensors, max_shard_bytes=900)) == 3
    assert open_weights(tmp_path, "model").tensors.keys() == tensors.keys()
    save_weights(tmp_path, "model", tensors)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    with pytest.raises(ValueError, match="400 bytes and a shard at most 300"):
        save_weights(tmp_path, "model", tensors, max_shard_bytes=300)
    with pytest.raises(ValueError, match="no tensors to write"):
        save_weights(tmp_path, "model", {})
    assert (tmp_path / "model.safetensors").is_file()
