"""Unusable checkpoints: one-line errors, no memory allocated, no code executed."""

import json
import struct

import pytest
import torch
from helpers.checkpoints import CAMERA, MEMORY, assert_load_fails, change_config, edit_tensors, frozen, write_checkpoint
from helpers.checkpoints import DMD_VARIANT as DMD

from worldstereo_ros.models.checkpoints.hub import find_checkpoint
from worldstereo_ros.models.checkpoints.loading import load_transformer
from worldstereo_ros.models.checkpoints.saving import save_weights
from worldstereo_ros.models.checkpoints.weights import CheckpointError, open_weights


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """Keeps the tests off the network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def root(tmp_path):
    write_checkpoint(tmp_path, DMD, autoencoder=False)
    return tmp_path


def test_missing_and_unexpected_keys(root):
    file = root / DMD / "model.safetensors"

    def break_tensors(tensors):
        for name in [n for n in tensors if n.startswith("controlnet.controlnet_blocks.0.self_attn")]:
            del tensors[name]
        tensors["extra.weight"] = torch.zeros(2)

    edit_tensors(file, break_tensors)
    assert_load_fails(
        root,
        r"has 1 tensor that the model does not: extra\.weight\. "
        r".* lacks 10 tensors: .*self_attn\.to_q\.weight, .* and 7 more",
    )


def test_unused_published_keys_are_ignored(root):
    edit_tensors(
        root / DMD / "model.safetensors", lambda t: t.update({"ref_index_embedding.weight": torch.zeros(21, 48)})
    )
    load_transformer(find_checkpoint(root))


def test_missing_backbone_keys(root):
    edit_tensors(
        root / "base" / "transformer" / "diffusion_pytorch_model.safetensors", lambda t: t.pop(next(filter(frozen, t)))
    )
    assert_load_fails(root, "and its base model lack 1 tensor: blocks.0.attn2")


def test_base_without_weights(root):
    (root / "base" / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    assert_load_fails(root, "leaves 38 tensors to its base model .* has neither")


def test_wrong_shapes(root):
    edit_tensors(root / DMD / "model.safetensors", lambda t: t.update({"proj_out.bias": torch.zeros(7)}))
    assert_load_fails(root, r"The shape of 1 tensor .* is wrong: proj_out\.bias is \(7,\) and should be \(64,\)")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_non_finite_numbers(root, number):
    edit_tensors(root / DMD / "model.safetensors", lambda t: t["proj_out.weight"][3, 4].fill_(number))
    assert_load_fails(root, r"1 of 3072 numbers of proj_out\.weight are not finite")


def test_integer_weights(root):
    edit_tensors(
        root / DMD / "model.safetensors", lambda t: t.update({"proj_out.bias": torch.zeros(64, dtype=torch.int8)})
    )
    assert_load_fails(root, r"not in floating point of 16 bits or more \(I8\): proj_out\.bias")


@pytest.mark.parametrize(
    ("keep", "explanation"),
    [
        (0, r"empty file \(0 bytes\)\. Its download or copy did not finish; fetch it again"),
        (7, r"truncated: 7 of \d+ bytes are there\. Download it again"),
        (8, r"truncated: 8 of \d+ bytes are there\. Download it again"),
        (300, r"truncated: 300 of \d+ bytes are there\. Download it again"),
        (-1, r"truncated: \d+ of \d+ bytes are there\. Download it again"),
    ],
)
def test_truncated_file(root, keep, explanation):
    file = root / DMD / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert_load_fails(root, f"not a complete safetensors file.*{explanation}")


def malformed_file(header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


@pytest.mark.parametrize(
    "content",
    [
        malformed_file(b"", length=2**63),
        malformed_file(b"[]"),
        malformed_file({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}}, b"\0" * 8),
        malformed_file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**40]}}, b"\0" * 8),
        malformed_file({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}, b"\0" * 8),
        malformed_file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, b"\0" * 8),
        malformed_file({"a": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8),
        malformed_file(b"{" * 50_000),
    ],
    ids=["length", "list", "shape", "offset", "size", "backwards", "type", "nested"],
)
def test_malformed_headers(root, content):
    (root / DMD / "model.safetensors").write_bytes(content)
    assert_load_fails(root, "not a complete safetensors file")


def test_file_without_tensors(root):
    (root / DMD / "model.safetensors").write_bytes(malformed_file({}))
    assert_load_fails(root, "holds no tensors")


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt", ".pth"])
def test_pickles_are_not_opened(root, suffix):
    folder = root / DMD
    (folder / "model.safetensors").unlink()
    pickle = folder / f"pytorch_model{suffix}"
    pickle.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert_load_fails(root, "a pickle, which can execute code when it is opened")
    with pytest.raises(CheckpointError, match="is a pickle"):
        find_checkpoint(pickle)


def test_missing_weights(root):
    (root / DMD / "model.safetensors").unlink()
    assert_load_fails(root, r"has neither model\.safetensors nor model\.safetensors\.index\.json")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../../secret.safetensors"}, "names the shard '../../secret.safetensors'; a .safetensors file beside"),
        ({"a": "/etc/passwd"}, "names the shard '/etc/passwd'"),
        ({"a": "model-1.bin"}, r"names the shard 'model-1\.bin'"),
        ({"a": "gone.safetensors"}, "which is missing"),
        ({"a": 3}, "no weight_map"),
        (["a"], "no weight_map"),
        ({"not.there": "part.safetensors"}, "names 1 tensor its shards do not have: not.there"),
        ({"a": "part.safetensors"}, "does not name 1 tensor of its shards: b"),
    ],
)
def test_malformed_indices(tmp_path, weight_map, message):
    save_weights(tmp_path, "part", {"a": torch.zeros(2), "b": torch.zeros(2)})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=message):
        open_weights(tmp_path, "model")


def test_other_variants(root):
    with pytest.raises(CheckpointError, match=f"has no checkpoint {CAMERA}; it has {DMD}"):
        find_checkpoint(root, "camera")
    with pytest.raises(CheckpointError, match="'video' does not exist"):
        find_checkpoint(root, "video")
    (root / DMD).rename(root / CAMERA)
    with pytest.raises(CheckpointError, match=f"describes the variant {DMD}, but {CAMERA} was requested"):
        find_checkpoint(root)
    other = root / "other"
    write_checkpoint(other, CAMERA, autoencoder=False)
    write_checkpoint(other, MEMORY, autoencoder=False)
    camera, memory = (other / v / "model.safetensors" for v in (CAMERA, MEMORY))
    content = camera.read_bytes(), memory.read_bytes()
    memory.write_bytes(content[0])
    camera.write_bytes(content[1])
    assert_load_fails(other, "are of the camera variant .*describes a memory variant", variant="memory")
    assert_load_fails(other, "are of a memory variant .*describes the camera variant", variant="camera")


def test_default_variant_has_the_fewest_steps(root):
    write_checkpoint(root, CAMERA, autoencoder=False)
    assert find_checkpoint(root).variant == DMD
    assert find_checkpoint(root, "camera").variant == CAMERA
    assert find_checkpoint(root / CAMERA).variant == CAMERA


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model": None}, "lacks base_model"),
        ({"base_model": "nowhere"}, "neither a folder below .* nor a hub id"),
        ({"base_model": "../../base"}, "neither a folder below"),
        ({"base_model": "/no/such/base"}, "does not exist; correct base_model"),
        (
            {"base_model": "owner/never-fetched"},
            "owner/never-fetched \\(the base model\\) is not available: it was not downloaded before",
        ),
        ({"base_model": "Wan-AI/Wan2.2-TI2V-5B-Diffusers"}, "5B base"),
        ({"controlnet_cfg": [1]}, "controlnet_cfg an object"),
        ({"controlnet_cfg": {"dim": 32}}, "conv_out_dim is None; an integer"),
        ({"nframe": 10**9}, "nframe is 1000000000; an integer in 2..1000"),
        ({"scale_map": [[481, 768]]}, "multiples of 16"),
        ({"scale_map": "all"}, "multiples of 16"),
        ({"latent_cond_mode": "other"}, "full_vae or first_frame_only"),
        ({"dmd_steps": "four"}, "dmd_steps is 'four'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_invalid_configs(root, change, message):
    change_config(root / DMD, **change)
    assert_load_fails(root, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 10**9}, "num_layers is 1000000000"),
        ({"num_attention_heads": 500, "attention_head_dim": 4096}, "at most 65536 in all"),
        ({"ffn_dim": -1}, "ffn_dim is -1"),
        ({"patch_size": [1, 0, 2]}, "patch_size is"),
        ({"num_attention_heads": 4}, "use the base model that the checkpoint was trained on"),
        ({"ffn_dim": 128}, r"The shape of \d+ tensors .*ffn.* and \d+ more"),
        ({"_class_name": "FluxTransformer2DModel"}, "a WanTransformer3DModel was expected"),
        ({"guidance_embeds": True}, "arguments that this model does not have: guidance_embeds"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_invalid_base_configs(root, change, message):
    change_config(root / "base" / "transformer", **change)
    assert_load_fails(root, message)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_malformed_configs(root, content):
    (root / DMD / "config.json").write_bytes(content)
    assert_load_fails(root, "could not be read as JSON|an object")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no/such/folder/here", "neither an existing folder nor a hub id such as hanshanxue/WorldStereo"),
        ("hanshanxue/never-fetched", "\\(the checkpoint\\) is not available: it was not downloaded before"),
        (f"owner/name/{CAMERA}", "owner/name \\(the checkpoint\\) is not available"),
    ],
)
def test_missing_models(model, message, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint(model)


def test_empty_folder_and_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"it has no folder of a variant with a config\.json"):
        find_checkpoint(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        find_checkpoint(tmp_path / "notes.txt")


def test_only_needed_files_are_downloaded(root, monkeypatch):
    requests = []

    def snapshot_download(repository, allow_patterns, local_files_only):
        requests.append((repository, tuple(allow_patterns), local_files_only))
        return str(root)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    change_config(root / DMD, base_model="owner/wan")
    (root / "transformer").symlink_to(root / "base" / "transformer")
    load_transformer(find_checkpoint("owner/name", "memory-dmd", local_files_only=True))
    assert {repository for repository, _, _ in requests} == {"owner/name", "owner/wan"}
    assert all(only for _, _, only in requests)
    patterns = {pattern for _, those, _ in requests for pattern in those}
    assert all(p.startswith((f"{DMD}/", "transformer/")) for p in patterns)
    assert not any(p.endswith(("*", ".bin", ".pt")) for p in patterns)
