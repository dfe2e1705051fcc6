"""Checkpoints that cannot be used: each gets one sentence, and none gets memory or runs code."""

import json
import struct

import pytest
import torch
from helpers.checkpoints import CAMERA, MEMORY, change_config, edit, frozen, refuse, write_checkpoint
from helpers.checkpoints import DMD_VARIANT as DMD

from worldstereo_ros.models.checkpoints.hub import find_checkpoint
from worldstereo_ros.models.checkpoints.loading import load_transformer
from worldstereo_ros.models.checkpoints.saving import save_weights
from worldstereo_ros.models.checkpoints.weights import CheckpointError, open_weights


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """No test may wait for the network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def root(tmp_path):
    write_checkpoint(tmp_path, DMD, autoencoder=False)
    return tmp_path


def test_missing_and_unexpected_keys_are_named_and_counted(root):
    file = root / DMD / "model.safetensors"

    def break_it(tensors):
        for name in [n for n in tensors if n.startswith("controlnet.controlnet_blocks.0.self_attn")]:
            del tensors[name]
        tensors["extra.weight"] = torch.zeros(2)

    edit(file, break_it)
    refuse(
        root,
        r"has 1 tensor that the model does not: extra\.weight\. .* lacks 10 tensors: .*self_attn\.to_q\.weight, .* and 7 more",
    )


def test_unused_published_keys_are_no_problem(root):
    edit(root / DMD / "model.safetensors", lambda t: t.update({"ref_index_embedding.weight": torch.zeros(21, 48)}))
    load_transformer(find_checkpoint(root))


def test_backbone_keys_that_are_nowhere(root):
    edit(
        root / "base" / "transformer" / "diffusion_pytorch_model.safetensors", lambda t: t.pop(next(filter(frozen, t)))
    )
    refuse(root, "and its base model lack 1 tensor: blocks.0.attn2")


def test_base_without_weights(root):
    (root / "base" / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    refuse(root, "leaves 38 tensors to its base model .* has neither")


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
    refuse(root, "not a complete safetensors file.*truncated; download it again")


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
    refuse(root, "not a complete safetensors file")


def test_a_file_without_tensors(root):
    (root / DMD / "model.safetensors").write_bytes(hostile({}))
    refuse(root, "holds no tensors")


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt", ".pth"])
def test_pickles_are_never_opened(root, suffix):
    folder = root / DMD
    (folder / "model.safetensors").unlink()
    bomb = folder / f"pytorch_model{suffix}"
    bomb.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    refuse(root, "a pickle, which can execute code when it is opened")
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
        ({"not.there": "part.safetensors"}, "names 1 tensor its shards do not have: not.there"),
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
        ({"num_attention_heads": 4}, "use the base model that the checkpoint was trained on"),
        ({"ffn_dim": 128}, r"The shape of \d+ tensors .*ffn.* and \d+ more"),
        ({"_class_name": "FluxTransformer2DModel"}, "a WanTransformer3DModel was expected"),
        ({"guidance_embeds": True}, "arguments that this model does not have: guidance_embeds"),
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
        ("no/such/folder/here", "neither an existing folder nor a hub id such as hanshanxue/WorldStereo"),
        ("hanshanxue/never-fetched", "\\(the checkpoint\\) is not available: it was not downloaded before"),
        (f"owner/name/{CAMERA}", "owner/name \\(the checkpoint\\) is not available"),
    ],
)
def test_models_that_are_not_there(model, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=sentence):
        find_checkpoint(model)


def test_an_empty_folder_and_a_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"it has no folder of a variant with a config\.json"):
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
